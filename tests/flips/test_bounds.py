"""The bounds that damaged input is held to are real."""

from __future__ import annotations

import signal

import pytest

from tests import bounds
from tests.bounds import MEMORY, bounded, seconds_for


def test_what_is_cheap_passes() -> None:
    with bounded(0) as cost:
        pass
    assert 0 <= cost.seconds < 1
    assert cost.memory < MEMORY


def _bounded_spin() -> None:
    with bounded(7) as cost:
        while cost is not None:
            pass


def test_a_loop_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.1)
    handler = signal.getsignal(signal.SIGPROF)
    with pytest.raises(AssertionError, match=r"more than \d+\.\d\d s of processor time for 7 bytes"):
        _bounded_spin()
    assert signal.getsignal(signal.SIGPROF) is handler
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_memory_counts_at_its_peak() -> None:
    with pytest.raises(AssertionError, match=r"\d+ MiB of memory for 3 bytes"), bounded(3):
        del [b"x" * (MEMORY + (8 << 20))][0]
    # What was needed before is not held against the next one.
    with bounded(3):
        pass


def test_the_time_grows_with_the_input() -> None:
    assert seconds_for(8 << 20) == pytest.approx(9 * seconds_for(0))
