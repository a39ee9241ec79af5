"""The stages of an import of a container image, each with all before it: where the time of a build of one goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import build_oci
from benchmarks.runner import MKCFS, Job, Limit
from cfstools.formats.tar import TarReader
from cfstools.oci.files import DirectoryFiles
from cfstools.oci.images import layout_images
from cfstools.streams.buffered import READ_SIZE, Read
from cfstools.streams.decompress import open_compressed
from cfstools.streams.readers import HashingReader


def jobs(size: int) -> Iterator[Job]:
    """Yield a job for each stage, in one thread, and for a build that keeps nothing."""
    layout = build_oci.image(size) / "layout"
    label = f"gzip image of {size // 1000**2} MB"
    for stage in STAGES:
        command = [sys.executable, "-m", "benchmarks.import_stages", stage, str(layout)]
        yield Job(name=f"{label}, {stage}, one thread", ours=command)
    yield Job(
        name=f"{label}, build --print-digest-only",
        ours=[*MKCFS, "build", f"oci:{layout}", "--print-digest-only"],
        target=Limit(1.6, 1.3),
    )


def _read_all(read: Read) -> None:
    while read(READ_SIZE):
        pass


def _hashed(read: Read) -> Read:
    return HashingReader(read).read


def _unpacked(read: Read) -> Read:
    return open_compressed(_hashed(read)).read


def _members(read: Read) -> None:
    for _ in TarReader(_hashed(_unpacked(read))):
        pass


STAGES: dict[str, Callable[[Read], None]] = {
    "layers read": _read_all,
    "and their digests": lambda read: _read_all(_hashed(read)),
    "and decompressed": lambda read: _read_all(_unpacked(read)),
    "and DiffIDs": lambda read: _read_all(_hashed(_unpacked(read))),
    "and tar members": _members,
}


def main() -> None:
    """Take all layers of an OCI layout through one stage."""
    stage, layout = sys.argv[1:]
    container = layout_images(DirectoryFiles(bytes(Path(layout))))
    for layer in container.image().layers:
        with container.open_layer(layer) as read:
            STAGES[stage](read)
    container.close()


if __name__ == "__main__":
    main()
