"""Runs two commands in turns and keeps what each run took.

The machine may be shared, so what is to be trusted is the ratio: both commands are run once to warm the page
cache, then A B A B …, and each ratio is that of two medians.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Command = Sequence[str | bytes]

# As users start it; sources that are linked into the environment add nothing to that.
MKCFS = [str(Path(sys.executable).with_name("mkcfs"))]
PURE = {"MKCFS_NATIVE": "pure"}
_PURE_TURNS = 2


class Measured(NamedTuple):
    """What one run of a command took: seconds, bytes of memory at its peak, bytes written to disks."""

    wall: float
    cpu: float
    peak: float
    written: float


class Target(NamedTuple):
    """How many times faster than the other side a job is to be: at first, and in the end."""

    first: float
    goal: float


class Limit(NamedTuple):
    """How many seconds a job may take: at first, and in the end."""

    first: float
    goal: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """Two command lines that do the same; ``before`` prepares each run and ``make`` all runs, and neither is measured.

    Without *theirs* only times are shown. *pure* measures ours without native functions as well.
    """

    name: str
    ours: Command
    theirs: Command | None = None
    before: Callable[[], None] = lambda: None
    make: Callable[[], None] = lambda: None
    target: Target | Limit | None = None
    pure: bool = False


@dataclass(kw_only=True)
class Result:
    """The runs of all sides."""

    job: Job
    ours: list[Measured] = field(default_factory=list)
    theirs: list[Measured] = field(default_factory=list)
    pure: list[Measured] = field(default_factory=list)


def set_aside(*paths: Path) -> None:
    """Rename what earlier runs left at *paths*; it is removed with the scratch directory.

    Deleting it would slow the next run down: for a minute ext4 looks at every inode that was deleted lately before it
    gives out another.
    """
    for path in paths:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{time.monotonic_ns()}"))
    os.sync()


def run_once(command: Command, extra: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end, with *extra* in its environment and its output thrown away."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    environment = {**os.environ, **(extra or {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed command is compiled
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], list(command), environment, file_actions=quiet)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{b' '.join(map(os.fsencode, command)).decode()} failed")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, usage.ru_oublock * 512)


def build_image(source: Path | str, image: Path, *options: str) -> None:
    """Build an image that jobs read.

    In a process of its own: a command's peak memory counts from that of the process that starts it.
    """
    run_once([*MKCFS, "build", *options, str(source), str(image)])


def run_job(job: Job, repeat: int) -> Result:
    """Run all sides in turns, *repeat* times each (the pure one less often) after one run that is not counted."""
    result = Result(job=job)
    sides: list[tuple[Command, list[Measured], Mapping[str, str] | None]] = [(job.ours, result.ours, None)]
    if job.theirs is not None:
        sides.append((job.theirs, result.theirs, None))
    if job.pure:
        sides.append((job.ours, result.pure, PURE))
    job.make()
    for turn in range(repeat + 1):
        for command, runs, extra in sides:
            if runs is result.pure and not 0 < turn <= _PURE_TURNS:
                continue
            job.before()
            measured = run_once(command, extra)
            if turn > 0:
                runs.append(measured)
    return result


def median(runs: Iterable[Measured]) -> Measured:
    """Return the median of each quantity."""
    return Measured(*(statistics.median(column) for column in zip(*runs, strict=True)))
