"""Whether an image has exactly the bytes that its tree would be written as."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from cfstools.errors import FormatError
from cfstools.formats.base import Format, PlanOptions
from cfstools.tree import Directory


class Chunks(Protocol):
    """What can be compared: bytes in pieces."""

    @property
    def chunks(self) -> Callable[[], Iterator[bytes | memoryview]]:
        """The bytes from front to back."""


def canonical_difference(format: Format, image: memoryview, root: Directory, options: PlanOptions) -> str | None:
    """Where *image*, whose tree is *root*, differs from what *format* writes with the *options* of its own version.

    ``None`` if it does not. The place is named by what is at it in the image.
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
    return _describe(format, image, position)


def _describe(format: Format, image: memoryview, offset: int) -> str:
    what = "a canonical writer would have made other bytes"
    try:
        for region in format.open(image).regions():
            if region.start <= offset < region.end:
                return f"{what}, first at offset {offset:#x}: {region.kind.value} {region.label}".rstrip()
    except FormatError:
        pass
    return f"{what}, first at offset {offset:#x}"


def first_difference(plan: Chunks, image: memoryview) -> int | None:
    """Where *image* is not what *plan* would write, its end or the plan's included; ``None`` if it is all of it."""
    position = 0
    for chunk in plan.chunks():
        end = position + len(chunk)
        # Not as views, which are compared number by number.
        if bytes(image[position:end]) != bytes(chunk):
            return position + _length_of_same(image[position:end], memoryview(chunk))
        position = end
    return None if position == len(image) else position


def _length_of_same(one: memoryview, other: memoryview) -> int:
    """How many bytes two pieces begin with that are the same in both."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
