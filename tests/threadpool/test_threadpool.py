"""Calls in threads: in order, all or none, and over when they are said to be."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from cfstools.errors import CfsError
from cfstools.threadpool import ThreadPool, map_ahead


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before  # those of earlier tests may end meanwhile


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep((20 - number) / 2000)
        return number * number

    got = list(map_ahead(slow_at_first, range(20), threads=threads, ahead=2, name="test"))
    assert got == [number * number for number in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_items_are_taken_than_may_wait(threads: int) -> None:
    taken: list[int] = []

    def note(number: int) -> int:
        taken.append(number)
        return number

    with closing(map_ahead(str, map(note, range(1000)), threads=threads, ahead=4, name="test")) as results:
        assert next(results) == "0"
        assert len(taken) <= 4 * threads + 1
        assert next(results) == "1"
        assert len(taken) <= 4 * threads + 2


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exception_ends_the_work(threads: int) -> None:
    made = []

    def call(number: int) -> int:
        made.append(number)
        if number == 3:
            raise KeyError(number)
        return number

    results = map_ahead(call, range(1000), threads=threads, ahead=3, name="test")
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert len(made) < 20


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exception_of_the_items_waits_for_calls_that_were_begun(threads: int) -> None:
    ended = []

    def call(number: int) -> None:
        time.sleep(0.01)
        ended.append(number)

    def items() -> Iterator[int]:
        yield 0
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(map_ahead(call, items(), threads=threads, ahead=3, name="test"))
    assert ended in ([0], []) if threads > 1 else ended == [0]


def test_what_was_not_begun_is_left_out() -> None:
    go, begun = threading.Event(), threading.Event()
    made: list[int] = []

    def wait() -> int:
        begun.set()
        go.wait()
        return 7

    workers = ThreadPool(1, "test")
    first = workers.submit(wait)
    second = workers.submit(made.append, 1)
    begun.wait()
    stopper = threading.Thread(target=workers.close)
    stopper.start()
    time.sleep(0.02)
    assert stopper.is_alive()
    go.set()
    stopper.join()
    assert first.result() == first.result() == 7
    assert made == []
    with pytest.raises(RuntimeError, match="stopped"):
        second.result()
    workers.close()


def test_fewer_threads_than_asked_for_do(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    left = 1

    def scarce(thread: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    assert list(map_ahead(str, range(9), threads=4, ahead=1, name="test")) == list("012345678")
    with pytest.raises(CfsError, match="cannot start a thread"):
        ThreadPool(2, "test")


def test_whoever_waits_may_help() -> None:
    begun, go_on = threading.Event(), threading.Event()
    helpers = []

    def hold_up() -> None:
        begun.set()
        go_on.wait()

    with ThreadPool(1, "test") as workers:
        held = workers.submit(hold_up)
        begun.wait()
        calls = [workers.submit(lambda: helpers.append(threading.current_thread())) for _ in range(3)]
        workers.help()
        assert helpers == [threading.current_thread()] * 3
        workers.help()
        for call in calls:
            call.result()
        go_on.set()
        held.result()
