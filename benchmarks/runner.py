"""Runs two commands in turns and compares their medians.

The machine may be shared, so what is to be trusted is the ratio: both commands are run once to warm the page
cache, then A B A B …, and each ratio is that of two medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Measured(NamedTuple):
    """What one run of a command took: seconds, bytes of memory at its peak, bytes written to disks."""

    wall: float
    cpu: float
    peak: float
    written: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """Two command lines that do the same; ``before`` prepares each run and is not measured."""

    name: str
    ours: Sequence[str | bytes]
    theirs: Sequence[str | bytes]
    before: Callable[[], None] = lambda: None


@dataclass(kw_only=True)
class Result:
    """The runs of both sides."""

    job: Job
    ours: list[Measured] = field(default_factory=list)
    theirs: list[Measured] = field(default_factory=list)


def run_once(command: Sequence[str | bytes]) -> Measured:
    """Run a command to its end with its output thrown away."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], list(command), os.environ, file_actions=quiet)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{b' '.join(map(os.fsencode, command)).decode()} failed")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, usage.ru_oublock * 512)


def run_job(job: Job, repeat: int) -> Result:
    """Run both sides in turns, *repeat* times each after one run that is not counted."""
    result = Result(job=job)
    for turn in range(repeat + 1):
        for command, runs in ((job.ours, result.ours), (job.theirs, result.theirs)):
            job.before()
            measured = run_once(command)
            if turn > 0:
                runs.append(measured)
    return result


def median(runs: Iterable[Measured]) -> Measured:
    """Return the median of each quantity."""
    return Measured(*(statistics.median(column) for column in zip(*runs, strict=True)))


HEADER = (
    f"{'job':<38} {'ours s':>8} {'theirs':>8} {'ratio':>6}   {'CPU ours':>8} {'theirs':>8} {'ratio':>6}"
    f"   {'peak MiB':>8} {'theirs':>8}   {'disk MiB':>8} {'theirs':>8}"
)


def row(result: Result) -> str:
    """Return the table row of a result: times with their ratios (below 1: faster than the reference), memory, disk."""
    ours, theirs = median(result.ours), median(result.theirs)
    times = "   ".join(f"{a:8.2f} {b:8.2f} {a / b:6.2f}" for a, b in ((ours.wall, theirs.wall), (ours.cpu, theirs.cpu)))
    spaces = "   ".join(
        f"{a / 2**20:8.0f} {b / 2**20:8.0f}" for a, b in ((ours.peak, theirs.peak), (ours.written, theirs.written))
    )
    return f"{result.job.name:<38} {times}   {spaces}"
