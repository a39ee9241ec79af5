"""Requests and their answers, without a kernel."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator

import pytest

from cfstools.errors import CfsError, Unsupported
from cfstools.mount.fuse import layout, server
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.store import MemoryStore
from cfstools.tree import Device, Directory, External, HardLink, RegularFile, Symlink
from cfstools.verity import digest_bytes, object_path
from cfstools.view.nodes import View
from tests.mount.fuse.asking import Asker, asker, counters, reading, records, starting

LARGE = bytes(range(256)) * 12_000


def external(data: bytes) -> External:
    digest = digest_bytes(data)
    return External(digest, object_path(digest))


def tree() -> Directory:
    """A small tree with the kinds of inodes."""
    linked = RegularFile(mode=0o100644, size=4, content=b"leaf", nlink=2)
    return Directory(
        mode=0o040755,
        uid=5,
        mtime_sec=-3,
        mtime_nsec=7,
        entries={
            b"etc": Directory(mode=0o040700, entries={b"leaf": linked, b"empty": Directory(mode=0o040755)}),
            b"again": HardLink(linked),
            b"large": RegularFile(mode=0o100600, size=len(LARGE), content=external(LARGE), gid=9),
            b"link": Symlink(mode=0o120777, target=b"etc/leaf"),
            b"null": Device(mode=0o020666, rdev=0x103),
            b"attributes": RegularFile(
                mode=0o100644, size=0, content=b"", xattrs={b"user.a": b"one", b"user.b": b"", b"trusted.x": b"hidden"}
            ),
        },
    )


def store() -> MemoryStore:
    held = MemoryStore()
    held.add(LARGE)
    return held


@pytest.fixture
def asking() -> Iterator[Asker]:
    nodes = TreeNodes(View(tree(), MemoryStore()), size=123_456)
    with asker(nodes, ObjectContents(nodes, [store()])) as made:
        yield made


def attributes(body: bytes, at: int = 16) -> tuple[int, ...]:
    return struct.unpack_from("=6Q10I", body, at)


def test_the_first_request_settles_the_protocol(asking: Asker) -> None:
    answered = asking.ask(layout.INIT, 0, starting())
    major, minor, readahead, flags = struct.unpack_from("=4I", answered.body)
    assert (major, minor, readahead) == (7, 45, 1 << 20)
    assert len(answered.body) == 64
    assert flags & layout.NO_OPEN_SUPPORT
    assert flags & layout.DO_READDIRPLUS
    assert not flags & layout.POSIX_ACL
    assert struct.unpack_from("=4I", asking.ask(layout.INIT, 0, starting(7, 33, 0)).body)[1:4:2] == (33, 0)


def test_a_newer_protocol_is_told_ours(asking: Asker) -> None:
    assert struct.unpack_from("=2I", asking.ask(layout.INIT, 0, starting(8, 0)).body) == (7, 0)


def test_an_older_protocol_is_refused(asking: Asker) -> None:
    with pytest.raises(Unsupported, match=r"Linux 5\.2"):
        asking.send(layout.INIT, 0, starting(7, 30))
    assert asking.receive().error == errno.EPROTO


def test_names_lead_to_nodes_and_their_attributes(asking: Asker) -> None:
    body = asking.ask(layout.LOOKUP, 1, b"large\0").body
    node, generation, valid, attributes_valid = struct.unpack_from("=4Q", body)
    assert (generation, valid, attributes_valid) == (0, 2**31 - 1, 2**31 - 1)
    ino, size, blocks, *_, mode, nlink, uid, gid, _, blksize, _ = attributes(body, 40)
    assert (ino, size, mode, nlink, uid, gid) == (node, len(LARGE), 0o100600, 1, 0, 9)
    assert (blocks, blksize) == (6000, 4096)
    assert asking.ask(layout.GETATTR, node).body[16:] == body[40:]
    assert asking.find(b"again") == asking.find(b"etc/leaf") != 0
    assert attributes(asking.ask(layout.GETATTR, asking.find(b"again")).body)[10] == 2
    root = attributes(asking.ask(layout.GETATTR, 1).body)
    assert root[0] == 1
    assert root[3] == root[4] == root[5] == 2**64 - 3
    assert root[6:9] == (7, 7, 7)
    assert root[10] == 3


@pytest.mark.parametrize("name", [b"no", b"lar", b"largely", b"", b"\xff", b"etc/leaf", b"n" * 255])
def test_what_is_not_there_is_answered_for_good(asking: Asker, name: bytes) -> None:
    answered = asking.ask(layout.LOOKUP, 1, name + b"\0")
    assert answered.error == 0
    assert struct.unpack_from("=4Q", answered.body)[::2] == (0, 2**31 - 1)


def test_handles_find_nodes_again(asking: Asker) -> None:
    etc = asking.find(b"etc")
    assert asking.find(b"etc/empty/../..") == 1
    assert asking.find(b"etc/.") == etc
    assert asking.find(b"..") == 1


def test_links_and_directories(asking: Asker) -> None:
    assert asking.ask(layout.READLINK, asking.find(b"link")).body == b"etc/leaf"
    assert asking.ask(layout.READLINK, 1).error == errno.EINVAL
    plain = records(asking.ask(layout.READDIR, 1, reading(0, 4096)).body, plus=False)
    assert [name for name, *_ in plain] == [b".", b"..", b"again", b"attributes", b"etc", b"large", b"link", b"null"]
    assert [kind for _, _, _, kind, _ in plain] == [4, 4, 8, 8, 4, 8, 10, 2]
    assert [offset for _, _, offset, _, _ in plain] == list(range(1, 9))
    plus = records(asking.ask(layout.READDIRPLUS, 1, reading(0, 4096)).body, plus=True)
    assert [record[:4] for record in plus] == [record[:4] for record in plain]
    assert plus[0][4] == plus[1][4] == bytes(128)
    assert plus[5][4] == asking.ask(layout.LOOKUP, 1, b"large\0").body
    assert records(asking.ask(layout.READDIR, asking.find(b"etc"), reading(1, 4096)).body, plus=False)[0][1] == 1
    assert asking.ask(layout.READDIR, asking.find(b"null"), reading(0, 4096)).error == errno.ENOTDIR


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("room", [0, 1, 24, 32, 151, 152, 160, 200, 320, 4096])
def test_listings_in_any_room_are_the_same(asking: Asker, *, plus: bool, room: int) -> None:
    number = layout.READDIRPLUS if plus else layout.READDIR
    whole = records(asking.ask(number, 1, reading(0, 1 << 20)).body, plus=plus)
    found: list[tuple[bytes, int, int, int, bytes]] = []
    while True:
        body = asking.ask(number, 1, reading(len(found), room)).body
        assert len(body) <= room
        if not body:
            break
        found += records(body, plus=plus)
    assert found == whole or room < (160 + 32 if plus else 40)
    assert found == whole[: len(found)]


def test_contents(asking: Asker) -> None:
    large, leaf = asking.find(b"large"), asking.find(b"again")
    assert asking.read(leaf).body == b"leaf"
    assert asking.read(leaf, 2, 1).body == b"a"
    assert asking.read(leaf, 4).body == b""
    assert asking.read(leaf, 2**63).body == b""
    assert asking.read(large).body == LARGE[: 1 << 20]
    assert asking.read(large, 1_000_001, 999).body == LARGE[1_000_001:1_001_000]
    assert asking.read(large, len(LARGE) - 1).body == LARGE[-1:]
    assert asking.read(large, len(LARGE)).body == b""
    assert asking.read(1).error == errno.EINVAL
    assert asking.read(asking.find(b"null")).error == errno.EINVAL
    assert counters(asking).waiting == 0


def test_attributes(asking: Asker) -> None:
    node = asking.find(b"attributes")

    def get(name: bytes, room: int) -> tuple[int, bytes]:
        answered = asking.ask(layout.GETXATTR, node, struct.pack("=2I", room, 0) + name + b"\0")
        return answered.error, answered.body

    assert get(b"user.a", 100) == (0, b"one")
    assert get(b"user.a", 3) == (0, b"one")
    assert get(b"user.a", 2) == (errno.ERANGE, b"")
    assert get(b"user.a", 0) == (0, struct.pack("=2I", 3, 0))
    assert get(b"user.b", 0) == (0, bytes(8))
    assert get(b"user.b", 1) == (0, b"")
    assert get(b"user.c", 1) == get(b"user.", 0) == get(b"", 9) == (errno.ENODATA, b"")
    assert get(b"trusted.x", 9) == (errno.ENODATA, b"")
    listed = asking.ask(layout.LISTXATTR, node, struct.pack("=2I", 100, 0)).body
    assert listed == b"user.a\0user.b\0"
    assert asking.ask(layout.LISTXATTR, node, struct.pack("=2I", 0, 0)).body == struct.pack("=2I", 14, 0)
    assert asking.ask(layout.LISTXATTR, node, struct.pack("=2I", 13, 0)).error == errno.ERANGE
    assert asking.ask(layout.LISTXATTR, 1, struct.pack("=2I", 13, 0)).body == b""
    assert asking.ask(layout.LISTXATTR, 1, struct.pack("=2I", 0, 0)).body == bytes(8)


def test_a_tree_without_attributes_is_asked_once() -> None:
    nodes = TreeNodes(View(Directory(mode=0o040755, xattrs={b"trusted.x": b"y"}), MemoryStore()))
    assert nodes.hidden == 1
    with asker(nodes, ObjectContents(nodes, [])) as asking:
        assert asking.ask(layout.GETXATTR, 1, struct.pack("=2I", 0, 0) + b"user.a\0").error == errno.ENOSYS
        assert asking.ask(layout.LISTXATTR, 1, struct.pack("=2I", 0, 0)).error == errno.ENOSYS


def test_the_rest_of_the_requests(asking: Asker) -> None:
    blocks, free, _, files, *_ = struct.unpack_from("=5Q3I", asking.ask(layout.STATFS).body)
    assert (blocks, free, files) == (31, 0, 8)
    for number in (layout.OPEN, layout.OPENDIR, layout.FLUSH, 46, 39, 52, 4095):
        assert asking.ask(number).error == errno.ENOSYS
    for number in (*layout.CHANGING,):
        assert asking.ask(number).error == errno.EROFS
    for number in (layout.RELEASE, layout.RELEASEDIR, layout.ACCESS, layout.DESTROY):
        assert asking.ask(number)[:2] == (0, b"")
    for number in (layout.FORGET, layout.BATCH_FORGET, layout.INTERRUPT):
        asking.send(number, 1, bytes(16))
    assert asking.nothing()
    for number in (layout.LOOKUP, layout.GETATTR, layout.READ, layout.READDIR, layout.READLINK, layout.GETXATTR):
        for node in (0, 9, 2**64 - 1):
            assert asking.ask(number, node, reading(0, 4096)).error == errno.ESTALE


class Waiting:
    """Contents that are never at hand, and come when they may."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def at_hand(self, node: int, offset: int, size: int) -> None:
        return

    def wait(self, node: int, offset: int, size: int) -> bytes:
        assert self.may.wait(30)
        if not offset:
            raise CfsError("no such luck")
        if offset == 2:
            raise OSError(errno.ENXIO, "odd")
        return b"%d" % offset


