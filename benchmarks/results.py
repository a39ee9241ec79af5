"""The table of results: on the terminal, and in RESULTS.md, where rows that were not measured again stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from benchmarks.runner import Limit, Measured, Result, Target, median

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
_RULE = "| " + " | ".join("---" if number == 0 else "---:" for number in range(len(COLUMNS))) + " |"

_QUIET = 0.5  # above this load something else takes part of a CPU

_EXPLANATION = """\
`faster` is their median wall time divided by ours (above 1: we are faster), page cache warm, both sides run in
turns in one go on the same input; `met` is the target that was reached. `pure` is ours without the native
functions. `MiB` is the largest memory of a process, `disk` what the command had written when it ended. Stores are
made durable by both sides in their own way. The other side is `mkcomposefs` or `composefs-info` unless the row
names another; it runs inside a Debian root, which takes the few milliseconds named above. Rows are measured by
`make bench`; a run with `ARGS="--only TEXT"` replaces the rows it measures and leaves the others as they are."""


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


def line(row: Iterable[str]) -> str:
    """Return a row as it stands on the terminal."""
    texts = zip(row, COLUMNS, strict=True)
    return "  ".join(text.ljust(size) if not at else text.rjust(size) for at, (text, (_, size)) in enumerate(texts))


def header() -> str:
    """Return the head of the table on the terminal."""
    return line(name for name, _ in COLUMNS)


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the rows of a RESULTS.md by their first cell; what is no row of this table is passed over."""
    found = {}
    for written in text.splitlines():
        row = [cell.strip() for cell in written.strip().removeprefix("|").removesuffix("|").split("|")]
        if written.startswith("| ") and len(row) == len(COLUMNS) and not set(row[1]) <= {"-", ":"} and row[0] != "job":
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
        "",
        _EXPLANATION,
        "",
    ]
    table = ["| " + " | ".join(row) + " |" for row in ([name for name, _ in COLUMNS], *rows.values())]
    return "\n".join([*head, table[0], _RULE, *table[1:]]) + "\n"
