"""Differences of trees: every kind is found, at the right name, and nothing else is."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.tree import (
    Blob,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Located,
    Piece,
    RegularFile,
    Socket,
    Stamp,
    Symlink,
    Unread,
)
from cfstools.tree.copying import copy_tree
from cfstools.tree.diff import Aspect, Change, Notes, diff_trees
from cfstools.tree.model import Content, Leaf, copy_of
from cfstools.tree.objects import iter_objects, objects_of, objects_of_file
from cfstools.tree.walk import inode_of, iter_entries
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from tests.strategies import describe, trees


def file(content: Content = b"hello", size: int | None = None, **inode: object) -> RegularFile:
    size = len(content) if isinstance(content, bytes) else size or 5000
    return RegularFile(mode=stat.S_IFREG | 0o644, size=size, content=content, **inode)  # type: ignore[arg-type]


def tree(entries: dict[bytes, Entry], **inode: object) -> Directory:
    return Directory(mode=stat.S_IFDIR | 0o755, entries=entries, **inode)  # type: ignore[arg-type]


def stored(digest: bytes) -> External:
    return External(digest, object_path(digest))


def changes(old: Directory, new: Directory, **options: object) -> list[tuple[bytes, tuple[Aspect, ...]]]:
    return [(change.path, change.aspects) for change in diff_trees(old, new, **options)]  # type: ignore[arg-type]


def one(old: Entry, new: Entry, notes: Notes | None = None) -> Change | None:
    found = list(diff_trees(tree({b"f": old}), tree({b"f": new}), notes=notes))
    assert all(change.path == b"/f" for change in found)
    assert len(found) < 2
    return found[0] if found else None


def aspects(old: Entry, new: Entry, notes: Notes | None = None) -> tuple[Aspect, ...]:
    change = one(old, new, notes)
    return () if change is None else change.aspects


def kind(change: Change) -> str:
    return "added" if change.old is None else "removed" if change.new is None else "changed"


Mutation = Callable[[Directory | Leaf], None]


def set_field(name: str, change: Callable[[int], int]) -> Mutation:
    return lambda inode: setattr(inode, name, change(getattr(inode, name)))


def set_xattrs(inode: Directory | Leaf) -> None:
    inode.xattrs = {**inode.xattrs, b"user.new": b"1"}


MUTATIONS: list[tuple[Aspect, Mutation]] = [
    (Aspect.MODE, set_field("mode", lambda mode: mode ^ 0o010)),
    (Aspect.OWNER, set_field("uid", lambda uid: uid ^ 1)),
    (Aspect.OWNER, set_field("gid", lambda gid: gid ^ 1)),
    (Aspect.MTIME, set_field("mtime_sec", lambda seconds: seconds ^ 1)),
    (Aspect.MTIME, set_field("mtime_nsec", lambda nanoseconds: nanoseconds ^ 1)),
    (Aspect.XATTRS, set_xattrs),
]


def mutate_contents(file: RegularFile) -> Aspect | None:
    match file.content:
        case b"":
            return None
        case bytes() as data:
            file.content = bytes([data[0] ^ 1]) + data[1:]
        case External(digest=bytes() as digest, payload=payload):
            file.content = External(bytes([digest[0] ^ 1]) + digest[1:], payload)
        case External(payload=payload):
            file.content = External(None, (payload or b"") + b"x")
            return Aspect.PAYLOAD
        case Located() | Unread():
            raise AssertionError
    return Aspect.CONTENT


def mutate_data(inode: Directory | Leaf) -> Aspect | None:
    match inode:
        case RegularFile():
            return mutate_contents(inode)
        case Symlink():
            inode.target = inode.target[:-1] + bytes([inode.target[-1] ^ 1 or 1])
            return Aspect.TARGET
        case Device():
            inode.rdev ^= 1
            return Aspect.RDEV
        case Fifo() | Socket():
            inode.size ^= 1
            return Aspect.SIZE
        case _:
            return None


@given(trees())
def test_a_tree_is_the_same_as_its_copy(root: Directory) -> None:
    assert changes(root, root) == []
    notes = Notes()
    assert changes(root, copy_tree(root), notes=notes) == []
    assert notes.incomparable == notes.moved == 0


@given(trees(), st.data())
def test_one_change_is_reported_at_its_name_and_with_its_aspect(root: Directory, data: st.DataObject) -> None:
    changed = copy_tree(root)
    names = list(iter_entries(changed))
    inode = inode_of(data.draw(st.sampled_from(names))[2])
    path = next(path for path, _, entry in names if inode_of(entry) is inode)
    number = data.draw(st.integers(0, len(MUTATIONS)))
    if number < len(MUTATIONS):
        aspect: Aspect | None = MUTATIONS[number][0]
        MUTATIONS[number][1](inode)
    else:
        aspect = mutate_data(inode)
    assert changes(root, changed) == ([] if aspect is None else [(path, (aspect,))])
    if aspect is not None:
        assert changes(root, changed, ignore={aspect}) == []


@given(trees(), trees())
def test_there_are_changes_exactly_where_descriptions_differ(old: Directory, new: Directory) -> None:
    forward = list(diff_trees(old, new))
    before, after = describe(old), describe(new)
    assert bool(forward) == (before != after)
    paths = [change.path for change in forward]
    assert len(set(paths)) == len(paths)
    assert {change.path for change in forward if change.old is None} == after.keys() - before.keys()
    assert {change.path for change in forward if change.new is None} == before.keys() - after.keys()


@given(trees(), trees())
def test_the_other_way_round_everything_is_swapped(old: Directory, new: Directory) -> None:
    forward = list(diff_trees(old, new))
    swapped = [
        dataclasses.replace(
            change,
            old=change.new,
            new=change.old,
            old_first=change.new_first,
            new_first=change.old_first,
            old_names=change.new_names,
            new_names=change.old_names,
        )
        for change in diff_trees(new, old)
    ]
    assert list(map(facts, swapped)) == list(map(facts, forward))


def facts(change: Change) -> tuple[object, ...]:
    """All of a change, with paths for places."""
    return (
        change.path,
        change.old,
        change.new,
        change.aspects,
        change.xattrs,
        change.old_link,
        change.new_link,
        change.old_names,
        change.new_names,
    )


@given(trees(), st.data())
def test_removing_a_name_says_no_more_than_that(root: Directory, data: st.DataObject) -> None:
    """Also for hard links: the names that are left are not reported for the one that is gone."""
    smaller = copy_tree(root)
    links = [
        (parent, name)
        for _, _, parent in iter_entries(smaller)
        if isinstance(parent, Directory)
        for name, entry in parent.entries.items()
        if isinstance(entry, HardLink)
    ]
    if not links:
        return
    parent, name = data.draw(st.sampled_from(links))
    entry = parent.entries.pop(name)
    assert isinstance(entry, HardLink)
    if entry.inode.nlink:
        entry.inode.nlink -= 1
    else:  # a count below zero cannot be: then it is the count that differs as well
        return
    (change,) = diff_trees(root, smaller)
    assert kind(change) == "removed"


def test_names_come_in_byte_order_with_all_below() -> None:
    old = tree({b"gone": tree({b"b": file(), b"a": file()}), b"type": tree({b"x": file()})})
    new = tree({b"come": tree({b"c": tree({b"d": file()})}), b"type": file(b"")})
    found = [(kind(change), change.path) for change in diff_trees(old, new)]
    assert found == [
        ("added", b"/come"),
        ("added", b"/come/c"),
        ("added", b"/come/c/d"),
        ("removed", b"/gone"),
        ("removed", b"/gone/a"),
        ("removed", b"/gone/b"),
        ("changed", b"/type"),
        ("removed", b"/type/x"),
    ]


def test_depth_is_no_limit() -> None:
    old = new = tree({})
    for _ in range(20000):
        old, new = tree({b"d": old}), tree({b"d": new})
    deepest = new
    while deepest.entries:
        below = deepest.entries[b"d"]
        assert isinstance(below, Directory)
        deepest = below
    deepest.entries[b"f"] = file()
    # Old and new share the deepest directory, so that it has the file in both.
    assert changes(old, new) == []


def test_a_change_of_type_says_what_else_is_different() -> None:
    link = Symlink(mode=stat.S_IFLNK | 0o777, target=b"x")
    assert aspects(file(), link) == (Aspect.TYPE, Aspect.MODE)
    block = Device(mode=stat.S_IFBLK | 0o644, rdev=1)
    assert aspects(block, Device(mode=stat.S_IFCHR | 0o644, rdev=1)) == (Aspect.TYPE,)


def test_xattrs_are_named_by_key() -> None:
    change = one(
        file(xattrs={b"user.b": b"1", b"user.same": b"", b"user.gone": b""}),
        file(xattrs={b"user.b": b"2", b"user.same": b"", b"user.come": b""}),
    )
    assert change is not None
    assert change.xattrs == (b"user.b", b"user.come", b"user.gone")
    # Neither the order of a mapping nor its type matters.
    assert aspects(file(xattrs={b"a": b"", b"b": b""}), file(xattrs={b"b": b"", b"a": b""})) == ()


def test_special_files_have_a_size_in_dumps() -> None:
    for one_kind in (
        Fifo(mode=stat.S_IFIFO, size=1),
        Socket(mode=stat.S_IFSOCK, size=1),
        Device(mode=stat.S_IFCHR, rdev=1, size=1),
    ):
        assert aspects(one_kind, copy_of(one_kind, size=2)) == (Aspect.SIZE,)
        assert aspects(one_kind, copy_of(one_kind)) == ()


@pytest.mark.parametrize("algorithm", Algorithm)
def test_contents_are_the_same_wherever_they_are(algorithm: Algorithm) -> None:
    data = b"x" * 4999
    digest = digest_bytes(data, Params(algorithm=algorithm))
    notes = Notes()
    assert aspects(file(data), file(stored(digest), 4999), notes) == ()
    assert aspects(file(stored(digest), 4999), file(data), notes) == ()
    assert (notes.moved, notes.first_moved) == (2, b"/f")
    other = b"y" + data[1:]
    assert aspects(file(other), file(stored(digest), 4999), notes) == (Aspect.CONTENT,)
    assert notes.moved == 2


def test_contents_without_digest_are_not_taken_for_the_same() -> None:
    nameless = External(None, b"x/y")
    known = stored(bytes(32))
    notes = Notes()
    assert aspects(file(nameless), file(External(None, b"x/y")), notes) == ()
    assert (notes.unknown, notes.first_unknown) == (1, b"/f")
    assert aspects(file(nameless), file(External(None, b"x/z")), notes) == (Aspect.PAYLOAD,)
    assert aspects(file(nameless), file(nameless, 4999), notes) == (Aspect.CONTENT,)
    assert aspects(file(nameless), file(known), notes) == (Aspect.DIGEST,)
    assert aspects(file(known), file(nameless), notes) == (Aspect.DIGEST,)
    assert aspects(file(nameless), file(b"z" * 5000), notes) == (Aspect.DIGEST,)
    stamp = Stamp(0, 0, 0, 0, 0)
    assert aspects(file(Unread(b"f", stamp)), file(Unread(b"f", stamp)), notes) == ()
    assert notes.unknown == 2


def located(*pieces: tuple[int, Blob | None, int]) -> Located:
    return Located([Piece(*piece) for piece in pieces])


def test_located_contents_are_the_same_where_they_are_the_same_bytes_of_the_same_blobs() -> None:
    notes = Notes()
    tar, same = Blob(1, 9000, bytes(32), b"00/tar"), Blob(3, 9000, bytes(32), b"00/tar")
    here = file(located((4000, tar, 512), (1000, None, 0)))
    assert aspects(here, file(located((4000, same, 512), (1000, None, 0))), notes) == ()
    assert aspects(here, file(located((4000, same, 512), (1000, None, 0)), 4999)) == (Aspect.CONTENT,)
    for other in [
        located((4000, tar, 1024), (1000, None, 0)),
        located((5000, tar, 512)),
        located((4000, tar._replace(digest=b"1" * 32), 512), (1000, None, 0)),
        located((4000, None, 0), (1000, tar, 512)),
    ]:
        assert aspects(here, file(other), notes) == (Aspect.PAYLOAD,)
    assert notes.unknown == 0
    for image in (Blob(0, 1 << 20), Blob(0, 1 << 21)):
        inside, moved = file(located((5000, image, 4096))), file(located((5000, Blob(0, 1 << 20), 8192)))
        assert aspects(inside, moved, notes) == aspects(moved, inside, notes) == ()
        assert aspects(here, inside, notes) == (Aspect.PAYLOAD,)
    assert notes.unknown == 4
    notes = Notes()
    nameless = Blob(1, 9000, None, b"tar")
    assert aspects(file(located((5000, nameless, 0))), file(located((5000, nameless, 0))), notes) == ()
    assert (notes.unknown, notes.first_unknown) == (1, b"/f")


def test_of_located_contents_no_digest_is_known() -> None:
    notes = Notes()
    here = file(located((5000, Blob(1, 9000, bytes(32), b"00/tar"), 512)))
    unread = Unread(b"f", Stamp(0, 0, 0, 0, 0))
    cases: list[tuple[Content, Aspect]] = [
        (stored(bytes(32)), Aspect.DIGEST),
        (b"x" * 5000, Aspect.DIGEST),
        (External(None, b"x/y"), Aspect.PAYLOAD),
        (External(None, None), Aspect.PAYLOAD),
        (unread, Aspect.PAYLOAD),
    ]
    for content, aspect in cases:
        assert aspects(here, file(content), notes) == (aspect,)
        assert aspects(file(content), here, notes) == (aspect,)
    assert notes.unknown == 0


def test_blobs_are_objects_to_fetch() -> None:
    image, tar = Blob(0, 4096), Blob(1, 9000, bytes(32), b"00/tar")
    root = tree({b"a": file(located((10, tar, 0), (10, image, 512), (10, tar, 20))), b"b": file(stored(bytes(32)), 7)})
    assert objects_of(tree({b"a": root.entries[b"a"]})) == {bytes(32): 9000}
    assert list(iter_objects(root)) == [(b"00/tar", bytes(32), 9000), (object_path(bytes(32)), bytes(32), 7)]
    unread = file(Unread(b"f", Stamp(0, 0, 0, 0, 0)))
    assert list(objects_of_file(unread)) == list(objects_of_file(file(b"x"))) == []


def test_objects_of_the_same_contents_may_have_other_names() -> None:
    assert aspects(file(stored(bytes(32))), file(External(bytes(32), b"elsewhere"))) == (Aspect.PAYLOAD,)
    assert aspects(file(stored(bytes(32))), file(stored(bytes(31) + b"x"))) == (Aspect.CONTENT,)


def test_empty_files_are_empty_however_they_are_described() -> None:
    empty = RegularFile(mode=stat.S_IFREG | 0o644, size=0, content=External(None, b"a/b"))
    assert aspects(file(b""), empty) == ()
    assert objects_of(tree({b"f": empty})) == {}


def test_digests_of_two_algorithms_cannot_be_compared() -> None:
    notes = Notes()
    assert aspects(file(stored(bytes(32))), file(stored(bytes(64))), notes) == ()
    assert aspects(file(External(bytes(32), b"p")), file(External(bytes(64), b"p")), notes) == ()
    assert (notes.incomparable, notes.first_incomparable) == (2, b"/f")
    assert aspects(file(External(bytes(32), b"p")), file(External(bytes(64), b"q")), notes) == (Aspect.PAYLOAD,)


def links(tree: Directory, other: Directory) -> list[tuple[bytes, bytes | None, bytes | None]]:
    found = list(diff_trees(tree, other))
    assert all(change.aspects in {(Aspect.LINKS,), ()} for change in found)
    return [(change.path, change.old_link, change.new_link) for change in found]


def group(*names: bytes, primary: int = 0, nlink: int | None = None) -> dict[bytes, Entry]:
    inode = file(nlink=len(names) if nlink is None else nlink)
    entries: dict[bytes, Entry] = {name: HardLink(inode) for name in names}
    entries[names[primary]] = inode
    return entries


def test_links_are_compared_as_a_structure() -> None:
    together = tree(group(b"a", b"b", b"c"))
    assert links(together, tree(group(b"a", b"b", b"c", primary=2))) == []
    apart = tree({**group(b"a", b"b"), **group(b"c")})
    assert links(together, apart) == [(b"/c", b"/a", None)]
    assert links(apart, together) == [(b"/c", None, b"/a")]
    regrouped = tree({**group(b"a"), **group(b"b", b"c")})
    assert links(apart, regrouped) == [(b"/b", b"/a", None), (b"/c", None, b"/b")]
    assert links(together, regrouped) == [(b"/b", b"/a", None), (b"/c", b"/a", b"/b")]


def test_the_first_name_may_go_or_come() -> None:
    assert links(tree(group(b"a", b"b", b"c")), tree(group(b"b", b"c"))) == [(b"/a", None, None)]
    assert links(tree(group(b"b", b"c")), tree(group(b"a", b"b", b"c"))) == [(b"/a", None, None)]
    assert links(tree(group(b"a", b"b")), tree(group(b"a", b"b", b"c"))) == [(b"/c", None, b"/a")]


def test_link_counts_that_names_do_not_explain_are_a_difference() -> None:
    assert links(tree(group(b"a", b"b")), tree(group(b"a", b"b", nlink=3))) == [(b"/a", None, None)]
    assert links(tree(group(b"a")), tree(group(b"a", nlink=2))) == [(b"/a", None, None)]
    change, added = diff_trees(tree(group(b"a", b"b")), tree(group(b"a", b"b", b"c", nlink=2)))
    assert (change.path, change.aspects, change.old_names, change.new_names) == (b"/a", (Aspect.LINKS,), 2, 3)
    assert (added.path, added.old_names, added.new_names) == (b"/c", 1, 3)


def test_an_inode_with_several_names_is_compared_once() -> None:
    inode = file(b"other", nlink=2)
    assert changes(tree(group(b"a", b"b")), tree({b"b": inode, b"a": HardLink(inode)})) == [(b"/a", (Aspect.CONTENT,))]


def test_an_ignored_aspect_hides_only_itself() -> None:
    old, new = file(b"one", uid=1), file(b"two", uid=2)
    found = changes(tree({b"f": old}), tree({b"f": new}), ignore={Aspect.CONTENT})
    assert found == [(b"/f", (Aspect.OWNER,))]
    linked = tree(group(b"a", b"b"))
    assert changes(linked, tree({**group(b"a"), **group(b"b")}), ignore={Aspect.LINKS}) == []


def test_objects_are_counted_once() -> None:
    digest = bytes(32)
    root = tree(
        {
            b"a": file(stored(digest), 70),
            b"b": file(stored(digest), 70),
            b"c": file(External(None, b"x/y"), 80),
            b"d": file(External(None, None), 90),
            b"e": file(b"inline"),
        }
    )
    assert objects_of(root) == {digest: 70, b"x/y": 80}
