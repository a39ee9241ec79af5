"""The place that fails on purpose fails alike each time, and what retries gets through."""

from __future__ import annotations

from collections import Counter
from threading import Thread

import pytest

from cfstools.errors import TransientError
from cfstools.streams.buffered import read_up_to
from cfstools.transport.base import BytesBody, Span
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.memory import MemoryTarget
from cfstools.transport.reading import read_whole
from cfstools.transport.retry import Clock, RetryRules

DATA = bytes(range(256)) * 64
NAMES = [f"blob{number}" for number in range(40)]
FAULTS = Faults(seed=5, errors=0.3, short=0.4, delays=0.2, delay=7)


def faulty(faults: Faults = FAULTS, slept: list[float] | None = None) -> FaultyTarget:
    return FaultyTarget(
        MemoryTarget(dict.fromkeys(NAMES, DATA)), faults, sleep=(slept if slept is not None else []).append
    )


def outcome(target: FaultyTarget, name: str, offset: int) -> int | str:
    try:
        with target.read(name, Span(offset, offset + 8000)) as read:
            return len(read_up_to(read, 8000))
    except TransientError as error:
        return str(error)


def outcomes(target: FaultyTarget) -> list[int | str]:
    return [outcome(target, name, offset) for name in NAMES for offset in (0, 500, 500)]


def test_faults_depend_on_the_seed_alone() -> None:
    first, second = faulty(), faulty()
    assert outcomes(first) == outcomes(second)
    assert first.injected == second.injected
    assert outcomes(faulty(FAULTS._replace(seed=6))) != outcomes(faulty())


def test_faults_do_not_depend_on_the_order_of_threads() -> None:
    target = faulty()
    expected = {name: [outcome(target, name, 0)] for name in NAMES}
    target = faulty()
    found: dict[str, list[int | str]] = {}
    threads = [
        Thread(target=lambda name=name: found.update({name: [outcome(target, name, 0)]})) for name in NAMES[::-1]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_shares_are_as_asked_for() -> None:
    slept: list[float] = []
    target = faulty(slept=slept)
    for name in NAMES:
        for offset in range(50):
            outcome(target, name, offset)
    calls = len(NAMES) * 50
    assert abs(target.injected["read", "error"] / calls - 0.3) < 0.05
    assert abs(target.injected["read", "delay"] / calls - 0.2) < 0.05
    assert abs(target.injected["read", "short"] / (calls * 0.7) - 0.4) < 0.05
    assert slept == [7] * target.injected["read", "delay"]


def test_without_faults_nothing_is_injected() -> None:
    target = faulty(Faults())
    assert outcomes(target) == [8000] * (3 * len(NAMES))
    assert target.injected == Counter()


def test_retries_get_all_of_it() -> None:
    slept: list[float] = []
    target = faulty()
    rules = RetryRules(attempts=40, first=0.25)
    for name in NAMES:
        assert (
            read_whole(target, name, len(DATA), rules=rules, clock=Clock(sleep=slept.append, chance=lambda: 1)) == DATA
        )
    assert target.injected["read", "error"] + target.injected["read", "short"] == len(slept)
    assert {0.25, 0.5} <= set(slept)


def test_retries_end() -> None:
    slept: list[float] = []
    target = faulty(Faults(errors=1))
    clock = Clock(sleep=slept.append, chance=lambda: 0)
    with pytest.raises(TransientError, match="memory:blob0: injected fault in read"):
        read_whole(target, "blob0", len(DATA), rules=RetryRules(attempts=4, first=1), clock=clock)
    assert slept == [0.5, 1, 2]
    assert target.injected == {("read", "error"): 4}
    with pytest.raises(TransientError):
        target.size("blob0")
    with pytest.raises(TransientError):
        target.names()


def test_a_failed_put_leaves_what_was_there() -> None:
    target = faulty(Faults(seed=1, errors=0.5))
    failed = 0
    for name in NAMES:
        try:
            target.put(name, BytesBody(b"new" * 100), replace=True)
        except TransientError:
            failed += 1
            expected = DATA
        else:
            expected = b"new" * 100
        rules = RetryRules(attempts=30)
        assert read_whole(target, name, len(expected), rules=rules, clock=Clock(sleep=lambda _: None)) == expected
    assert failed == target.injected["put", "error"]
    assert 10 < failed < 30
