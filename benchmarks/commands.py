"""Verbs that read: of an image of many entries, and of one that is small, where starting is what takes time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.runner import MKCFS, Job, Limit, Target, build_image
from tests.reference import Reference


def start(reference: Reference, label: str, source: Path, scratch: Path) -> Iterator[Job]:
    """Yield what is over before anyone looks: the version, a small image, and a mount by the kernel."""
    image, store, place = scratch / "start.cfs", scratch / "start-store", scratch / "start-mount"
    build_image(source, image, "--store", str(store))
    place.mkdir(exist_ok=True)
    yield Job(name="--version", ours=[*MKCFS, "--version"], target=Limit(0.06, 0.035), pure=True)
    yield Job(
        name=f"{label}, ls",
        ours=[*MKCFS, "ls", str(image)],
        theirs=reference.command("composefs-info", "ls", image),
        target=Limit(0.08, 0.055),
        pure=True,
    )
    yield Job(name=f"{label}, inspect", ours=[*MKCFS, "inspect", str(image)], target=Limit(0.2, 0.12), pure=True)
    # In a mount namespace, which ends with it: nothing is left to unmount.
    mount = [*MKCFS, "mount", str(image), str(place), "--store", str(store)]
    yield Job(name=f"{label}, mount and forget", ours=["unshare", "-m", *mount], target=Limit(0.08, 0.05))


def text(image: Path, label: str) -> Iterator[Job]:
    """Yield what prints a line for each of many files, against no more than reading the image and writing the text."""
    for verb in ("ls", "dump"):
        listed = image.with_suffix(f".{verb}")

        def make(verb: str = verb, listed: Path = listed) -> None:
            if not listed.exists():
                listed.write_bytes(
                    subprocess.run([*MKCFS, verb, str(image)], check=True, stdout=subprocess.PIPE).stdout
                )

        yield Job(
            name=f"{label}, {verb} / system calls",
            ours=[*MKCFS, verb, str(image)],
            theirs=["cat", str(image), str(listed)],
            make=make,
            target=Limit(0.2, 0.1),
        )


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
