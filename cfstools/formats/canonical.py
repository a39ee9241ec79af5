"""Compare an image with what our writer makes of its tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from cfstools.errors import FormatError
from cfstools.formats.base import Format, PlanOptions
from cfstools.tree import Directory

# Pieces that stay in the cache while they are compared, instead of a copy of the image.
_PIECE = 1 << 18


class Chunks(Protocol):
    """An image in chunks, such as a plan."""

    @property
    def chunks(self) -> Callable[[], Iterator[bytes | memoryview]]:
        """The bytes from front to back."""


def canonical_difference(format: Format, image: memoryview, root: Directory, options: PlanOptions) -> str | None:
    """Say where *image* first differs from what *format* writes for its tree *root*; ``None`` if nowhere.

    *options* are those of the image's own version. The text says what the first byte that differs is for.
    """
    try:
        plan = format.plan(root, options)
    except FormatError as error:
        return f"its tree cannot be written: {error}"
    position = first_difference(plan, image)
    if position is None:
        return None
    if position == plan.size:
        return f"a canonical writer would have stopped after {position} bytes, there are {len(image)}"
    return f"a canonical writer would have made other bytes, first at {format.role_at(image, position)}"


def first_difference(plan: Chunks, image: memoryview) -> int | None:
    """Offset of the first byte that differs, or where one of both ends; ``None`` if *image* is what *plan* writes."""
    position = 0
    for chunk in plan.chunks():
        view = memoryview(chunk)
        for start in range(0, len(view), _PIECE):
            piece, place = view[start : start + _PIECE], position + start
            # Compare bytes: memoryviews are compared element by element, which is slow.
            if bytes(image[place : place + len(piece)]) != bytes(piece):
                return place + _length_of_same(image[place : place + len(piece)], piece)
        position += len(view)
    return None if position == len(image) else position


def _length_of_same(one: memoryview, other: memoryview) -> int:
    """The length of the common prefix of two pieces."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
