"""A registry with one image, whose answers a test can change: for what no real registry does on command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.servers.faulty import Asked, Part, reply, serve

_BLOB = re.compile(r"/v2/app/blobs/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/app/manifests/([^?]+)")
Override = Callable[[Asked], Iterable[Part] | None]


def problem(status: int, code: str, message: str, *headers: str) -> bytes:
    """An error as registries say it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return reply(status, body, "Content-Type: application/json", *headers)


class OneImage:
    """Answers for the repository ``app`` with the first image of a layout's *files*, at every tag.

    What *override* gives goes first; ``None`` leaves the answer to the registry.
    """

    def __init__(self, files: Mapping[str, bytes], override: Override = lambda _asked: None) -> None:
        self.override = override
        self.blobs = {
            path.removeprefix("blobs/").replace("/", ":"): data
            for path, data in files.items()
            if path.startswith("blobs/")
        }
        entry: dict[str, Any] = json.loads(files["index.json"])["manifests"][0]
        self.digest: str = entry["digest"]
        self.media_type: str = entry["mediaType"]

    @property
    def manifest(self) -> bytes:
        """The manifest of the image."""
        return self.blobs[self.digest]

    @property
    def layers(self) -> list[str]:
        """The digests of its layers."""
        return [layer["digest"] for layer in json.loads(self.manifest)["layers"]]

    def __call__(self, asked: Asked) -> Iterable[Part]:
        """What is answered."""
        changed = self.override(asked)
        if changed is not None:
            return changed
        path = asked.target.partition("?")[0]
        if path == "/v2/":
            return [reply(200, b"{}")]
        if found := _MANIFEST.fullmatch(path):
            return [self.manifest_reply(self.digest if ":" not in found[1] else found[1])]
        if (found := _BLOB.fullmatch(path)) and found[1] in self.blobs:
            return [serve(self.blobs[found[1]], asked)]
        return [problem(404, "BLOB_UNKNOWN", "no such thing")]

    def manifest_reply(self, digest: str) -> bytes:
        """A manifest with its headers."""
        data = self.blobs.get(digest)
        if data is None:
            return problem(404, "MANIFEST_UNKNOWN", "manifest unknown")
        kind = json.loads(data).get("mediaType", self.media_type)
        return reply(200, data, f"Content-Type: {kind}", f"Docker-Content-Digest: {digest}")
