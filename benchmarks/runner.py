"""Runs two commands in turns and keeps what each run took.

The machine may be shared, so what is to be trusted is the ratio: both commands are run once to warm the page
cache, then A B A B …, and each ratio is that of two medians.
"""

from __future__ import annotations

import marshal
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
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


class Figure(NamedTuple):
    """What was counted or measured, in a unit, and what it may be at most."""

    value: float
    unit: str
    limit: float | None = None


class Count(NamedTuple):
    """Something that is not compared but counted: requests, bytes, memory."""

    name: str
    measure: Callable[[], Figure]


Row = list[str]


class Rows(NamedTuple):
    """Several rows that are measured together; ``measure`` gets the number of turns."""

    name: str
    measure: Callable[[int], Iterable[Row]]


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


@cache
def _spawner() -> subprocess.Popen[bytes]:
    """The process that starts commands; it ends with this one."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("spawner.py"))]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run_once(command: Command, extra: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end, with *extra* in its environment and its output thrown away."""
    environment = {**os.environ, **(extra or {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed command is compiled
    words = [os.fsencode(word) for word in command]
    spawner = _spawner()
    assert spawner.stdin is not None
    assert spawner.stdout is not None
    marshal.dump((words, {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}), spawner.stdin)
    spawner.stdin.flush()
    status, wall, cpu, peak, written = marshal.load(spawner.stdout)
    if status != 0:
        raise RuntimeError(f"{b' '.join(words).decode()} failed")
    return Measured(wall, cpu, peak * 1024, written * 512)


def build_image(source: Path | str, image: Path, *options: str) -> None:
    """Build an image that jobs read."""
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
