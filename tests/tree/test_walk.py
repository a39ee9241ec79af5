from __future__ import annotations

import pytest
from hypothesis import given

from cfstools.tree import Directory, Fifo, HardLink, RegularFile, Symlink
from cfstools.tree.walk import inode_of, iter_directories, iter_entries, iter_inodes, lookup
from tests.tree.strategies import trees


def file(content: bytes = b"") -> RegularFile:
    return RegularFile(mode=0o100644, size=len(content), content=content)


@pytest.fixture
def tree() -> Directory:
    one = file(b"one")
    return Directory(
        mode=0o040755,
        entries={
            b"z": HardLink(one),
            b"b": Directory(mode=0o040755, entries={b"x": one, b"a": Fifo(mode=0o010644)}),
            b"a": Symlink(mode=0o120777, target=b"b"),
            b"\xff": file(),
            b"b.c": file(),
            b"b-": Directory(mode=0o040755),
        },
    )


def test_entries_come_depth_first_in_byte_order(tree: Directory) -> None:
    found = [(path, name) for path, name, _ in iter_entries(tree)]
    assert found == [
        (b"/", b""),
        (b"/a", b"a"),
        (b"/b", b"b"),
        (b"/b/a", b"a"),
        (b"/b/x", b"x"),
        (b"/b-", b"b-"),
        (b"/b.c", b"b.c"),
        (b"/z", b"z"),
        (b"/\xff", b"\xff"),
    ]


def test_a_directory_may_be_changed_when_it_is_met(tree: Directory) -> None:
    for path, _, entry in iter_entries(tree):
        if path == b"/b":
            assert isinstance(entry, Directory)
            del entry.entries[b"a"]
    assert lookup(tree, b"/b/a") is None


def test_inodes_come_once(tree: Directory) -> None:
    inodes = list(iter_inodes(tree))
    assert len(inodes) == 8
    assert len(set(inodes)) == 8
    assert inodes == [entry for _, _, entry in iter_entries(tree) if not isinstance(entry, HardLink)]


def test_directories(tree: Directory) -> None:
    assert list(iter_directories(tree)) == [tree, tree.entries[b"b"], tree.entries[b"b-"]]


@pytest.mark.parametrize("path", [b"/b/x", b"b/x", b"//b//x", b"b/x/"])
def test_lookup_finds_whatever_the_slashes(tree: Directory, path: bytes) -> None:
    parent = tree.entries[b"b"]
    assert isinstance(parent, Directory)
    assert lookup(tree, path) is parent.entries[b"x"]


@pytest.mark.parametrize("path", [b"", b"/", b"//"])
def test_lookup_finds_the_root(tree: Directory, path: bytes) -> None:
    assert lookup(tree, path) is tree


@pytest.mark.parametrize("path", [b"/c", b"/a/x", b"/b/x/y", b"/b/../a", b"/.", b"/c/d", b"/z/x"])
def test_lookup_follows_nothing(tree: Directory, path: bytes) -> None:
    assert lookup(tree, path) is None


def test_inode_of_a_hard_link(tree: Directory) -> None:
    link, target = lookup(tree, b"/z"), lookup(tree, b"/b/x")
    assert link is not None
    assert target is not None
    assert link is not target
    assert inode_of(link) is inode_of(target) is target


def test_depth_does_not_matter() -> None:
    root = parent = Directory(mode=0o040755)
    for _ in range(3000):
        child = Directory(mode=0o040755)
        parent.entries[b"d"] = child
        parent = child
    assert sum(1 for _ in iter_entries(root)) == 3001
    assert sum(1 for _ in iter_inodes(root)) == 3001
    assert lookup(root, b"/d" * 3000) is parent


@given(trees())
def test_every_entry_is_found_at_its_path(root: Directory) -> None:
    seen = []
    for path, name, entry in iter_entries(root):
        assert lookup(root, path) is entry
        assert path.rpartition(b"/")[2] == name
        seen.append(path)
    assert len(seen) == len(set(seen)) == 1 + sum(len(d.entries) for d in iter_directories(root))
    assert [path.split(b"/") for path in seen[1:]] == sorted(path.split(b"/") for path in seen[1:])
