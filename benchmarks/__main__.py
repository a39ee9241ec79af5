"""Measures all jobs and prints the table."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import build_directory, build_dump, build_oci, inputs, verify
from benchmarks.runner import HEADER, Job, median, row, run_job, run_once
from tests.reference import Reference, RootUnavailable, debian_root


def jobs(reference: Reference, scratch: Path, *, quick: bool) -> Iterator[Job]:
    """Yield every job; a quick run has fewer and smaller inputs."""
    files = 6_000 if quick else 60_000
    for label, source in (("Debian root", inputs.debian()), (f"{files} small files", inputs.small_files(files))):
        yield from build_directory.jobs(reference, label, source, scratch)
        yield from build_dump.jobs(reference, label, source, scratch)
        yield from verify.jobs(label, source, scratch)
    large = 2**28 if quick else 2**31
    label = f"one file of {large // 2**20} MiB"
    yield build_directory.digest_only(reference, label, inputs.large_file(large))
    yield from build_oci.jobs(reference, scratch, size=200_000_000 if quick else 500_000_000)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer turns")
    parser.add_argument("--repeat", type=int, help="turns of each side (default 5, quick 3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this text in their name")
    options = parser.parse_args()
    repeat = options.repeat or (3 if options.quick else 5)
    try:
        reference = Reference(debian_root("reference"))
    except RootUnavailable as error:
        print(f"no reference to compare with: {error}")
        return 1
    overhead = median(run_once(reference.command("true")) for _ in range(10)).wall
    print(f"ours against mkcomposefs {reference.version('composefs')}, {os.cpu_count()} CPUs, {platform.release()}")
    print(f"{repeat} turns each, medians; ratio below 1: faster than the reference")
    print(f"the reference's times include {overhead * 1000:.0f} ms for entering its root\n\n{HEADER}")
    with tempfile.TemporaryDirectory(prefix="cfstools-bench-") as scratch:
        for job in jobs(reference, Path(scratch), quick=options.quick):
            if options.only in job.name:
                print(row(run_job(job, repeat)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
