"""When to try again, and after how long."""

from __future__ import annotations

import threading
import time

import pytest

from cfstools.errors import NetworkError, TransientError
from cfstools.threadpool import Abandoned, ThreadPool
from cfstools.transport.retry import Attempts, Clock, RetryRules, patient_sleep


def attempts(slept: list[float], chance: float = 1, rules: RetryRules = RetryRules()) -> Attempts:  # noqa: B008
    return Attempts(rules, Clock(sleep=slept.append, chance=lambda: chance))


def test_waits_grow_and_attempts_end() -> None:
    slept: list[float] = []
    tried = attempts(slept)
    error = TransientError("broken")
    for _ in range(4):
        tried.failed(error)
    with pytest.raises(TransientError, match="broken"):
        tried.failed(error)
    assert slept == [0.25, 0.5, 1, 2]


def test_waits_have_an_end_and_are_not_all_alike() -> None:
    for chance, expected in ((1, [0.25, 0.5, 1, 2, 4, 8, 10, 10]), (0, [0.125, 0.25, 0.5, 1, 2, 4, 5, 5])):
        slept: list[float] = []
        tried = attempts(slept, chance, RetryRules(attempts=9))
        for _ in range(8):
            tried.failed(TransientError("broken"))
        assert slept == expected


def test_progress_begins_anew() -> None:
    slept: list[float] = []
    tried = attempts(slept)
    for _ in range(50):
        tried.failed(TransientError("cut"), 64 << 10)
    for _ in range(3):
        tried.failed(TransientError("cut"), (64 << 10) - 1)
    with pytest.raises(TransientError):
        tried.failed(TransientError("cut"))
    assert slept == [0.25] * 50 + [0.5, 1, 2]


def test_who_tries_once_still_goes_on_where_it_broke() -> None:
    slept: list[float] = []
    tried = attempts(slept, rules=RetryRules(attempts=1))
    for _ in range(5):
        tried.failed(TransientError("cut"), 64 << 10)
    with pytest.raises(TransientError):
        tried.failed(TransientError("cut"), (64 << 10) - 1)
    assert slept == [0.25] * 5


def test_what_a_server_asks_for_is_obeyed_within_bounds() -> None:
    slept: list[float] = []
    tried = attempts(slept)
    error = TransientError("too many requests", subject="reg.example", hint="try later")
    error.wait = 120
    tried.failed(error)
    assert slept == [120]
    error.wait = 3600
    with pytest.raises(NetworkError, match=r"reg\.example: too many requests; it asks to wait 3600 s") as raised:
        tried.failed(error)
    assert raised.value.hint == "try later"
    assert slept == [120]


def test_sleeping_takes_its_time_but_not_longer_than_wanted() -> None:
    before = time.monotonic()
    patient_sleep(0.05)
    assert time.monotonic() - before >= 0.05
    began = threading.Event()

    def sleep() -> None:
        began.set()
        patient_sleep(3600)

    with ThreadPool(1, "sleeper") as pool:
        call = pool.submit(sleep)
        began.wait()
    with pytest.raises(Abandoned):
        call.result()
