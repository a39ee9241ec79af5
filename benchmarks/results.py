"""The table of results: on the terminal, and in RESULTS.md, where rows that were not measured again stay."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.runner import Figure, Limit, Measured, Result, Target, median

COLUMNS = (
    ("job", 46),
    ("ours s", 8),
    ("theirs s", 8),
    ("faster", 7),
    ("first stop", 10),
    ("goal", 6),
    ("met", 10),
    ("pure s", 8),
    ("pure faster", 11),
    ("CPU s", 7),
    ("theirs", 7),
    ("MiB", 6),
    ("theirs", 6),
    ("disk MiB", 8),
    ("theirs", 6),
    ("runs", 4),
    ("date", 10),
)
COUNTED = (("what", 60), ("figure", 8), ("at most", 8), ("unit", 4), ("met", 3), ("date", 10))

METHODS = ("kernel", "overlay", "fuse", "fuse unchecked", "fuse-overlayfs", "erofsfuse", "squashfuse")
"""What is compared in the table of mounts."""
MOUNTED = (
    ("mounted", 46),
    *((f"{name} s", 20) for name in METHODS),
    ("at most", 40),
    ("met", 14),
    ("by", 4),
    ("turns", 5),
    ("load", 4),
    ("date", 10),
)
LAZILY = (
    ("lazily", 72),
    ("s", 6),
    ("other s", 7),
    ("ratio", 6),
    ("at most", 7),
    ("met", 3),
    ("turns", 5),
    ("load", 4),
    ("date", 10),
)
_FASTER_THAN = ("fuse-overlayfs", "erofsfuse")

_BUSY = 2  # above this load, by which the programs that are measured add one, times say little
_QUIET = 0.5  # above this load something else takes part of a CPU

_EXPLANATION = """\
`faster` is their median wall time divided by ours (above 1: we are faster), page cache warm, both sides run in
turns in one go on the same input; `met` is the target that was reached. `pure` is ours without the native
functions. `MiB` is the largest memory of a process, `disk` what the command had written when it ended. Stores are
made durable by both sides in their own way. The other side is `mkcomposefs` or `composefs-info` unless the row
names another; it runs inside a Debian root, which takes the few milliseconds named above. Rows are measured by
`make bench`; a run with `ARGS="--only TEXT"` replaces the rows it measures and leaves the others as they are. The
machine named above is that of the last run: rows of other days may be of another one, whose seconds are others."""


_COUNTED_EXPLANATION = """\
What is counted, from outside: requests in the log of the registry, bytes where they pass, with the heads of requests
and answers. The images are those of `tools/debian-root updates`: a minimal Debian 12, the same with the six smallest
updates of the security archive, and with all. A pull may receive 1.25 times the bytes that it stores, and the metadata
layer."""


_MOUNTED_EXPLANATION = """\
Mounted trees, median seconds and in brackets the multiples of the kernel mount: of the time, and of the work of
processors in programs and servers (of the kernel mount itself these seconds). *kernel* is `mkcfs mount` as root,
*overlay* `mkcfs run --method overlay` and *fuse* `mkcfs mount --method fuse` as an ordinary user, *unchecked* the same
with `--check off`. The others are mounted by root: fuse-overlayfs on the tree itself, erofsfuse an EROFS without
compression, squashfuse (`squashfuse_ll`) a squashfs with zstd. Every method has its turn before the next turn begins.
*First* is the first time below a fresh mount while objects and images are in the page cache, *again* is once more. A
program is `true` with the loader and the libraries of the image; the time of the first one counts from the start of the
mount. `at most` are the multiples that ours may take; *before others*: faster than fuse-overlayfs and erofsfuse. They
are compared with the time, or with the work (`by`) if other programs ran beside it: `load` is that of the machine when
the row was measured."""

_LAZILY_EXPLANATION = """\
What a user waits for who has nothing of an image but its file, when each answer of the place with its objects takes as
long as the row says. `mkcfs run --lazy` mounts it at once; an eager pull fetches everything before the mount. *work*
reads what a container that starts reads (lists of packages, interpreters, many small files), *tar* everything."""


class Took(NamedTuple):
    """How long something took, and how long processors worked for it, in seconds."""

    wall: float
    work: float


class Machine(NamedTuple):
    """Where it was measured."""

    processor: str
    cpus: int
    kernel: str
    versions: str
    overhead: float
    load: float


def _aim(target: Target | Limit | None, at: int) -> str:
    """Return a target as text: so many times faster, or so many milliseconds."""
    if target is None:
        return ""
    return f"{target[at]:g}×" if isinstance(target, Target) else f"{target[at] * 1000:g} ms"


def _met(target: Target | Limit | None, ours: Measured, theirs: Measured | None) -> str:
    """Return which of its targets a job reaches."""
    if isinstance(target, Limit):
        reached = [ours.wall <= limit for limit in target]
    elif target is not None and theirs is not None:
        reached = [theirs.wall / ours.wall >= factor for factor in target]
    else:
        return ""
    return "goal" if reached[1] else "first stop" if reached[0] else "no"


def cells(result: Result, date: str) -> list[str]:
    """Return the row of a result, one text for each column."""
    ours = median(result.ours)
    theirs = median(result.theirs) if result.theirs else None
    pure = median(result.pure) if result.pure else None
    target = result.job.target
    return [
        result.job.name,
        f"{ours.wall:.2f}",
        f"{theirs.wall:.2f}" if theirs else "",
        f"{theirs.wall / ours.wall:.2f}×" if theirs else "",
        _aim(target, 0),
        _aim(target, 1),
        _met(target, ours, theirs),
        f"{pure.wall:.2f}" if pure else "",
        f"{theirs.wall / pure.wall:.2f}×" if theirs and pure else "",
        f"{ours.cpu:.2f}",
        f"{theirs.cpu:.2f}" if theirs else "",
        f"{ours.peak / 2**20:.0f}",
        f"{theirs.peak / 2**20:.0f}" if theirs else "",
        f"{ours.written / 2**20:.0f}",
        f"{theirs.written / 2**20:.0f}" if theirs else "",
        str(len(result.ours)),
        date,
    ]


def counted(name: str, figure: Figure, date: str) -> list[str]:
    """Return the row of something that was counted."""
    return [
        name,
        _number(figure.value),
        "" if figure.limit is None else _number(figure.limit),
        figure.unit,
        "" if figure.limit is None else "yes" if figure.value <= figure.limit else "no",
        date,
    ]


def _number(value: float) -> str:
    return f"{value:.0f}"


def mounted(name: str, took: Mapping[str, Took], *, limits: Mapping[str, float], peers: bool, turns: int) -> list[str]:
    """Return the row of what each method took; *peers* if the checked FUSE is to be faster than that of others.

    Limits are compared with how long it took, or with the work of processors where other programs ran beside it.
    """
    kernel = took["kernel"]
    busy = os.getloadavg()[0] > _BUSY
    texts = [f"{took[one].wall:.3f} ({_times(took[one], kernel)})" if one in took else "" for one in METHODS]
    texts[0] = f"{kernel.wall:.3f} ({kernel.work:.3f})"
    compared = {one: found.work if busy else found.wall for one, found in took.items()}
    aims = [f"{method} {limit:g}×" for method, limit in limits.items()]
    missed = [method for method, limit in limits.items() if compared.get(method, 0) > limit * compared["kernel"]]
    if peers:
        aims.append("fuse before others")
        if any(compared.get("fuse", 0) >= compared[one] for one in _FASTER_THAN if one in compared):
            missed.append("before others")
    untried = [method for method in limits if method not in took]
    met = "" if not aims or untried else f"no: {', '.join(missed)}" if missed else "yes"
    return [
        name,
        *texts,
        ", ".join(aims),
        met,
        "work" if busy and aims else "time" if aims else "",
        str(turns),
        *_when(),
    ]


def _times(took: Took, kernel: Took) -> str:
    work = f"{took.work / kernel.work:.2f}" if kernel.work else "–"
    return f"{took.wall / kernel.wall:.2f}×, {work}×"


def lazily(
    name: str, ours: float, other: float | None = None, *, at_most: float | None = None, turns: int
) -> list[str]:
    """Return the row of a lazy mount, beside what it is compared with; the limit is a multiple of that, or seconds."""
    value = ours if other is None else ours / other
    unit = " s" if other is None else "×"
    return [
        name,
        f"{ours:.2f}",
        "" if other is None else f"{other:.2f}",
        "" if other is None else f"{value:.2f}×",
        "" if at_most is None else f"{at_most:g}{unit}",
        "" if at_most is None else "yes" if value <= at_most else "no",
        str(turns),
        *_when(),
    ]


def _when() -> tuple[str, str]:
    return f"{os.getloadavg()[0]:.1f}", dt.datetime.now(tz=dt.UTC).date().isoformat()


class _Table(NamedTuple):
    """One of the tables of RESULTS.md; rows belong to the one that has as many columns."""

    columns: Sequence[tuple[str, int]]
    explanation: str


_TABLES = (
    _Table(COLUMNS, _EXPLANATION),
    _Table(COUNTED, _COUNTED_EXPLANATION),
    _Table(MOUNTED, _MOUNTED_EXPLANATION),
    _Table(LAZILY, _LAZILY_EXPLANATION),
)


def _columns(row: Sequence[str]) -> Sequence[tuple[str, int]]:
    return next(table.columns for table in _TABLES if len(table.columns) == len(row))


def line(row: Sequence[str]) -> str:
    """Return a row as it stands on the terminal."""
    texts = zip(row, _columns(row), strict=True)
    return "  ".join(text.ljust(size) if not at else text.rjust(size) for at, (text, (_, size)) in enumerate(texts))


def header() -> str:
    """Return the head of the table on the terminal."""
    return line([name for name, _ in COLUMNS])


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the rows of a RESULTS.md by their first cell; what is no row of its tables is passed over."""
    found = {}
    heads = [[name for name, _ in table.columns] for table in _TABLES]
    for written in text.splitlines():
        row = [cell.strip() for cell in written.strip().removeprefix("|").removesuffix("|").split("|")]
        known = written.startswith("| ") and len(row) in map(len, heads)
        if known and row not in heads and not set(row[0]) <= {"-"}:
            found[row[0]] = row
    return found


def document(machine: Machine, rows: Mapping[str, list[str]]) -> str:
    """Return RESULTS.md."""
    head = [
        "# Results",
        "",
        f"Written by `make bench` on {machine.cpus} CPUs ({machine.processor}), Linux {machine.kernel};",
        f"{machine.versions}.",
        f"Entering the reference's root takes {machine.overhead * 1000:.0f} ms.",
        f"The load of the machine was {machine.load:.1f} when the last run began: "
        + ("other programs ran beside it." if machine.load > _QUIET else "it had little else to do."),
    ]
    for columns, explanation in _TABLES:
        written = [row for row in rows.values() if _columns(row) is columns]
        if written or columns is COLUMNS:
            head += ["", explanation, "", *_rows(columns, written)]
    return "\n".join(head) + "\n"


def _rows(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---" if number == 0 else "---:" for number in range(len(columns))]
    return ["| " + " | ".join(row) + " |" for row in ([name for name, _ in columns], rule, *rows)]
