from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.tree import NO_XATTRS, Device, Directory, Entry, HardLink, RegularFile
from cfstools.tree.filters import (
    clamp_mtime,
    drop_devices,
    exclude,
    keep_xattrs,
    split_hardlinks,
    use_epoch,
)
from cfstools.tree.globs import GlobSet
from cfstools.tree.model import Leaf
from cfstools.tree.walk import inode_of, iter_entries, iter_inodes, iter_names, lookup
from cfstools.tree.xattrs import XattrPolicy
from tests.tree.strategies import trees


def file(content: bytes = b"", **inode: Any) -> RegularFile:
    return RegularFile(mode=0o100644, size=len(content), content=content, **inode)


def directory(entries: dict[bytes, Entry]) -> Directory:
    return Directory(mode=0o040755, entries=entries)


def names_of(root: Directory) -> dict[Leaf, list[bytes]]:
    found: dict[Leaf, list[bytes]] = {}
    for path, _, entry in iter_entries(root):
        inode = inode_of(entry)
        if not isinstance(inode, Directory):
            found.setdefault(inode, []).append(path)
    return found


def assert_whole(root: Directory) -> None:
    """Every inode with a name has exactly one primary name."""
    primaries: list[Leaf] = []
    for _, _, entry in iter_names(root):
        if not isinstance(entry, HardLink | Directory):
            primaries.append(entry)
    assert len(primaries) == len(set(primaries))
    assert set(primaries) == set(names_of(root))


def test_use_epoch() -> None:
    root = directory({b"a": file(mtime_sec=5, mtime_nsec=7)})
    root.mtime_sec = -1
    use_epoch(root)
    assert {(i.mtime_sec, i.mtime_nsec) for i in iter_inodes(root)} == {(0, 0)}


@pytest.mark.parametrize(
    ("time", "clamped"),
    [
        ((99, 999_999_999), (99, 999_999_999)),
        ((100, 0), (100, 0)),
        ((100, 1), (100, 0)),
        ((101, 0), (100, 0)),
        ((-5, 3), (-5, 3)),
    ],
)
def test_clamp_mtime(time: tuple[int, int], clamped: tuple[int, int]) -> None:
    root = directory({b"a": file(mtime_sec=time[0], mtime_nsec=time[1])})
    root.mtime_sec, root.mtime_nsec = time
    clamp_mtime(root, 100)
    assert {(i.mtime_sec, i.mtime_nsec) for i in iter_inodes(root)} == {clamped}


def test_keep_xattrs() -> None:
    xattrs = {b"user.a": b"1", b"security.selinux": b"x"}
    root = directory({b"a": file(), b"b": file()})
    root.xattrs = xattrs
    inode_of(root.entries[b"a"]).xattrs = {b"trusted.x": b""}
    keep_xattrs(root, XattrPolicy.ALL)
    assert root.xattrs is xattrs
    keep_xattrs(root, XattrPolicy.USER)
    assert root.xattrs == {b"user.a": b"1"}
    assert xattrs == {b"user.a": b"1", b"security.selinux": b"x"}
    assert inode_of(root.entries[b"a"]).xattrs is NO_XATTRS
    keep_xattrs(root, XattrPolicy.NONE)
    assert root.xattrs is NO_XATTRS


def test_excluding_the_primary_name_promotes_the_next() -> None:
    one = file(b"1", nlink=4)
    inner = directory({b"y": HardLink(one), b"x": HardLink(one)})
    root = directory({b"a": one, b"b": inner, b"c": HardLink(one), b"d": file()})
    assert exclude(root, GlobSet([b"/a"])) == 1
    assert lookup(root, b"b/x") is one
    assert isinstance(inner.entries[b"y"], HardLink)
    assert isinstance(root.entries[b"c"], HardLink)
    assert one.nlink == 3
    assert exclude(root, GlobSet([b"b/"])) == 1
    assert lookup(root, b"c") is one
    assert one.nlink == 1
    assert list(root.entries) == [b"c", b"d"]


def test_a_file_is_promoted_before_a_later_directory() -> None:
    one = file()
    root = directory({b"a": directory({b"p": one}), b"m": HardLink(one), b"z": directory({b"b": HardLink(one)})})
    exclude(root, GlobSet([b"a"]))
    assert root.entries[b"m"] is one
    assert one.nlink == 2


