"""Which ranges are asked for: every wanted byte once, few requests, little that nobody wants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfstools.transport.base import Span
from cfstools.transport.plan import LEAST_WASTE, MAX_GAP, RangeRequest, Wanted, plan, plan_whole

KIB = 1 << 10


def wanted(*spans: tuple[int, int], blob: int = 0) -> list[Wanted]:
    return [Wanted(blob, Span(*span), b"%d-%d" % (blob, span[0])) for span in spans]


def spans(requests: tuple[RangeRequest, ...]) -> list[tuple[int, int]]:
    return sorted((request.span.start, request.span.end) for request in requests)


def test_what_is_close_together_is_one_request() -> None:
    assert spans(plan(wanted((0, 10), (10, 20), (30, 40)), gap=10)) == [(0, 40)]
    assert spans(plan(wanted((0, 10), (10, 20), (31, 40)), gap=10)) == [(0, 20), (31, 40)]
    assert spans(plan([])) == []


def test_blobs_are_apart() -> None:
    requests = plan(wanted((0, 10)) + wanted((10, 20), blob=1))
    assert [(request.blob, request.keys) for request in requests] == [(0, (b"0-0",)), (1, (b"1-10",))]


def test_a_request_has_a_size() -> None:
    parts = wanted(*((at, at + 100) for at in range(0, 1000, 100)))
    assert {request.size for request in plan(parts, most=250)} == {200}
    assert spans(plan(wanted((0, 10), (10, 1000), (1000, 1010)), most=100)) == [(0, 10), (10, 1000), (1000, 1010)]


def test_the_largest_come_first() -> None:
    requests = plan(wanted((0, 10), (1000, 1300), (5000, 5100)), gap=0)
    assert [request.size for request in requests] == [300, 100, 10]


def test_the_same_is_wanted_once() -> None:
    assert plan(wanted((0, 10)) * 3) == plan(wanted((0, 10)))
    (first, second) = plan([Wanted(0, Span(0, 10), b"a"), Wanted(0, Span(0, 10), b"b")])
    assert {first.keys, second.keys} == {(b"a",), (b"b",)}


def test_the_gap_grows_while_there_are_many_and_it_costs_little() -> None:
    # 100 objects of 100 KiB, 100 KiB apart: bytes as many as are wanted would be read along.
    apart = wanted(*((at * 200 * KIB, at * 200 * KIB + 100 * KIB) for at in range(100)))
    assert len(plan(apart)) == 100
    # 10 KiB apart at first, then 100 KiB: within a quarter.
    near = wanted(*((at * 200 * KIB, at * 200 * KIB + 180 * KIB) for at in range(100)))
    requests = plan(near, gap=KIB)
    assert len(requests) == 3
    # A mebibyte is always allowed.
    small = wanted(*((at * 20 * KIB, at * 20 * KIB + 10) for at in range(50)))
    assert len(plan(small, gap=KIB)) == 1
    assert len(plan(wanted(*((at * 2 * MAX_GAP, at * 2 * MAX_GAP + 1) for at in range(50))))) == 50


def test_a_whole_blob_is_one_request() -> None:
    items = wanted((5, 10), (0, 5), (7, 9), (20, 30)) + wanted((0, 1), blob=2)
    first, second = plan_whole(items, [100, 200, 300])
    assert first == RangeRequest(0, Span(0, 100), tuple(wanted((0, 5), (5, 10), (20, 30))))
    assert second == RangeRequest(2, Span(0, 300), tuple(wanted((0, 1), blob=2)))


SPANS = st.tuples(st.integers(0, 2), st.integers(0, 1 << 22), st.integers(1, 1 << 17))


@given(st.lists(SPANS, max_size=60), st.integers(0, 1 << 18), st.integers(1, 1 << 20), st.integers(0, 8))
def test_every_plan_brings_all_of_it_once(made: list[tuple[int, int, int]], gap: int, most: int, few: int) -> None:
    items = [Wanted(blob, Span(at, at + size), b"%d" % number) for number, (blob, at, size) in enumerate(made)]
    requests = plan(items, gap=gap, most=most, few=few)
    assert sorted(item for request in requests for item in request.items) == sorted(items)
    for request in requests:
        assert request.size <= most or len(request.items) == 1
        assert request.span == (request.items[0].span.start, request.items[-1].span.end)
        assert {item.blob for item in request.items} == {request.blob}
        for before, after in zip(request.items, request.items[1:], strict=False):
            assert 0 <= after.span.start - before.span.end <= max(gap, MAX_GAP)
    overlapping = len(requests) != len(plan(items, gap=0, most=1))
    waste = sum(request.size for request in requests) - sum(item.span.size for item in items)
    narrow = plan(items, gap=gap, most=most, few=1 << 30)
    least = sum(request.size for request in narrow) - sum(item.span.size for item in items)
    assert overlapping or waste == 0 or waste <= max(least, LEAST_WASTE, 0.25 * sum(item.span.size for item in items))
