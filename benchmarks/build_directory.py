"""``mkcfs build`` of a directory: into an empty store, into a full one, and for the digest alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import walk_calls
from benchmarks.runner import MKCFS, Job, Target, set_aside
from tests.reference import Reference

BUILD = [*MKCFS, "build", "--no-hardlinks"]
_LOOP_SIZE = 2 << 30


class Targets(NamedTuple):
    """What the jobs of one directory are to reach."""

    cold: Target | None = None
    warm: Target | None = None
    rebuild: Target | None = None
    digest: Target | None = None


def jobs(reference: Reference, label: str, source: Path, scratch: Path, targets: Targets) -> Iterator[Job]:
    """Yield the jobs for one directory."""
    yield cold(reference, f"{label}, cold store", source, scratch, targets.cold)
    ours = [*BUILD, str(source), str(scratch / "ours.cfs"), "--store", str(scratch / "ours")]
    theirs = _theirs(reference, source, scratch)
    yield Job(
        name=f"{label}, warm store, no cache",
        ours=[*ours, "--no-cache"],
        theirs=theirs,
        target=targets.warm,
        pure=True,
    )
    yield Job(name=f"{label}, nothing changed", ours=ours, theirs=theirs, target=targets.rebuild, pure=True)
    floor = walk_calls.calls("status", source, scratch / "ours")
    yield Job(name=f"{label}, nothing changed / system calls of two processes", ours=ours, theirs=floor)
    yield digest_only(reference, label, source, targets.digest)
    digest = [*BUILD, "--print-digest-only", str(source)]
    floor = walk_calls.calls("read", source)
    yield Job(name=f"{label}, --print-digest-only / system calls of two processes", ours=digest, theirs=floor)


def cold(
    reference: Reference,
    name: str,
    source: Path,
    place: Path,
    target: Target | None,
    *,
    before: Callable[[], None] | None = None,
) -> Job:
    """Return the job that fills an empty store below *place*, which *before* empties."""
    return Job(
        name=name,
        ours=[*BUILD, str(source), str(place / "ours.cfs"), "--store", str(place / "ours")],
        theirs=_theirs(reference, source, place),
        before=before or (lambda: set_aside(place / "ours", place / "theirs")),
        target=target,
        pure=True,
    )


def _theirs(reference: Reference, source: Path, place: Path) -> list[bytes]:
    store = b"--digest-store=" + reference.seen(place / "theirs")
    return reference.command("mkcomposefs", store, source, place / "theirs.cfs")


def digest_only(reference: Reference, label: str, source: Path, target: Target | None) -> Job:
    """Return the job that prints the digest and writes nothing."""
    return Job(
        name=f"{label}, --print-digest-only",
        ours=[*BUILD, "--print-digest-only", str(source)],
        theirs=reference.command("mkcomposefs", "--print-digest-only", source),
        target=target,
        pure=True,
    )


@contextmanager
def loop_ext4(scratch: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """An ext4 of its own in a file, mounted, and what makes it anew; needs root."""
    image, place = scratch / "loop.img", scratch / "loop"
    place.mkdir()

    def take_off() -> None:
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()

    def renew() -> None:
        if image.exists():
            take_off()
        with image.open("wb") as file:
            file.truncate(_LOOP_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "200000", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)

    renew()
    try:
        yield place, renew
    finally:
        take_off()
        place.rmdir()
