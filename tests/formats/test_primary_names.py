"""Trees read from images get back the primary names they were written with."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given

from cfstools.errors import TreeError
from cfstools.formats.composefs import write_image
from cfstools.formats.composefs_reader import read_image
from cfstools.formats.erofs.reader import Image
from cfstools.formats.primary_names import restore_primary_names
from cfstools.tree import Device, Directory, HardLink
from cfstools.tree.walk import iter_names
from tests.formats.images import directory, find, patch, regular, sample_tree
from tests.strategies import describe, trees


def restored(data: bytes) -> tuple[Directory, int]:
    root = read_image(data)
    return root, restore_primary_names(Image(data), root)


@given(trees(plain=True, whiteouts=False, max_entries=20))
def test_what_was_written_is_written_again(root: Directory) -> None:
    try:
        data = write_image(root)
    except TreeError:
        return
    again, _ = restored(data)
    assert write_image(again) == data
    assert describe(again) == describe(read_image(data))


def test_the_sample_has_a_late_primary_name() -> None:
    data = write_image(sample_tree())
    assert write_image(read_image(data)) != data
    root, changed = restored(data)
    assert changed == 1
    assert not isinstance(root.entries[b"shared"], HardLink)
    assert write_image(root) == data


def test_primary_names_that_are_first_stay() -> None:
    inode = regular(b"", nlink=2)
    whiteout = Device(mode=stat.S_IFCHR, rdev=0)
    data = write_image(directory({b"a": inode, b"b": HardLink(inode), b"c": directory(), b"d": whiteout}))
    assert restored(data)[1] == 0
    assert restored(write_image(directory({b"a": regular(b"")})))[1] == 0


@pytest.mark.parametrize("number", [2**31, 0])
def test_numbers_out_of_order_change_nothing_but_primary_names(number: int) -> None:
    data = write_image(sample_tree())
    wrong = patch(data, find(data, b"shared").offset + 20, "I", number)
    root, _ = restored(wrong)
    assert describe(root) == describe(read_image(data))
    names = [name for _, name, entry in iter_names(root) if entry is find_inode(root)]
    assert len(names) == 1


def find_inode(root: Directory) -> object:
    entry = root.entries[b"shared"]
    return entry.inode if isinstance(entry, HardLink) else entry
