"""The target for requests at /dev/fuse: whatever comes there, the kernel gets an answer it can take, or none."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import cache

from cfstools.errors import CfsError
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.mount.fuse.server import Session
from cfstools.store import MemoryStore
from cfstools.tree import Device, Directory, External, HardLink, RegularFile, Symlink
from cfstools.verity import digest_bytes
from cfstools.view.nodes import View
from tests.mount.fuse.twins import InlinePool

LARGE = bytes(range(256)) * 4100

_MOST = 4 << 20
_SO_SNDBUFFORCE = 32
_HEADER = struct.Struct("=2IQ")
_ANSWER = struct.Struct("=IiQ")
_READS = (15, 28, 44)


def requests(data: bytes) -> None:
    """Each request has at most one answer, with its number and length, an error or no more than was asked for."""
    session, ours = _session()
    for request in split(data):
        try:
            session.answer(request)
        except CfsError:  # for a kernel that is too old: the mount ends
            ours.recv(_MOST)
            raise
        try:
            answer = ours.recv(_MOST)
        except BlockingIOError:
            continue
        length, error, unique = _ANSWER.unpack_from(answer)
        _, number, asked = _HEADER.unpack_from(request)
        assert unique == asked
        assert length == len(answer)
        assert -1000 < error <= 0
        assert not error or length == _ANSWER.size
        if number in _READS and not error:
            room = struct.unpack_from("=I", request, 56)[0]
            assert length - _ANSWER.size <= room
        try:
            ours.recv(1)
        except BlockingIOError:
            continue
        raise AssertionError("a second answer")


def split(data: bytes) -> list[bytes]:
    """The requests in *data* by the lengths in their headers; what is left is one as well."""
    found: list[bytes] = []
    while len(data) >= 4 and len(found) < 100:
        length = struct.unpack_from("=I", data)[0]
        if not 4 <= length <= len(data):
            break
        found.append(data[:length])
        data = data[length:]
    return [*found, data[: 1 << 16]]


def tree() -> Directory:
    """One inode of each kind, and two names of one."""
    leaf = RegularFile(mode=0o100644, size=4, content=b"leaf", nlink=2, xattrs={b"user.a": b"b" * 300})
    large = RegularFile(mode=0o100755, size=len(LARGE), content=External(digest_bytes(LARGE), None))
    missing = RegularFile(mode=0o100755, size=9, content=External(digest_bytes(b"missing"), b"a/path"))
    below = Directory(mode=0o041777, entries={b"%d" % number: HardLink(leaf) for number in range(50)})
    return Directory(
        mode=0o040755,
        mtime_sec=-1,
        entries={
            b"below": below,
            b"device": Device(mode=0o020600, rdev=5),
            b"large": large,
            b"leaf": leaf,
            b"link": Symlink(mode=0o120777, target=b"leaf"),
            b"missing": missing,
        },
    )


@cache
def _session() -> tuple[Session, socket.socket]:
    store = MemoryStore()
    store.add(LARGE)
    nodes = TreeNodes(View(tree(), store))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _MOST)
    ours.setblocking(False)
    # The descriptor is the session's now; both stay until the process ends.
    session = Session(theirs.detach(), nodes, ObjectContents(nodes, [store]), pool=InlinePool())
    return session, ours


FUSE_TARGETS: dict[str, Callable[[bytes], None]] = {"requests": requests}