def test_excluding_a_further_name_only_counts() -> None:
    one, other = file(nlink=2), file(nlink=9)
    root = directory({b"a": one, b"b": HardLink(one), b"c": other})
    exclude(root, GlobSet([b"b"]))
    assert root.entries == {b"a": one, b"c": other}
    assert one.nlink == 1
    assert other.nlink == 9


def test_the_root_stays() -> None:
    root = directory({b"a": file(), b"b": directory({b"c": file()})})
    assert exclude(root, GlobSet()) == 0
    assert exclude(root, GlobSet([b"/**"])) == 2
    assert root.entries == {}


def test_patterns_see_relative_paths() -> None:
    root = directory({b"usr": directory({b"doc": directory({b"a": file(), b"b.gz": file()}), b"a": file()})})
    assert exclude(root, GlobSet([b"usr/doc/a", b"*.gz"])) == 2
    assert [path for path, _, _ in iter_entries(root)] == [b"/", b"/usr", b"/usr/a", b"/usr/doc"]


def test_a_pattern_for_directories_spares_files() -> None:
    root = directory({b"x": file(), b"d": directory({b"x": directory({})})})
    assert exclude(root, GlobSet([b"x/"])) == 1
    assert [path for path, _, _ in iter_entries(root)] == [b"/", b"/d", b"/x"]


def test_drop_devices() -> None:
    tty = Device(mode=0o020600, rdev=5)
    root = directory(
        {b"b": HardLink(tty), b"d": directory({b"tty": tty, b"f": file()}), b"w": Device(mode=0o020000, rdev=0)}
    )
    assert drop_devices(root) == 3
    assert [path for path, _, _ in iter_entries(root)] == [b"/", b"/d", b"/d/f"]


def test_split_hardlinks() -> None:
    one = file(b"1", nlink=2, uid=7)
    one.xattrs = {b"user.a": b"x"}
    root = directory({b"a": one, b"b": HardLink(one), b"c": file(nlink=5)})
    split_hardlinks(root)
    copied = root.entries[b"b"]
    assert copied is not one
    assert isinstance(copied, RegularFile)
    assert (copied.uid, copied.content, copied.xattrs) == (7, b"1", one.xattrs)
    assert {entry.nlink for _, _, entry in iter_names(root) if isinstance(entry, RegularFile)} == {1}


@given(
    trees(),
    st.lists(st.sampled_from([b"a", b"b", b"/c", b"a/**", b"?", b"*/x", b"d*", b"dir/", b"[!a]*/"]), max_size=3),
)
def test_exclude_leaves_a_whole_tree(root: Directory, patterns: list[bytes]) -> None:
    globs = GlobSet(patterns)
    before = copy.deepcopy(root)
    expected = set()
    gone: list[bytes] = []
    for path, name, entry in iter_entries(before):
        if any(path.startswith(parent + b"/") for parent in gone):
            continue
        relative = path[1:]
        match = globs.matches_directory if isinstance(entry, Directory) else globs.matches
        if relative and match(relative, name):
            gone.append(path)
        else:
            expected.add(path)
    assert exclude(root, globs) == len(gone)
    assert {path for path, _, _ in iter_entries(root)} == expected
    assert_whole(root)
    old_names = {paths[0]: (inode, paths) for inode, paths in names_of(before).items()}
    for inode, paths in names_of(root).items():
        old = next(entry for entry in old_names.values() if paths[0] in entry[1])
        assert paths == [path for path in old[1] if path in expected]
        assert inode.nlink == (old[0].nlink if paths == old[1] else len(paths))
        if not isinstance(lookup(before, paths[0]), HardLink):
            assert lookup(root, paths[0]) is inode


@given(trees())
def test_split_leaves_no_links(root: Directory) -> None:
    paths = [(path, type(inode_of(entry))) for path, _, entry in iter_entries(root)]
    split_hardlinks(root)
    assert [(path, type(entry)) for path, _, entry in iter_entries(root)] == paths
    assert len(list(iter_inodes(root))) == len(paths)


@given(trees(), st.integers(-(2**40), 2**40))
def test_clamped_times_are_never_later(root: Directory, seconds: int) -> None:
    before = {inode: (inode.mtime_sec, inode.mtime_nsec) for inode in iter_inodes(root)}
    clamp_mtime(root, seconds)
    for inode, old in before.items():
        assert (inode.mtime_sec, inode.mtime_nsec) == min(old, (seconds, 0))
