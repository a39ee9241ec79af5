"""Any request has the answer that a simple twin in memory gives, whatever the tree is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools.mount.choose import Check
from cfstools.mount.fuse import layout
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.mount.fuse.store_nodes import StoreNodes
from cfstools.store import MemoryStore
from cfstools.tree import Directory, External, HardLink, RegularFile
from cfstools.tree.model import Entry
from cfstools.verity import digest_bytes, object_path
from cfstools.view.nodes import View, walk
from tests.fuzz.fuse_targets import LARGE, requests
from tests.fuzz.fuse_targets import tree as small_tree
from tests.mount.fuse.asking import Asker, asker, records
from tests.mount.fuse.twins import MemoryContents, MemoryNodes
from tests.strategies import trees

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NUMBERS = st.one_of(st.sampled_from([1, 3, 5, 15, 17, 22, 23, 28, 44]), st.integers(0, 60), U32)
NODES = st.one_of(st.integers(0, 12), U64)
SIZES = st.one_of(st.integers(0, 5000), st.sampled_from([0, 1, 1 << 20, 2**32 - 1]), U32)
OFFSETS = st.one_of(st.integers(0, 60), st.integers(0, len(LARGE) + 9), U64)


@st.composite
def bodies(draw: st.DrawFn, names: list[bytes]) -> bytes:
    """What follows the header: what some kind of request has, or anything."""
    name = draw(st.one_of(st.sampled_from([*names, b".", b"..", b""]), st.binary(max_size=300)))
    return draw(
        st.one_of(
            st.just(name + b"\0"),
            st.builds(lambda offset, size: struct.pack("=2Q2IQ2I", 0, offset, size, 0, 0, 0, 0), OFFSETS, SIZES),
            st.builds(lambda size: struct.pack("=2I", size, 0) + name + b"\0", SIZES),
            st.binary(max_size=80),
        )
    )


def answers(asking: Asker, sent: list[tuple[int, int, bytes]]) -> list[Any]:
    """What comes back for each request."""
    found = []
    for number, node, body in sent:
        asking.send(number, node, body)
        found.append(None if asking.nothing() else asking.receive()[:2])
    return found


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_small_tree(data: st.DataObject) -> None:
    objects = {digest_bytes(LARGE): LARGE, digest_bytes(b"missing"): b"unneeded!"}
    store = MemoryStore()
    for held in objects.values():
        store.add(held)
    store.put(b"a/path", b"unneeded!")
    view = View(small_tree(), store)
    nodes, twin = TreeNodes(view, size=99_999), MemoryNodes(view, 99_999)
    missing = nodes.find(1, b"missing")
    request = st.tuples(NUMBERS.filter(lambda number: number != layout.INIT), NODES, bodies([b"leaf", b"7", b"user.a"]))
    sent = [
        (number, node, body)
        for number, node, body in data.draw(st.lists(request, max_size=30))
        if not (number == layout.READ and node == missing)  # its digest is that of something else
    ]
    with (
        asker(nodes, ObjectContents(nodes, [store]), threads=0) as one,
        asker(twin, MemoryContents(twin, objects), threads=0) as other,
    ):
        assert answers(one, sent) == answers(other, sent)


@given(trees())
@settings(max_examples=40, deadline=None)
def test_any_tree(root: Directory) -> None:
    view = View(root, MemoryStore())
    nodes, twin = TreeNodes(view), MemoryNodes(view)
    assert (nodes.count, nodes.has_xattrs) == (twin.count, twin.has_xattrs)
    for node in range(1, nodes.count + 1):
        assert nodes.entry(node) == twin.entry(node)
        assert nodes.parent(node) == twin.parent(node)
        assert nodes.target(node) == twin.target(node)
        assert dict(nodes.xattrs(node)) == dict(twin.xattrs(node))
        listed = list(nodes.listing(node))
        assert listed == list(twin.listing(node))
        for at, (name, child) in enumerate(listed):
            assert nodes.find(node, name) == child
            assert nodes.find(node, name + b"\0") == nodes.find(node, name[:-1] + b"\xff\xff") == 0
            assert list(nodes.listing(node, at)) == listed[at:]
            for room in (0, 160, 161, 500, 1 << 20):
                assert bytes(nodes.records(node, at, room)) == twin.records(node, at, room)
        assert bytes(nodes.records(node, len(listed), 1 << 20)) == bytes(nodes.records(node, 2**64, 1 << 20)) == b""
        found, inode = nodes.content(node), twin.nodes[node - 1]
        if isinstance(inode, RegularFile):
            assert found is not None
            assert found[0] == inode.size
            _same_content(found[1], inode.content)
        else:
            assert found is None
    names = sum(1 for _ in walk(view)) - 1
    assert sum(len(list(nodes.listing(node))) for node in range(1, nodes.count + 1)) == names


def _same_content(found: object, wanted: object) -> None:
    if not isinstance(wanted, External):
        assert found == wanted
        return
    assert isinstance(found, External)
    assert found.digest == wanted.digest
    plain = wanted.digest is not None and wanted.payload == object_path(wanted.digest)
    assert found.payload == (None if plain else wanted.payload)


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_bytes(data: bytes) -> None:
    requests(data)
    requests(struct.pack("=2I2Q", 40 + len(data), data[0] if data else 0, 8, 3) + bytes(16) + data)


@given(st.sets(st.one_of(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64)), max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_store_form(digests: set[bytes]) -> None:
    sizes = {digest: number for number, digest in enumerate(sorted(digests))}
    nodes = StoreNodes(sizes)
    assert nodes.size == sum(sizes.values())
    for digest, size in sizes.items():
        prefix, name = object_path(digest).split(b"/")
        node = nodes.find(nodes.find(1, prefix), name)
        assert nodes.content(node) is not None
        assert layout.length_in(nodes.entry(node), 0) == size
        assert prefix.upper() == prefix or nodes.find(1, prefix.upper()) == 0
        assert nodes.find(node, name) == nodes.find(1, name) == 0
        assert nodes.find(nodes.find(1, prefix), name[:-1]) == 0
    listed = [prefix + name for prefix, directory in nodes.listing(1) for name, _ in nodes.listing(directory)]
    assert listed == sorted(digest.hex().encode() for digest in digests)
    assert list(nodes.listing(1, 3)) == list(nodes.listing(1))[3:]
    found = records(nodes.records(1, 1, 1 << 20), plus=True)
    assert [(name, child) for name, child, *_ in found] == list(nodes.listing(1))[1:]
    for node in (0, nodes.count + 1, 2**64 - 1):
        with pytest.raises(KeyError):
            nodes.entry(node)


@contextmanager
def wide(names: int) -> Iterator[Asker]:
    """A directory of many names of one file."""
    leaf = RegularFile(mode=0o100644, size=0, content=b"")
    entries: dict[bytes, Entry] = {b"%08d" % number: HardLink(leaf) for number in range(names)}
    root = Directory(mode=0o040755, entries={**entries, b"00000000": leaf})
    nodes = TreeNodes(View(root, MemoryStore()))
    with asker(nodes, ObjectContents(nodes, [])) as asking:
        yield asking


def test_a_huge_directory() -> None:
    with wide(100_000) as asking:
        found: list[Any] = []
        while body := asking.ask(layout.READDIR, 1, struct.pack("=2Q2IQ2I", 0, len(found), 1 << 20, 0, 0, 0, 0)).body:
            found += records(body, plus=False)
        assert len(found) == 100_002
        assert [name for name, *_ in found[2:]] == [b"%08d" % number for number in range(100_000)]
        assert asking.find(b"00099999") == asking.find(b"00000000") != 0


def test_a_deep_tree() -> None:
    """3,000 directories, each in the other: no recursion."""
    root = inner = Directory(mode=0o040755)
    for _ in range(3000):
        below = Directory(mode=0o040755)
        inner.entries[b"d"] = below
        inner = below
    nodes = TreeNodes(View(root, MemoryStore()))
    assert nodes.count == 3001
    assert nodes.parent(3001) == 3000


@pytest.mark.parametrize("check", Check)
def test_the_largest_file(check: Check) -> None:
    """Attributes of 2^63 - 1 bytes; reading fails, for no object is there."""
    size = 2**63 - 1
    large = RegularFile(mode=0o100644, size=size, content=External(bytes(32), None), mtime_nsec=4_000_000_000)
    nodes = TreeNodes(View(Directory(mode=0o040755, entries={b"large": large}), MemoryStore()))
    with asker(nodes, ObjectContents(nodes, [MemoryStore()], check=check)) as asking:
        node = asking.find(b"large")
        attributes = struct.unpack_from("=6Q10I", asking.ask(layout.GETATTR, node).body, 16)
        assert attributes[1:3] == (size, 2**54)
        assert attributes[6:9] == (999_999_999,) * 3
        for offset in (0, size - 1):
            assert asking.read(node, offset).error == 5
        assert asking.read(node, size).body == b""


def test_the_tables_stay_small() -> None:
    """At most 300 bytes for an inode beyond names, targets, attributes and small contents."""
    root = Directory(mode=0o040755)
    extra = 0
    for number in range(5000):
        content = External(digest_bytes(b"%d" % number), None)
        root.entries[b"%d" % number] = RegularFile(mode=0o100644, size=1000, content=content)
        extra += len(b"%d" % number)
    tables = TreeNodes(View(root, MemoryStore()))._tables
    size = sum(value.__sizeof__() for value in vars(tables).values())
    assert size < 5001 * 300 + extra
