"""Which objects are read ahead, and which way."""

from __future__ import annotations

import pytest

from cfstools.mount.lazy.order import Order

SIZES = {number.to_bytes(32, "big"): 10 for number in range(1000)}
DIGESTS = list(SIZES)


def ahead(order: Order, place: int, count: int = 3, *, missed: bool = True) -> list[int]:
    return [int.from_bytes(one, "big") for one in order.following(DIGESTS[place], count, missed=missed)]


def test_the_way_of_a_reader_is_that_of_the_tree_at_first() -> None:
    order = Order(SIZES)
    assert ahead(order, 900) == [901, 902, 903]
    assert ahead(order, 999) == []
    assert ahead(order, 5, 0) == []


def test_who_goes_back_a_little_goes_on_so() -> None:
    order = Order(SIZES)
    ahead(order, 900)
    assert ahead(order, 899) == [898, 897, 896]
    assert ahead(order, 899) == [], "named before"
    assert ahead(order, 895) == [894, 893, 892]
    assert ahead(order, 893, missed=False) == [891, 890], "half of them are behind the reader"
    assert ahead(order, 100) == [101, 102, 103], "a leap"
    assert ahead(order, 103) == [104, 105, 106], "and onward again"


def test_the_first_object_has_nothing_before_it() -> None:
    order = Order(SIZES)
    ahead(order, 2)
    assert ahead(order, 1) == [0]
    assert ahead(order, 0) == []


@pytest.mark.parametrize("step", [1, -1])
def test_a_reader_of_everything_misses_little(step: int) -> None:
    """As long as what was named is there at once."""
    order, there, misses = Order(SIZES), set[int](), 0
    for place in range(1000)[::step]:
        missed = place not in there
        misses += missed
        there.update(ahead(order, place, 8, missed=missed))
    assert misses == (1 if step > 0 else 2)
