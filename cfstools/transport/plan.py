"""Which ranges to ask for: pure arithmetic on what is wanted and where it lies.

Each request costs a round trip, so spans that lie close together are read in one, with the bytes between them. How
close is close enough depends on how many requests there would be, within a bound on the bytes that nobody wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from cfstools.transport.base import Span

LEAST_GAP = 4 << 10
MAX_GAP = 1 << 20
LEAST_WASTE = 1 << 20


class Wanted(NamedTuple):
    """Something wanted: what the caller calls it, and where it lies: in which blob, which bytes of it."""

    blob: int
    span: Span
    key: bytes


class RangeRequest(NamedTuple):
    """One range of a blob, with what is wanted of it in the order in which it comes; nothing in it overlaps."""

    blob: int
    span: Span
    items: tuple[Wanted, ...]

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What it brings."""
        return tuple(item.key for item in self.items)

    @property
    def size(self) -> int:
        """How many bytes it fetches."""
        return self.span.size

    @property
    def requests(self) -> int:
        """It is one."""
        return 1


def plan(
    wanted: Iterable[Wanted], *, gap: int = 64 << 10, most: int = 8 << 20, few: int = 32, waste: float = 0.25
) -> tuple[RangeRequest, ...]:
    """The requests for *wanted*, the largest first.

    Spans up to *gap* bytes apart share a request of at most *most* bytes; something larger has one alone. While there
    are more than *few*, the gap is doubled up to :data:`MAX_GAP`, as long as no more than the share *waste* of the
    wanted bytes, or :data:`LEAST_WASTE`, is fetched beside them.
    """
    ordered = sorted(set(wanted))
    allowed = max(waste * sum(item.span.size for item in ordered), LEAST_WASTE)
    best = _requests(ordered, gap, most)
    while len(best) > few and gap < MAX_GAP:
        gap = min(max(2 * gap, LEAST_GAP), MAX_GAP)
        wider = _requests(ordered, gap, most)
        if sum(request.size - sum(item.span.size for item in request.items) for request in wider) > allowed:
            break
        best = wider
    return tuple(sorted(best, key=lambda request: (-request.size, request.blob, request.span)))


def plan_whole(wanted: Iterable[Wanted], sizes: Sequence[int]) -> tuple[RangeRequest, ...]:
    """One request for each blob that anything is wanted of, all of it; *sizes* are those of the blobs."""
    return tuple(
        RangeRequest(blob, Span(0, sizes[blob]), tuple(items))
        for blob, items in groupby(_disjoint(sorted(set(wanted))), key=lambda item: item.blob)
    )


def _requests(ordered: Sequence[Wanted], gap: int, most: int) -> list[RangeRequest]:
    """Requests for items in the order of blobs and spans. What overlaps another item is asked for again."""
    made: list[RangeRequest] = []
    items: list[Wanted] = []
    for item in ordered:
        if items:
            last = items[-1]
            joined = item.span.end - items[0].span.start
            if item.blob != last.blob or not 0 <= item.span.start - last.span.end <= gap or joined > most:
                made.append(_request(items))
                items = []
        items.append(item)
    if items:
        made.append(_request(items))
    return made


def _request(items: list[Wanted]) -> RangeRequest:
    return RangeRequest(items[0].blob, Span(items[0].span.start, items[-1].span.end), tuple(items))


def _disjoint(ordered: Iterable[Wanted]) -> Iterable[Wanted]:
    """Items without those that overlap one before: no honest list has them."""
    blob, end = -1, 0
    for item in ordered:
        if item.blob != blob or item.span.start >= end:
            yield item
            blob, end = item.blob, item.span.end
