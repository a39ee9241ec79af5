"""The README and docs/usage.md say what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.requirements import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
USAGE = (REPOSITORY / "docs/usage.md").read_text(encoding="utf-8")
RESULTS = (REPOSITORY / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
# What the README says, and the row of the results that has it.
SPEED = {
    r"into an empty store, on a loop-mounted ext4 \| (\S+) \|": "60000 small files, cold store on loop",
    r"into an empty store, on the machine's disk \| (\S+) \|": "60000 small files, cold store",
    r"a dump text of 500,000 entries to an image \| (\S+) \|": "500000 entries, --from-file",
    r"the digest of one file of 2 GiB \| (\S+) \|": "one file of 2048 MiB, --print-digest-only",
    r"A store that has the files already is (\S+) times as fast": "60000 small files, warm store, no cache",
    r"of which none changed \| (\S+) \|": "60000 small files, nothing changed",
    r"a gzip image of 500 MB is imported (\S+)\stimes": "gzip image of 500 MB, cold store / umoci + mkcomposefs",
}


def quick_start() -> list[str]:
    """The commands of the quick start that need neither root nor a program in the image."""
    section = USAGE.partition("## Quick start\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (mkcfs .*)$", section, re.MULTILINE)
    return [line for line in lines if not line.startswith(("mkcfs mount ", "mkcfs run "))]


def test_the_quick_start_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    Path("rootfs/etc").mkdir(parents=True)
    Path("rootfs/etc/hostname").write_text("host\n")
    Path("rootfs/large").write_bytes(b"x" * 5000)
    lines = quick_start()
    assert len(lines) > 10
    for line in lines:
        words, _, target = re.sub(r"\s+#.*", "", line).partition(" > ")
        done = mkcfs(*shlex.split(words)[1:])
        if target:
            Path(target).write_bytes(done.stdout)
    assert Path("again.cfs").read_bytes() == Path("image.cfs").read_bytes()
    assert Path("tree/etc/hostname").read_text() == "host\n"


def test_the_first_commands_work_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    Path("rootfs").mkdir()
    Path("rootfs/large").write_bytes(b"x" * 5000)
    lines = re.findall(r"^    (mkcfs .*)$", README.partition("\n## ")[0], re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        mkcfs(*shlex.split(line)[1:])


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 110


def test_every_document_is_listed() -> None:
    listed = set(re.findall(r"^- \[(docs/[^]]+)\]", README, re.MULTILINE))
    assert listed == {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}


def measured(job: str) -> list[str]:
    """The row of a job: its name, our seconds, theirs, how many times faster and more."""
    (row,) = re.findall(rf"^\| ({re.escape(job)} \|.*)$", RESULTS, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize(("claim", "job"), SPEED.items())
def test_no_more_speed_is_claimed_than_was_measured(claim: str, job: str) -> None:
    (said,) = re.findall(claim, README)
    rounding = 0.5 * 10.0 ** -len(said.partition(".")[2])
    assert float(said) <= float(measured(job)[3].rstrip("×")) + rounding


def test_the_start_takes_as_long_as_was_measured() -> None:
    (said,) = re.findall(r"(\d+) ms of each run", README)
    assert int(said) / 1000 == float(measured("--version")[1])
