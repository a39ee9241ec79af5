"""Requests as the kernel sends them, and a session that answers them without one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from cfstools.mount.fuse import layout
from cfstools.mount.fuse.base import Contents, Nodes
from cfstools.mount.fuse.server import Counters, Session
from cfstools.threadpool import ThreadPool
from tests.mount.fuse.twins import InlinePool

_HEADER = struct.Struct("=2I2Q4I")
_ANSWER = struct.Struct("=IiQ")
_MOST = 4 << 20
_SO_SNDBUFFORCE = 32


class Answered(NamedTuple):
    """An answer: the error, 0 for none, and what follows its header."""

    error: int
    body: bytes
    unique: int


class Asker:
    """Puts requests to a session over a pair of sockets, which keep requests and answers apart as /dev/fuse does."""

    def __init__(self, session: Session, ours: socket.socket) -> None:
        self.session = session
        self._ours = ours
        self._unique = 0

    def send(self, number: int, node: int = 1, body: bytes = b"", *, unique: int | None = None, thread: int = 0) -> int:
        """Send a request; return its unique number."""
        self._unique += 2
        unique = self._unique if unique is None else unique
        request = _HEADER.pack(_HEADER.size + len(body), number, unique, node, 0, 0, thread, 0) + body
        assert self.session.answer(request)
        return unique

    def raw(self, request: bytes) -> None:
        """Send any bytes."""
        self.session.answer(request)

    def receive(self, seconds: float = 20.0) -> Answered:
        """Wait for an answer, and check its form."""
        self._ours.settimeout(seconds)
        data = self._ours.recv(_MOST)
        length, error, unique = _ANSWER.unpack_from(data)
        assert length == len(data)
        assert -1000 < error <= 0
        assert not error or length == _ANSWER.size
        return Answered(-error, data[_ANSWER.size :], unique)

    def nothing(self) -> bool:
        """Whether there is no answer now."""
        self._ours.setblocking(False)
        try:
            self._ours.recv(_MOST, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def ask(self, number: int, node: int = 1, body: bytes = b"") -> Answered:
        """Send a request and wait for its answer."""
        unique = self.send(number, node, body)
        answered = self.receive()
        assert answered.unique == unique
        return answered

    def read(self, node: int, offset: int = 0, size: int = 1 << 20) -> Answered:
        """Read from a file."""
        return self.ask(layout.READ, node, reading(offset, size))

    def find(self, path: bytes) -> int:
        """The node at *path* by LOOKUP; 0 where the answer says that there is none."""
        node = 1
        for name in path.split(b"/"):
            answered = self.ask(layout.LOOKUP, node, name + b"\0")
            assert not answered.error, os.strerror(answered.error)
            node = struct.unpack_from("=Q", answered.body)[0]
        return node


def reading(offset: int, size: int) -> bytes:
    """The body of READ, READDIR and READDIRPLUS."""
    return struct.pack("=2Q2IQ2I", 0, offset, size, 0, 0, 0, 0)


def starting(major: int = 7, minor: int = 45, flags: int = 0xFFFFFFFF) -> bytes:
    """The body of INIT."""
    return struct.pack("=5I44x", major, minor, 1 << 17, flags, 0xFFFFFFFF)


@contextmanager
def asker(nodes: Nodes, contents: Contents, *, threads: int = 2, **options: object) -> Iterator[Asker]:
    """A session over *nodes* and *contents*, with *options* of :class:`Session`. Nothing waits without *threads*."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, ThreadPool(threads, "fuse") if threads else nullcontext(InlinePool()) as pool:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _MOST)
        session = Session(theirs.fileno(), nodes, contents, pool=pool, **options)  # type: ignore[arg-type]
        yield Asker(session, ours)


def records(body: bytes, *, plus: bool) -> list[tuple[bytes, int, int, int, bytes]]:
    """Directory records: name, node, next offset, type, entry."""
    found, at = [], 0
    while at < len(body):
        entry = b""
        if plus:
            entry = body[at : at + 128]
            at += 128
        node, offset, length, kind = struct.unpack_from("=2Q2I", body, at)
        at += 24
        found.append((body[at : at + length], node, offset, kind, entry))
        at += length + (-length & 7)
    assert at == len(body)
    return found


def counters(asking: Asker) -> Counters:
    """What the session has counted."""
    return asking.session.counters
