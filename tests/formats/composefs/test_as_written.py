"""Trees read from images get back the primary names they were written with, and lose the marks of a version."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given

from cfstools.errors import TreeError
from cfstools.formats.composefs.as_written import drop_version_marks, restore_primary_names
from cfstools.formats.erofs.reader import Image
from cfstools.tree import Device, Directory, HardLink
from cfstools.tree.walk import iter_names
from tests.formats.images import directory, find, patch, read_image, regular, sample_tree, write_image
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


def test_marks_of_version_1_are_dropped_where_they_were_made() -> None:
    whiteout = Device(mode=stat.S_IFCHR | 0o600, rdev=0)
    own = {b"user.overlay.opaque": b"x", b"user.k": b"v"}
    root = directory(
        {
            b"marked": directory({b"gone": whiteout, b"kept": regular(b"")}, xattrs={b"user.k": b"v"}),
            b"plain": directory({b"gone": whiteout}),
            b"with": directory({b"f": regular(b"")}, xattrs=own),
        }
    )
    data = write_image(root, min_version=1)
    read = read_image(data)
    assert describe(read) != describe(root)
    drop_version_marks(read)
    assert describe(read) == describe(root)
    assert write_image(read, min_version=1) == data
