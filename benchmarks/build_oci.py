"""A gzip image to a composefs image and a store: in one pass, against an unpack and a build of what it left."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from benchmarks import inputs
from benchmarks.runner import MKCFS, Job, Target, set_aside
from tests.oci import making
from tests.reference import Reference

_POOL = 8 << 20
_PIECE = 8 << 10
_COPIED = 1 << 20


def jobs(reference: Reference, scratch: Path, *, size: int) -> Iterator[Job]:
    """Yield the job for one image of *size* bytes, uncompressed; none where umoci is missing."""
    if shutil.which("umoci") is None:
        print("umoci is missing: no comparison for container images")
        return
    place = image(size)
    ours, theirs = scratch / "oci", scratch / "unpacked"

    def start_over() -> None:
        set_aside(ours, theirs)
        for directory in (ours, theirs):
            directory.mkdir()

    source = f"oci-archive:{place / 'image.tar'}"
    store = b"--digest-store=" + reference.seen(theirs / "objects")
    pack = reference.command("mkcomposefs", store, theirs / "rootfs", theirs / "image.cfs")
    unpack = ["umoci", "--log=error", "raw", "unpack", "--image", f"{place / 'layout'}:latest", str(theirs / "rootfs")]
    yield Job(
        name=f"gzip image of {size // 1000**2} MB, cold store / umoci + mkcomposefs",
        ours=[*MKCFS, "build", source, str(ours / "i.cfs"), "--store", str(ours / "s")],
        theirs=["sh", "-ec", f"{shlex.join(unpack)}; {shlex.join(map(os.fsdecode, pack))}"],
        before=start_over,
        target=Target(3, 3),
        pure=True,
    )


def image(size: int, compression: str = "gzip") -> Path:
    """Return a directory with an image of *size* bytes, uncompressed: ``layout/``, and ``image.tar`` of it.

    The layers are the same whatever the compression, which is one of ``COMPRESSIONS``.
    """

    def make(place: Path) -> None:
        layers = place / "layers"
        layers.mkdir()
        with (layers / "1").open("wb") as file:
            base = _base_layer(file, inputs.debian())
        with (layers / "2").open("wb") as file:
            _application_layer(file, inputs.debian(), size - base)
        with (layers / "3").open("wb") as file:
            _last_layer(file)
        write_layout(place / "layout", [layers / name for name in "123"], compression)
        shutil.rmtree(layers)
        with tarfile.open(place / "image.tar", "w") as archive:
            archive.add(place / "layout", arcname=".")

    return inputs.cached(f"oci-{size}" if compression == "gzip" else f"oci-{size}-{compression}", make)


def _base_layer(file: BinaryIO, root: Path) -> int:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as layer:
        layer.add(root, arcname=".")
    return file.tell()


def _application_layer(file: BinaryIO, root: Path, size: int) -> None:
    """Files that compress as a system's files do and are all different: most a few kilobytes, some of megabytes."""
    pool = b""
    for path in sorted((root / "usr").rglob("*")):
        if path.is_file() and not path.is_symlink() and len(pool) < _POOL:
            pool += path.read_bytes()
    chance = random.Random(size)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as layer:
        layer.addfile(*_streamed(making.member("opt/")))
        number = 0
        while (left := size - file.tell()) > 0:
            if number % 50 == 0:
                layer.addfile(*_streamed(making.member(f"opt/d{number // 50:04}/")))
            length = min(int(chance.lognormvariate(8.5, 1.6)), left)
            data = bytearray()
            while len(data) < length:
                start = chance.randrange(len(pool) - _PIECE)
                data += chance.randbytes(8) + pool[start : start + _PIECE]
            name = f"opt/d{number // 50:04}/file-{number:06}"
            layer.addfile(*_streamed(making.member(name, bytes(data[:length]))))
            number += 1


def _last_layer(file: BinaryIO) -> None:
    """What an update leaves: files replaced, removed and added."""
    file.write(
        making.tar(
            making.member("opt/"),
            making.member("opt/d0000/"),
            making.member("opt/d0000/file-000000", b"new" * 100),
            making.member("opt/d0000/.wh.file-000001", b""),
            making.member("opt/.wh.d0001", b""),
            making.member("opt/added", b"added" * 1000),
        )
    )


def _streamed(pair: tuple[tarfile.TarInfo, bytes]) -> tuple[tarfile.TarInfo, BinaryIO]:
    return pair[0], io.BytesIO(pair[1])


def write_layout(place: Path, layers: list[Path], compression: str = "gzip") -> None:
    """Write an OCI layout with an image of these tar files, compressed as COMPRESSIONS has it."""
    suffix, compress = COMPRESSIONS[compression]
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        found = making.descriptor(data, media_type)
        (blobs / found["digest"].partition(":")[2]).write_bytes(data)
        return found

    stored, diff_ids = [], []
    for layer in layers:
        diff_ids.append("sha256:" + _file_digest(layer))
        packed = place / "packed"
        with layer.open("rb") as plain, packed.open("wb") as file:
            compress(plain, file)
        digest = _file_digest(packed)
        stored.append({"mediaType": making.LAYER + suffix, "digest": f"sha256:{digest}", "size": packed.stat().st_size})
        packed.rename(blobs / digest)
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {"schemaVersion": 2, "mediaType": making.MANIFEST, "layers": stored}
    manifest["config"] = blob(making.packed(config), making.CONFIG)
    entry = blob(making.packed(manifest), making.MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _gzip(plain: BinaryIO, packed: BinaryIO) -> None:
    with gzip.GzipFile("", "wb", 6, packed, 0) as compressed:
        shutil.copyfileobj(plain, compressed, _COPIED)


def _zstd(plain: BinaryIO, packed: BinaryIO) -> None:
    zstandard.ZstdCompressor(level=3).copy_stream(plain, packed)


def _plain(plain: BinaryIO, packed: BinaryIO) -> None:
    shutil.copyfileobj(plain, packed, _COPIED)


COMPRESSIONS: dict[str, tuple[str, Callable[[BinaryIO, BinaryIO], None]]] = {
    "gzip": ("+gzip", _gzip),
    "zstd": ("+zstd", _zstd),
    "plain": ("", _plain),
}
"""How layers are compressed: the end of their media type, and what does it."""


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
