"""Parts of trees."""

from __future__ import annotations

import pytest

from cfstools.errors import InputError
from cfstools.tree import Directory, Entry, HardLink, RegularFile, Symlink
from cfstools.tree.copying import select
from cfstools.tree.walk import iter_entries


def directory(**entries: Directory | RegularFile | Symlink | HardLink) -> Directory:
    made: dict[bytes, Entry] = {name.encode(): entry for name, entry in entries.items()}
    return Directory(mode=0o040755, uid=7, mtime_sec=9, entries=made)


@pytest.fixture
def root() -> Directory:
    leaf = RegularFile(mode=0o100644, size=1, content=b"x")
    return directory(
        a=directory(b=directory(c=leaf, d=directory(e=RegularFile(mode=0o100600, size=0, content=b""))), z=directory()),
        f=HardLink(leaf),
        l=Symlink(mode=0o120777, target=b"a/b"),
    )


@pytest.mark.parametrize(
    ("paths", "left"),
    [
        ([b"/f"], "/ /f"),
        ([b"a/b/d/"], "/ /a /a/b /a/b/d /a/b/d/e"),
        ([b"/a/b/c", b"//a//z"], "/ /a /a/b /a/b/c /a/z"),
        ([b"/a/b/c", b"/a/b", b"/l"], "/ /a /a/b /a/b/c /a/b/d /a/b/d/e /l"),
        ([b"/a/b", b"/a/b/d/e", b"/a/b/d"], "/ /a /a/b /a/b/c /a/b/d /a/b/d/e"),
        ([], "/"),
    ],
)
def test_what_is_kept(root: Directory, paths: list[bytes], left: str) -> None:
    before = [path for path, _, _ in iter_entries(root)]
    part = select(root, paths)
    assert [path.decode() for path, _, _ in iter_entries(part)] == left.split()
    assert [path for path, _, _ in iter_entries(root)] == before
    for _, _, entry in iter_entries(part):
        if isinstance(entry, Directory):
            assert (entry.mode, entry.uid, entry.mtime_sec) == (0o040755, 7, 9)


def test_leaves_are_those_of_the_tree(root: Directory) -> None:
    part = select(root, [b"/f"])
    assert part.entries[b"f"] is root.entries[b"f"]
    assert select(root, [b"/a/z", b"/"]) is root


@pytest.mark.parametrize("path", [b"/x", b"/a/x", b"/a/x/y", b"/a/b/..", b"."])
def test_missing_paths(root: Directory, path: bytes) -> None:
    with pytest.raises(InputError, match=f"^/{path.decode().strip('/')}: no such name in the image$"):
        select(root, [b"/a", path])


@pytest.mark.parametrize("path", [b"/l/c", b"/f/x", b"/a/b/c/d"])
def test_paths_through_what_is_no_directory(root: Directory, path: bytes) -> None:
    with pytest.raises(InputError, match="not a directory on the way"):
        select(root, [path])
