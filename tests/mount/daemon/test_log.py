"""What a daemon says, and how often."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cfstools.errors import InputError
from cfstools.mount.daemon.log import LINES_A_SECOND, Log, log_to_descriptor, log_to_file, log_to_system


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ten_lines_a_second() -> None:
    said: list[str] = []
    clock = Clock()
    log = Log(said.append, clock=clock)
    for number in range(25):
        log.say(f"line {number}")
    assert said == [f"line {number}" for number in range(LINES_A_SECOND)]
    clock.now += 0.99
    log.say("too soon")
    assert len(said) == LINES_A_SECOND
    clock.now += 0.01
    log.say("next second")
    assert said[LINES_A_SECOND:] == ["16 more lines are left out", "next second"]
    for number in range(LINES_A_SECOND):
        log.say(f"again {number}")
    log.close()
    assert said[-2:] == ["again 8", "1 more lines are left out"]
    log.close()
    assert said[-1] == "1 more lines are left out"


def test_lines_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in ("one\ntwo", "\x1b[31mred", "\udcff"):
        with log_to_file(bytes(path)) as log:
            log.say(text)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [r"one\ntwo", r"\x1b[31mred", r"\xff"]
    assert all(re.match(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ mkcfs\[{os.getpid()}\]: ", line) for line in lines)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_descriptor_stays_open() -> None:
    ours, theirs = os.pipe()
    with log_to_descriptor(theirs) as log:
        log.say("text")
    os.write(theirs, b".")
    assert os.read(ours, 100) == b"mkcfs: text\n."
    os.close(ours)
    log.say("nobody reads this any more")
    os.close(theirs)


def test_a_log_is_opened_with_care(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("fifo", "missing/log", "."):
        with pytest.raises(InputError, match="cannot open the log"):
            log_to_file(bytes(tmp_path / name))
    with log_to_file(bytes(tmp_path / "link")) as log:
        log.say("text")
    assert (tmp_path / "nowhere").exists()


def test_the_log_of_the_system_may_be_missing() -> None:
    with log_to_system() as log:
        log.say("a line of the tests of cfstools")
