"""Images made in tests: layer tars, layouts, archives, out of plain values."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zstandard

TIME = 1234567890
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}


def member(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member: a file if it has contents, else a directory unless *type* says otherwise."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    info.mode = 0o755 if content is None else 0o644
    info.mtime = TIME
    info.size = len(content or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content or b""


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    kind = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    return member(name, None, type=kind, linkname=target, mode=0o777)


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def descriptor(data: bytes, media_type: str, algorithm: str = "sha256", **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data, algorithm), "size": len(data), **fields}


def packed(value: object) -> bytes:
    return json.dumps(value).encode()


class Layout:
    """An OCI layout as a mapping of paths to bytes, filled image by image."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.blobs: dict[str, bytes] = {}
        self.entries: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        found = descriptor(data, media_type, self.algorithm, **fields)
        self.blobs["blobs/" + found["digest"].replace(":", "/")] = data
        return found

    def manifest(
        self,
        layers: Sequence[bytes],
        *,
        compression: str = "",
        config: Mapping[str, Any] | None = None,
        diff_ids: Sequence[str] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Add an image's blobs; the result is its descriptor."""
        stored = [COMPRESSORS[compression](layer) for layer in layers]
        ids = list(diff_ids) if diff_ids is not None else [digest(layer, self.algorithm) for layer in layers]
        body = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": {"Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": ids},
            **(config or {}),
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(packed(body), CONFIG),
            "layers": [self.blob(layer, LAYER + compression) for layer in stored],
        }
        return self.blob(packed(manifest), MANIFEST, **fields)

    def index(self, entries: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
        return self.blob(packed(body), INDEX, **fields)

    def tag(self, entry: Mapping[str, Any], name: str | None = None) -> Layout:
        named = {**entry, "annotations": {**entry.get("annotations", {}), "org.opencontainers.image.ref.name": name}}
        self.entries.append(named if name is not None else dict(entry))
        return self

    def files(self) -> dict[str, bytes]:
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": packed({"schemaVersion": 2, "manifests": self.entries}),
            **self.blobs,
        }


def image(layers: Sequence[bytes], compression: str = "", algorithm: str = "sha256") -> dict[str, bytes]:
    """The files of a layout with one image."""
    layout = Layout(algorithm)
    return layout.tag(layout.manifest(layers, compression=compression)).files()


def docker(layers: Sequence[bytes], tags: Sequence[str] = ("app:latest",)) -> dict[str, bytes]:
    """The files of a docker archive with one image, as `skopeo copy` writes it."""
    config = packed(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [*map(digest, layers)]}}
    )
    name = hashlib.sha256(config).hexdigest() + ".json"
    names = [hashlib.sha256(layer).hexdigest() + ".tar" for layer in layers]
    entry = {"Config": name, "RepoTags": list(tags), "Layers": names}
    return {"manifest.json": packed([entry]), name: config, **dict(zip(names, layers, strict=True))}


def archive(files: Mapping[str, bytes], prefix: str = "") -> bytes:
    return tar(*(member(prefix + path, data) for path, data in files.items()))


def hello(*, hard_link: bool = False) -> bytes:
    """The layer whose images have known digests."""
    members = [member("usr/"), member("hello.txt", b"hello from test layer\n")]
    return tar(*members, *([link("hello-link.txt", "hello.txt", hard=True)] if hard_link else []))
