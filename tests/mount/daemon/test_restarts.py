"""How often a server is started again."""

from __future__ import annotations

from cfstools.mount.daemon.service import MOST, WITHIN, Restarts


def test_pauses_double_and_end() -> None:
    restarts = Restarts()
    assert [restarts.pause(float(number)) for number in range(MOST + 1)] == [0.1, 0.2, 0.4, 0.8, 1.6, None]


def test_what_was_long_ago_does_not_count() -> None:
    restarts = Restarts()
    for number in range(MOST):
        restarts.pause(float(number))
    assert restarts.pause(WITHIN) is None
    assert restarts.pause(WITHIN + 1.5) == 0.1 * 2 ** (MOST - 2)
    assert restarts.pause(10 * WITHIN) == 0.1


def test_one_now_and_then_goes_on_for_ever() -> None:
    restarts = Restarts()
    assert {restarts.pause(number * 2 * WITHIN) for number in range(100)} == {0.1}
