"""``mkcfs build`` of a directory: into an empty store, into a full one, and for the digest alone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.runner import Job
from tests.reference import Reference

MKCFS = [sys.executable, "-m", "cfstools.cli", "build", "--no-hardlinks"]


def jobs(reference: Reference, label: str, source: Path, scratch: Path) -> Iterator[Job]:
    """Yield the jobs for one directory."""
    ours, theirs = scratch / "ours", scratch / "theirs"

    def empty_stores() -> None:
        shutil.rmtree(ours, ignore_errors=True)
        shutil.rmtree(theirs, ignore_errors=True)
        os.sync()

    our_build = [*MKCFS, str(source), str(scratch / "ours.cfs"), "--store", str(ours)]
    store = b"--digest-store=" + reference.seen(theirs)
    their_build = reference.command("mkcomposefs", store, source, scratch / "theirs.cfs")
    yield Job(name=f"{label}, cold store", ours=our_build, theirs=their_build, before=empty_stores)
    yield Job(name=f"{label}, warm store", ours=our_build, theirs=their_build)
    yield digest_only(reference, label, source)


def digest_only(reference: Reference, label: str, source: Path) -> Job:
    """Return the job that prints the digest and writes nothing."""
    return Job(
        name=f"{label}, --print-digest-only",
        ours=[*MKCFS, "--print-digest-only", str(source)],
        theirs=reference.command("mkcomposefs", "--print-digest-only", source),
    )
