"""Verbs that read: of an image of many entries, and of one that is small, where starting is what takes time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.runner import MKCFS, Job, Limit, Target, build_image
from tests.reference import Reference


def start(label: str, source: Path, scratch: Path) -> Iterator[Job]:
    """Yield what is over before anyone looks: the version, and a small image."""
    image = scratch / "start.cfs"
    build_image(source, image)
    yield Job(name="--version", ours=[*MKCFS, "--version"], target=Limit(0.1, 0.06), pure=True)
    yield Job(name=f"{label}, inspect", ours=[*MKCFS, "inspect", str(image)], target=Limit(0.2, 0.12), pure=True)


def jobs(reference: Reference, label: str, image: Path, *, pure: bool = True) -> Iterator[Job]:
    """Yield the reading verbs for one image."""
    yield Job(
        name=f"{label}, dump",
        ours=[*MKCFS, "dump", str(image)],
        theirs=reference.command("composefs-info", "dump", image),
        target=Target(0.7, 1.2),
        pure=pure,
    )
    for verb in ("ls", "objects"):
        yield Job(
            name=f"{label}, {verb}",
            ours=[*MKCFS, verb, str(image)],
            theirs=reference.command("composefs-info", verb, image),
            pure=pure,
        )
    yield Job(name=f"{label}, inspect", ours=[*MKCFS, "inspect", str(image)], pure=pure)
    yield Job(name=f"{label}, verify the structure", ours=[*MKCFS, "verify", "--canonical", str(image)], pure=pure)
    yield Job(name=f"{label}, diff with itself", ours=[*MKCFS, "diff", str(image), str(image)], pure=pure)
