"""Copies of trees say the same and share nothing that can change."""

from __future__ import annotations

from hypothesis import given

from cfstools.tree import Directory
from cfstools.tree.copying import copy_tree
from cfstools.tree.walk import iter_inodes
from tests.strategies import describe, trees


@given(trees())
def test_a_copy_describes_itself_the_same_and_has_inodes_of_its_own(root: Directory) -> None:
    copy = copy_tree(root)
    before = describe(root, primaries=True)
    assert describe(copy, primaries=True) == before
    assert not {id(inode) for inode in iter_inodes(root)} & {id(inode) for inode in iter_inodes(copy)}
    for inode in iter_inodes(copy):
        inode.mode ^= 1
        if isinstance(inode, Directory):
            inode.entries.clear()
    assert describe(root, primaries=True) == before
