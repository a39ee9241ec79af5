"""Where images are written: the seam between what is pushed and where it goes.

Blobs come first, in any order and from several threads, then the manifest that names them. Whoever writes has the
digests; a sink only keeps bytes under them, and never shows a manifest before what it names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

from cfstools.errors import OciError, naming
from cfstools.oci.content import blob_path
from cfstools.oci.descriptor import Descriptor
from cfstools.oci.jsontext import Fields, parse_json, within
from cfstools.streams.limits import MAX_JSON
from cfstools.transport.base import Body, BytesBody, Target
from cfstools.transport.reading import read_whole

REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

Advance = Callable[[int], object]


class BlobSink(Protocol):
    """Takes one image. Errors are ``InputError``, ``NetworkError`` among them, and :class:`OciError`."""

    def put(self, descriptor: Descriptor, body: Body, advance: Advance) -> bool:
        """Have the blob there; whether its bytes had to be sent. *advance* is told of bytes sent."""

    def finish(self, manifest: Descriptor, data: bytes) -> None:
        """Put the manifest, under the name that the sink was made with. All it names has been put."""

    def attach(self, manifest: Descriptor, data: bytes, subject: Descriptor) -> None:
        """Put a manifest that refers to *subject*, which is there, and list it among its referrers."""

    def close(self) -> None:
        """Release what is held open."""


class LayoutSink:
    """An OCI layout in *target*: a directory, or memory. Takes it over. The image is called *name* there.

    Referrers are entries of the index without a name, as other tools write them.
    """

    def __init__(self, target: Target, name: str | None) -> None:
        self._target = target
        self._name = name

    def has(self, descriptor: Descriptor) -> bool:
        """Whether there is a blob of this digest and size."""
        return self._target.size(blob_path(descriptor.digest)) == descriptor.size

    def put(self, descriptor: Descriptor, body: Body, advance: Advance) -> bool:
        """Store the blob, unless it is there."""
        if self.has(descriptor):
            return False
        self._target.put(blob_path(descriptor.digest), body, replace=True)
        advance(body.size)
        return True

    def finish(self, manifest: Descriptor, data: bytes) -> None:
        """Store the manifest, and put it into the index in place of what had its name."""
        self.put(manifest, BytesBody(data), lambda _: None)
        entry = _entry(manifest)
        if self._name is not None:
            entry["annotations"] = {**entry.get("annotations", {}), REF_NAME: self._name}
        self._extend(entry)

    def attach(self, manifest: Descriptor, data: bytes, subject: Descriptor) -> None:
        """Store the manifest, and put it into the index."""
        del subject  # the manifest itself says it
        self.put(manifest, BytesBody(data), lambda _: None)
        self._extend(_entry(manifest))

    def close(self) -> None:
        """Close the target."""
        self._target.close()

    def _extend(self, entry: dict[str, Any]) -> None:
        if self._target.size("oci-layout") is None:
            self._target.put("oci-layout", BytesBody(_LAYOUT), replace=False)
        index, entries = self._index()
        name = entry.get("annotations", {}).get(REF_NAME)
        kept = [one for one in entries if not _replaced(one, entry, name)]
        index["manifests"] = [*kept, entry]
        data = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()
        self._target.put("index.json", BytesBody(data), replace=True)

    def _index(self) -> tuple[dict[str, Any], list[object]]:
        """The index as it stands, and its entries."""
        if self._target.size("index.json") is None:
            return {"schemaVersion": 2, "mediaType": _INDEX_TYPE}, []
        with naming(self._target.describe("index.json")):
            value = parse_json(read_whole(self._target, "index.json", MAX_JSON))
            entries = Fields(value, "").array("manifests")
            if not isinstance(value, dict) or value.get("schemaVersion") != 2:
                raise OciError("not an image index")
        return value, entries


def _entry(descriptor: Descriptor) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        entry["artifactType"] = descriptor.artifact_type
    platform = descriptor.platform
    if platform is not None:
        entry["platform"] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            entry["platform"]["variant"] = platform.variant
    if descriptor.annotations:
        entry["annotations"] = dict(descriptor.annotations)
    return entry


def _replaced(one: object, entry: dict[str, Any], name: str | None) -> bool:
    """Whether an entry of the index gives way to the new one: it has its name, or is the same without any."""
    with within("index.json"):
        annotations = Fields(one, "manifests").text_map("annotations")
    if name is None:
        return isinstance(one, dict) and one.get("digest") == entry["digest"] and REF_NAME not in annotations
    return annotations.get(REF_NAME) == name
