"""The benchmarks measure what they run and keep the rows of earlier runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import composefs_rs, mounts, results, starts
from benchmarks.results import Machine, Took
from benchmarks.runner import Figure, Job, Limit, Measured, Result, Target, run_job, run_once

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
    assert min(run.wall for run in result.theirs) >= 0.3
    ours, theirs = (statistics.median(run.wall for run in side) for side in (result.ours, result.theirs))
    assert float(row[3].removesuffix("×")) == pytest.approx(theirs / ours, abs=0.01)
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


def test_the_memory_of_who_measures_does_not_count() -> None:
    held = bytearray(b"x") * (300 << 20)
    assert run_once(NOTHING).peak < 100 << 20
    assert run_once([*NOTHING[:-1], "x = bytearray(b'x') * (200 << 20)"]).peak > 200 << 20
    del held


@pytest.mark.parametrize(
    ("figure", "texts"),
    [
        (Figure(20, "", 20), ["20", "20", "", "yes"]),
        (Figure(2000.4, "kB", 2000), ["2000", "2000", "kB", "no"]),
        (Figure(13, ""), ["13", "", "", ""]),
    ],
)
def test_what_is_counted_is_compared_with_its_limit(figure: Figure, texts: list[str]) -> None:
    row = results.counted("a", figure, "2000-01-01")
    assert row == ["a", *texts, "2000-01-01"]
    assert results.line(row).startswith("a ")


def test_all_tables_are_kept() -> None:
    timed = results.cells(run_job(Job(name="one", ours=NOTHING), 1), "2000-01-01")
    count = results.counted("two", Figure(14, "", 20), "2000-01-02")
    mounted = results.mounted(
        "three", {"kernel": Took(1.0, 1.0), "fuse": Took(2.0, 3.0)}, limits={}, peers=False, turns=3
    )
    lazily = results.lazily("four", 1.0, 4.0, at_most=0.25, turns=3)
    rows = {row[0]: row for row in (lazily, mounted, count, timed)}
    text = results.document(MACHINE, rows)
    assert results.rows_of(text) == rows
    assert (places := [text.index(f"| {name} |") for name in ("one", "two", "three", "four")]) == sorted(places)


@pytest.mark.parametrize(
    ("seconds", "met"),
    [
        ({"overlay": 1.2, "fuse": 2.9}, "yes"),
        ({"overlay": 1.3, "fuse": 2.9}, "no: overlay"),
        ({"overlay": 1.3, "fuse": 3.1, "erofsfuse": 3.0}, "no: overlay, fuse, before others"),
        ({"overlay": 1.0, "fuse": 2.0, "erofsfuse": 3.0, "fuse-overlayfs": 1.9}, "no: before others"),
        ({"overlay": 1.0, "fuse": 2.0, "erofsfuse": 3.0, "fuse-overlayfs": 2.1}, "yes"),
        ({"overlay": 1.0}, ""),
    ],
)
@pytest.mark.parametrize("busy", [False, True])
def test_mounts_are_compared_with_that_of_the_kernel_and_of_others(
    seconds: dict[str, float], met: str, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time, or by the work of processors where the time says little."""
    monkeypatch.setattr("os.getloadavg", lambda: (9.0 if busy else 1.0, 0, 0))
    took = {method: Took(9, value) if busy else Took(value, 9) for method, value in {"kernel": 1.0, **seconds}.items()}
    row = results.mounted("a", took, limits={"overlay": 1.2, "fuse": 3.0}, peers=True, turns=3)
    multiples = f"1.00×, {seconds['overlay']:.2f}×" if busy else f"{seconds['overlay']:.2f}×, 1.00×"
    assert multiples in row[results.METHODS.index("overlay") + 1]
    assert row[-5:-3] == [met, "work" if busy else "time"]


@pytest.mark.parametrize(
    ("ours", "other", "at_most", "texts"),
    [
        (0.4, None, 0.5, ["", "", "0.5 s", "yes"]),
        (0.6, None, 0.5, ["", "", "0.5 s", "no"]),
        (0.5, 2.0, 0.25, ["2.00", "0.25×", "0.25×", "yes"]),
        (0.6, 2.0, 0.25, ["2.00", "0.30×", "0.25×", "no"]),
        (0.6, 2.0, None, ["2.00", "0.30×", "", ""]),
    ],
)
def test_lazy_mounts_are_compared_or_have_a_limit_in_seconds(
    ours: float, other: float | None, at_most: float | None, texts: list[str]
) -> None:
    assert results.lazily("a", ours, other, at_most=at_most, turns=3)[2:6] == texts


def test_what_is_done_below_a_mount_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    begun = time.monotonic() - 10_000  # which none of these count, however slow the machine is
    command = mounts.acting(begun, tmp_path, ["find", "tar", "grep"])
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(found) == 3
    assert all(0 < seconds < 10_000 and work < 10_000 for seconds, work in found)


def test_modules_are_counted(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("")
    empty = starts.count([str(program)])
    program.write_text("import colorsys, this_is_one\n")
    (tmp_path / "this_is_one.py").write_text("raise SystemExit(0)\n")
    assert starts.count([str(program)]) == empty + 2


@pytest.mark.parametrize("number", range(len(starts._VERBS)))
def test_no_start_has_become_longer(number: int, tmp_path: Path) -> None:
    figure = list(starts.counts(tmp_path))[number].measure()
    assert figure.limit is not None
    assert 30 < figure.value <= figure.limit * 1.15  # another version of Python has other modules of its own


@pytest.mark.parametrize("tool", [[], ["/tools/cfsctl", "--hash", "sha256"]])
def test_a_row_says_if_the_other_tool_is_not_to_be_had(tool: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composefs_rs, "cfsctl", lambda: tool)
    stored = composefs_rs.job("a", NOTHING, ["create-image", "d"], Target(1, 2), repository=Path("/r"))
    synced = composefs_rs.job("a", NOTHING, ["create-image", "d"], None, repository=Path("/r r"), synced=False)
    alone = composefs_rs.job("a", NOTHING, ["compute-id", "d"], None)
    if tool:
        command = "/tools/cfsctl --hash sha256 --insecure --repo '/r r' create-image d"
        assert synced.theirs == ["sh", "-ec", f"{command}; exec sync -f '/r r'"]
        assert stored.name == "a / composefs-rs"
        assert stored.theirs == [*tool, "--insecure", "--repo", "/r", "create-image", "d"]
        assert alone.theirs == [*tool, "--no-repo", "compute-id", "d"]
    else:
        assert stored.name == "a / composefs-rs, which is not to be had here"
        assert (stored.theirs, stored.target, synced.theirs, alone.theirs) == (None, None, None, None)
