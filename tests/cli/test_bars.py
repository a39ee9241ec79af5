"""Progress bars as they are drawn."""

from __future__ import annotations

import io
import sys
from threading import Thread

import pytest

from cfstools.cli import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of standard error: not a fixture, as pytest gives each phase of a test its own stream."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_stages_at_the_same_time_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    monkeypatch.setattr(bars, "_DELAY", 0)
    progress = bars.Bars(color=False)
    first, second = progress.stage("hash", 100, "B"), progress.stage("fetch", None, "object")
    assert "hash" in terminal.getvalue()
    drawn = terminal.getvalue()
    assert "\nfetch" in drawn.replace("\r", "")
    assert drawn.endswith("\x1b[A")  # the cursor is back on the first line
    first.finish()
    second.finish()
    last_lines = terminal.getvalue().rpartition("fetch")[2].split("\r")[1:]
    assert not "".join(last_lines).strip(" \r\n\x1b[A")


def test_nothing_is_drawn_for_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    stage = bars.Bars(color=True).stage("read", 10, "B")
    stage.advance(10)
    stage.finish()
    assert not terminal.getvalue().strip()


def test_a_bar_counts_what_threads_do_and_nothing_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_for(monkeypatch)
    stage = bars.Bars(color=False).stage("read", None, "file")

    def advance() -> None:
        for _ in range(2000):
            stage.advance(1)

    threads = [Thread(target=advance) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drawn = stage._drawn
    assert drawn is not None
    assert drawn.n == 8000
    stage.finish()
    stage.advance(1)
    stage.finish()
    assert drawn.n == 8000
