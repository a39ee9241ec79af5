"""The place that fails on purpose fails alike each time, and what retries gets through."""

from __future__ import annotations

import io
from collections import Counter
from threading import Thread

import pytest

from cfstools.errors import TransientError
from cfstools.transport.base import Retry, Span, read_whole
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.memory import MemoryTarget

DATA = bytes(range(256)) * 64
NAMES = [f"blob{number}" for number in range(40)]
FAULTS = Faults(seed=5, errors=0.3, short=0.4, delays=0.2, delay=7)


def faulty(faults: Faults = FAULTS, slept: list[float] | None = None) -> FaultyTarget:
    return FaultyTarget(
        MemoryTarget(dict.fromkeys(NAMES, DATA)), faults, sleep=(slept if slept is not None else []).append
    )


def outcome(target: FaultyTarget, name: str, offset: int) -> int | str:
    try:
        return len(target.read(name, Span(offset, 1000)))
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
    assert outcomes(target) == [1000] * (3 * len(NAMES))
    assert target.injected == Counter()


def test_retries_get_all_of_it() -> None:
    slept: list[float] = []
    target = faulty()
    retry = Retry(attempts=20, pause=0.25, sleep=slept.append)
    for name in NAMES:
        assert read_whole(target, name, Span(0, len(DATA)), retry) == DATA
    assert target.injected["read", "error"] == len(slept)
    assert {0.25, 0.5} <= set(slept)


def test_retries_end() -> None:
    slept: list[float] = []
    target = faulty(Faults(errors=1))
    with pytest.raises(TransientError, match="memory:blob0: injected fault in read"):
        read_whole(target, "blob0", Span(0, 1), Retry(attempts=4, pause=1, sleep=slept.append))
    assert slept == [1, 2, 4]
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
            target.put(name, io.BytesIO(b"new" * 100).read, 300)
        except TransientError:
            failed += 1
            expected = DATA
        else:
            expected = b"new" * 100
        assert read_whole(target, name, Span(0, len(expected)), Retry(attempts=30, pause=0)) == expected
    assert failed == target.injected["put", "error"]
    assert 10 < failed < 30
