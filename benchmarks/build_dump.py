"""``mkcfs build --from-file``: a dump text becomes an image."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.inputs import cached
from benchmarks.runner import MKCFS, Job, Target
from tests.reference import Reference

_IN_A_DIRECTORY = 100


def job(reference: Reference, label: str, dump: Path, scratch: Path, target: Target | None) -> Job:
    """Return the job for one dump text."""
    return Job(
        name=f"{label}, --from-file",
        ours=[*MKCFS, "build", "--from-file", str(dump), str(scratch / "ours.cfs")],
        theirs=reference.command("mkcomposefs", "--from-file", dump, scratch / "theirs.cfs"),
        target=target,
        pure=True,
    )


def dump_of(reference: Reference, source: Path, scratch: Path) -> Path:
    """Return the dump text of a directory."""
    image, dump = scratch / "dumped.cfs", scratch / f"{source.name}.dump"
    reference.mkcomposefs(source, image)
    dump.write_bytes(reference.info("dump", image))
    return dump


def large_dump(entries: int) -> Path:
    """Return a dump text of so many entries: directories of a hundred files, some with attributes, all different."""

    def make(place: Path) -> None:
        source = random.Random(entries)
        with (place / "text.dump").open("w", encoding="ascii") as file:
            file.write("/ 0 40755 2 0 0 0 1700000000.0 - - -\n")
            for number in range(entries):
                directory = f"/d{number // _IN_A_DIRECTORY:06}"
                if number % _IN_A_DIRECTORY == 0:
                    file.write(f"{directory} 0 40755 2 0 0 0 1700000000.0 - - -\n")
                    continue
                digest = source.randbytes(32).hex()
                xattr = f" user.number={number % 50}" if number % 10 == 0 else ""
                file.write(
                    f"{directory}/file-{number:07} {source.randint(65, 10**6)} 100644 1 0 0 0 "
                    f"{1_700_000_000 + number % 1000}.0 {digest[:2]}/{digest[2:]} - {digest}{xattr}\n"
                )

    return cached(f"dump-{entries}", make) / "text.dump"
