"""``mkcfs build --from-file``: a dump text becomes an image."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.runner import Job
from tests.reference import Reference


def jobs(reference: Reference, label: str, source: Path, scratch: Path) -> Iterator[Job]:
    """Yield the job for the dump text of one directory."""
    image, dump = scratch / "dumped.cfs", scratch / "text.dump"
    reference.mkcomposefs(source, image)
    dump.write_bytes(reference.info("dump", image))
    yield Job(
        name=f"{label}, --from-file",
        ours=[sys.executable, "-m", "cfstools.cli", "build", "--from-file", str(dump), str(scratch / "ours.cfs")],
        theirs=reference.command("mkcomposefs", "--from-file", dump, scratch / "theirs.cfs"),
    )