def test_reads_that_wait_are_counted_and_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_WAITING", 3)
    nodes, contents, failures = TreeNodes(View(tree(), MemoryStore())), Waiting(), []
    with asker(nodes, contents, threads=3, failed=lambda *words: failures.append(words)) as asking:
        for offset in range(3):
            asking.send(layout.READ, 5, reading(offset, 9))
        assert asking.read(5, 3).error == errno.EIO
        assert (counters(asking).waiting, counters(asking).failed) == (3, 1)
        assert len(asking.ask(layout.GETATTR).body) == 104  # others are answered meanwhile
        contents.may.set()
        answers = {asking.receive()[:2] for _ in range(3)}
        assert answers == {(errno.EIO, b""), (0, b"1"), (errno.ENXIO, b"")}
        assert asking.read(5, 7).body == b"7"
        counted = counters(asking)
        assert (counted.waiting, counted.failed, counted.reads, counted.waited, counted.bytes) == (0, 3, 5, 4, 2)
        assert [(node, str(error)) for node, error in failures] == [(5, "no such luck")]


def test_an_interrupt_of_what_nobody_waits_for_is_nothing() -> None:
    """Nor is one of a reader that goes on, or is unknown."""
    nodes, contents = TreeNodes(View(tree(), MemoryStore())), Waiting()
    with asker(nodes, contents) as asking:
        unique = asking.send(layout.READ, 5, reading(1, 9), thread=os.getpid())
        other = asking.send(layout.READ, 5, reading(3, 9), thread=0)
        for number in (unique, other, 12345):
            asking.send(layout.INTERRUPT, 0, struct.pack("=Q", number))
        asking.send(layout.INTERRUPT, 0, b"short")
        assert asking.nothing()
        contents.may.set()
        assert {asking.receive().body for _ in range(2)} == {b"1", b"3"}
        assert counters(asking).interrupted == 0


def test_an_answer_that_the_kernel_refuses_becomes_an_error(asking: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_fd: int, _parts: object) -> int:
        raise OSError(errno.EINVAL, "no such answer")

    monkeypatch.setattr(os, "writev", refuses)
    assert asking.ask(layout.STATFS).error == errno.EIO


@pytest.mark.parametrize(("number", "is_there"), [(errno.ENODEV, False), (errno.ENOENT, True)])
def test_an_answer_that_comes_too_late(
    asking: Asker, monkeypatch: pytest.MonkeyPatch, number: int, is_there: bool
) -> None:
    def late(_fd: int, _parts: object) -> int:
        raise OSError(number, "too late")

    monkeypatch.setattr(os, "writev", late)
    request = struct.pack("=2I2Q4I", 40, layout.STATFS, 2, 1, 0, 0, 0, 0)
    assert asking.session.answer(request) is is_there
