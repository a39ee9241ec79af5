"""Measures all jobs, prints the table and writes it to benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import (
    build_directory,
    build_dump,
    build_oci,
    commands,
    composefs_rs,
    distribution,
    fetch_objects,
    import_stages,
    inputs,
    kernel,
    lazy,
    mounts,
    results,
    starts,
    store_care,
    verify,
    write_calls,
)
from benchmarks.build_directory import Targets
from benchmarks.runner import (
    Count,
    Figure,
    Job,
    Row,
    Rows,
    Target,
    build_image,
    median,
    run_job,
    run_once,
)
from tests.reference import Reference, RootUnavailable, debian_root

RESULTS = Path(__file__).with_name("RESULTS.md")
_MILLION, _FEWER = 1_000_000, 60_000
_MILLION_INODES = 2_100_000
_DEBIAN = Targets(cold=Target(5, 8), digest=Target(1.2, 2))
_SMALL = Targets(cold=Target(4, 6), warm=Target(1.7, 2.5), rebuild=Target(2.5, 5), digest=Target(1.6, 2.5))


def jobs(reference: Reference, scratch: Path, stack: ExitStack, *, quick: bool) -> Iterator[Job | Count | Rows]:
    """Yield every job; a quick run has fewer and smaller inputs. What is mounted is taken off by *stack*."""
    large = 2**28 if quick else 2**31
    files = 6_000 if quick else 60_000
    debian, small = inputs.debian(), inputs.small_files(files)
    yield build_directory.digest_only(
        reference, f"one file of {large // 2**20} MiB", inputs.large_file(large), Target(3.5, 4)
    )
    yield from kernel.jobs(1 if quick else 4)
    yield from build_directory.jobs(reference, "Debian root", debian, scratch, _DEBIAN)
    yield from build_directory.jobs(reference, f"{files} small files", small, scratch, _SMALL)
    yield from composefs_rs.directory_jobs("Debian root", debian, scratch)
    yield from composefs_rs.directory_jobs(f"{files} small files", small, scratch)
    for label, source in (("Debian root", debian), (f"{files} small files", small)):
        yield from write_calls.jobs(label, str(source), scratch, named=False, options=["--no-hardlinks"])
    loop, renew = stack.enter_context(build_directory.loop_ext4(scratch))
    name = f"{files} small files, cold store on loop"
    yield build_directory.cold(reference, name, small, loop, Target(12, 18), before=renew)
    yield build_directory.cold(reference, "Debian root, cold store on loop", debian, loop, _DEBIAN.cold, before=renew)
    size = 200_000_000 if quick else 500_000_000
    for label, verified in (
        ("Debian root", debian),
        (f"{files} small files", small),
        (f"image of {size // 1000**2} MB", f"oci-archive:{build_oci.image(size) / 'image.tar'}"),
        (f"one file of {large // 2**20} MiB", inputs.large_file(large)),
    ):
        yield from verify.jobs(label, verified, scratch)
    dump = build_dump.dump_of(reference, small, scratch)
    yield build_dump.job(reference, f"{files} small files", dump, scratch, Target(0.8, 1.2))
    entries = 50_000 if quick else 500_000
    yield build_dump.job(reference, f"{entries} entries", build_dump.large_dump(entries), scratch, Target(0.95, 1.5))
    yield from starts.counts(scratch)
    yield from commands.start(reference, "Debian root", debian, scratch)
    yield from store_care.jobs(reference, "Debian root", debian, scratch, store_care.DEBIAN)
    yield from store_care.jobs(reference, f"{files} small files", small, scratch, store_care.SMALL)
    yield from commands.jobs(reference, f"{files} small files", _image(scratch, small))
    yield from commands.text(_image(scratch, small), f"{files} small files")
    yield from build_oci.jobs(reference, scratch, size=size)
    yield from composefs_rs.oci_jobs(scratch, size=size)
    packed = f"gzip image of {size // 1000**2} MB"
    yield from write_calls.jobs(packed, f"oci:{build_oci.image(size) / 'layout'}", scratch, named=True)
    yield from import_stages.jobs(size)
    yield from fetch_objects.jobs("Debian root", debian, scratch, stack)
    yield from distribution.jobs(scratch, stack)
    yield from mounts.jobs(scratch, stack, files=files)
    yield from lazy.jobs(scratch, stack)


def million(reference: Reference, scratch: Path) -> Iterator[Job | Rows]:
    """Yield the jobs of the design size; the other side would wait for a million single syncs of a store."""
    if (free := os.statvfs(scratch).f_favail) < _MILLION_INODES:
        raise SystemExit(f"{scratch} has room for {free} more files, and a million with their objects take more")
    source = inputs.small_files(_MILLION)
    yield Rows("1000000 small files, cold store", partial(_cold_million, reference, scratch))
    yield build_directory.digest_only(reference, "1000000 small files", source, None)
    yield from commands.jobs(reference, "1000000 small files", _image(scratch, source), pure=False)


def _cold_million(reference: Reference, scratch: Path, repeat: int) -> Iterator[Row]:
    """Yield the row of the cold store, and what a file took compared with a store of fewer files in the same run."""
    today = _today()
    each = {}
    for files in (_FEWER, _MILLION):
        name = f"{files} small files, cold store"
        job = build_directory.cold(reference, name, inputs.small_files(files), scratch, None)
        result = run_job(replace(job, theirs=None, pure=False), repeat)
        each[files] = median(result.ours).wall / files
        if files == _MILLION:
            yield results.cells(result, today)
    ratio = Figure(100 * each[_MILLION] / each[_FEWER], "%", 115)
    yield results.counted(f"{_MILLION} small files, cold store: time for a file, by that of {_FEWER}", ratio, today)


def _image(scratch: Path, source: Path) -> Path:
    image = scratch / f"{source.name}.cfs"
    build_image(source, image)
    return image


def _machine(reference: Reference) -> results.Machine:
    load = os.getloadavg()[0]  # before this program adds to it
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return results.Machine(
        processor=found[1] if found else platform.machine(),
        cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        versions=f"Python {platform.python_version()} with {ssl.OPENSSL_VERSION}, "
        f"mkcomposefs {reference.version('composefs')} with OpenSSL {reference.version('libssl3*')}",
        overhead=median(run_once(reference.command("true")) for _ in range(10)).wall,
        load=load,
    )


def _today() -> str:
    return dt.datetime.now(tz=dt.UTC).date().isoformat()


def _rows(job: Job | Count | Rows, repeat: int, date: str) -> Iterator[list[str]]:
    match job:
        case Rows():
            yield from job.measure(repeat)
        case Count():
            yield results.counted(job.name, job.measure(), date)
        case Job():
            yield results.cells(run_job(job, repeat), date)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer turns")
    parser.add_argument("--repeat", type=int, help="turns of each side (default 5, quick 3)")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only jobs with this text in their name; repeatable"
    )
    parser.add_argument("--million", action="store_true", help="the jobs with a million files instead")
    options = parser.parse_args()
    repeat = options.repeat or (3 if options.quick else 5)
    try:
        reference = Reference(debian_root("reference"))
    except RootUnavailable as error:
        print(f"no reference to compare with: {error}")
        return 1
    machine = _machine(reference)
    print(f"{machine.versions}, {machine.cpus} CPUs, Linux {machine.kernel}\n{results.header()}")
    rows = results.rows_of(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    today = _today()
    with tempfile.TemporaryDirectory(prefix="cfstools-bench-") as scratch, ExitStack() as stack:
        place = Path(scratch)
        wanted: Iterator[Job | Count | Rows] = (
            million(reference, place) if options.million else jobs(reference, place, stack, quick=options.quick)
        )
        for job in wanted:
            if not options.only or any(text in job.name for text in options.only):
                for row in _rows(job, repeat, today):
                    rows[row[0]] = row
                    print(results.line(row), flush=True)
                    if not options.quick:
                        RESULTS.write_text(results.document(machine, rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
