"""Packing of directory names into blocks: the worked examples, the borders, and the rule stated plainly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.formats.erofs.dirents import directory_extent, directory_size, group_names

DOTS = [b".", b".."]
DOTS_SIZE = 27


def plain_groups(names: list[bytes]) -> list[list[bytes]]:
    groups: list[list[bytes]] = [[]]
    used = 0
    for name in names:
        if used + 12 + len(name) > 4096:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += 12 + len(name)
    return groups


def test_an_empty_directory_is_all_tail() -> None:
    assert group_names(DOTS) == [(0, 2)]
    assert directory_extent(DOTS) == (0, DOTS_SIZE)
    assert directory_size(DOTS) == DOTS_SIZE


def test_the_bare_root_takes_one_block() -> None:
    names = sorted([*DOTS, *(b"%02x" % number for number in range(256))])
    assert directory_extent(names) == (1, 0)
    assert group_names(names) == [(0, 258)]


def test_two_hundred_entries_take_a_block_and_a_tail() -> None:
    names = sorted([*DOTS, *(b"entry-%03d" % number for number in range(200))])
    assert group_names(names) == [(0, 195), (195, 202)]
    assert directory_extent(names) == (1, 147)
    assert directory_size(names) == 4243


@pytest.mark.parametrize(
    ("size", "extent"), [(2048, (0, 2048)), (2049, (1, 0)), (4096, (1, 0)), (4097, (1, 38)), (6500, (2, 0))]
)
def test_borders(size: int, extent: tuple[int, int]) -> None:
    # Names of 12 bytes cost 24 each; the last name takes what is left, 24 to 47 bytes.
    left = size - DOTS_SIZE
    names = [b"n%011d" % number for number in range(left // 24 - 1)]
    names.append(b"z" * (left - 24 * len(names) - 12))
    assert directory_extent([*DOTS, *names]) == extent


@given(st.sets(st.binary(min_size=1, max_size=255), max_size=90), st.integers(0, 600))
def test_packing_is_the_greedy_rule(names: set[bytes], more: int) -> None:
    packed = sorted({*names, *DOTS, *(b"%05d" % number for number in range(more))})
    groups = plain_groups(packed)
    assert [packed[start:end] for start, end in group_names(packed)] == groups
    tail = sum(12 + len(name) for name in groups[-1])
    assert directory_extent(set(packed)) == ((len(groups) - 1, tail) if tail <= 2048 else (len(groups), 0))
