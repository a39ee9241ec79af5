"""The benchmarks measure what they run and keep the rows of earlier runs."""

from __future__ import annotations

import sys

import pytest

from benchmarks import results
from benchmarks.results import Machine
from benchmarks.runner import Job, Limit, Measured, Result, Target, run_job, run_once

MACHINE = Machine(processor="P", cpus=2, kernel="6", versions="Python 3, mkcomposefs 1", overhead=0.0071, load=0.1)
NOTHING = [sys.executable, "-S", "-c", "pass"]
LONGER = [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]


def test_both_sides_run_in_turns() -> None:
    turns: list[int] = []
    made: list[int] = []
    job = Job(
        name="a",
        ours=NOTHING,
        theirs=LONGER,
        before=lambda: turns.append(1),
        make=lambda: made.append(len(turns)),
        target=Target(1.5, 2),
        pure=True,
    )
    result = run_job(job, 3)
    assert (len(result.ours), len(result.theirs), len(result.pure), len(turns)) == (3, 3, 2, 10)
    assert made == [0]
    row = results.cells(result, "2000-01-01")
    assert len(row) == len(results.COLUMNS)
    assert float(row[3].removesuffix("×")) > 1
    assert row[4:7] == ["1.5×", "2×", "goal"]
    assert len(results.line(row).split()) == len(row)


def _took(seconds: float) -> Measured:
    return Measured(seconds, seconds, 0, 0)


@pytest.mark.parametrize(
    ("target", "ours", "texts"),
    [
        (Target(2, 4), 1.0, ["2×", "4×", "goal"]),
        (Target(2, 4), 1.5, ["2×", "4×", "first stop"]),
        (Target(2, 4), 2.5, ["2×", "4×", "no"]),
        (Limit(0.1, 0.06), 0.05, ["100 ms", "60 ms", "goal"]),
        (Limit(0.1, 0.06), 0.08, ["100 ms", "60 ms", "first stop"]),
        (Limit(0.1, 0.06), 0.2, ["100 ms", "60 ms", "no"]),
        (None, 1.0, ["", "", ""]),
    ],
)
def test_a_row_says_which_target_is_met(target: Target | Limit | None, ours: float, texts: list[str]) -> None:
    job = Job(name="a", ours=NOTHING, theirs=NOTHING, target=target)
    assert results.cells(Result(job=job, ours=[_took(ours)], theirs=[_took(4.0)]), "2000-01-01")[4:7] == texts


def test_a_busy_machine_is_named() -> None:
    busy = "other programs ran beside it"
    assert busy not in results.document(MACHINE, {})
    assert busy in results.document(MACHINE._replace(load=2.0), {})


def test_a_command_that_fails_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        run_once([sys.executable, "-c", "raise SystemExit(1)"])


def test_a_run_of_some_rows_keeps_the_others() -> None:
    first = results.cells(run_job(Job(name="one", ours=NOTHING), 1), "2000-01-01")
    second = results.cells(run_job(Job(name="two", ours=NOTHING, theirs=NOTHING), 1), "2000-01-02")
    text = results.document(MACHINE, {"one": first, "two": second})
    rows = results.rows_of(text)
    assert rows == {"one": first, "two": second}
    rows["two"] = [*second[:-1], "2000-01-03"]
    assert results.rows_of(results.document(MACHINE, rows))["one"] == first
    assert "7 ms" in text
    assert results.rows_of("# something else\n| a | b |\n") == {}
