"""The loop over /dev/fuse: one thread reads requests and answers them, and what has to wait is done in a pool.

Nothing is kept about nodes the kernel knows: a number says all, so another process can go on where one was killed.
OPEN is answered "no such call": the kernel then opens and closes files by itself, and keeps what it has read of them.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from cfstools.errors import CfsError, Interrupted, Unsupported, os_error
from cfstools.linux.processes import is_being_killed
from cfstools.mount.fuse import layout
from cfstools.mount.fuse.base import Contents, Data, Nodes, packed_records
from cfstools.mount.lazy.waiting import Interruption, interruptible

MAX_WAITING = 4096
"""Reads that may wait at a time; more fail at once (EIO) instead of taking memory."""

_BACKGROUND = 64  # requests of the kernel's own, mostly readahead, before it waits
_CONGESTION = 48
_WANTED = (
    layout.ASYNC_READ
    | layout.EXPORT_SUPPORT
    | layout.DO_READDIRPLUS
    | layout.NO_OPEN_SUPPORT
    | layout.PARALLEL_DIROPS
    | layout.MAX_PAGES
    | layout.CACHE_SYMLINKS
    | layout.NO_OPENDIR_SUPPORT
    | layout.EXPLICIT_INVAL_DATA
    | layout.INIT_EXT
)

_SUCCESS = b""
_DOTS = (b".", b"..")

Answer = Data | int | None
"""What goes back: the body of an answer, the number of an error, or nothing (yet)."""


class Pool(Protocol):
    """Where calls that may wait are made: a :class:`~cfstools.threadpool.ThreadPool`."""

    def submit(self, function: Callable[..., None], *words: Any) -> object:
        """Call ``function(*words)`` in another thread."""


class Counters:
    """What a mount has done so far: ``requests`` in all, ``reads`` and their ``bytes``, of which ``waited`` were not at
    hand; ``waiting`` at present; ``failed`` reads, and ``interrupted`` ones."""

    __slots__ = ("bytes", "failed", "interrupted", "reads", "requests", "waited", "waiting")

    def __init__(self) -> None:
        self.requests = self.reads = self.bytes = self.waited = self.waiting = self.failed = self.interrupted = 0


def serve(
    device: int,
    nodes: Nodes,
    contents: Contents,
    *,
    pool: Pool,
    resume: bool = False,
    posix_acl: bool = False,
    ready: Callable[[], None] | None = None,
    failed: Callable[[int, CfsError], None] | None = None,
    counters: Counters | None = None,
) -> Counters:
    """Answer the requests of the mount behind *device* until it is unmounted; return the *counters*.

    Reads that have to wait are done in *pool*, whose owner closes it afterwards; *contents* are the owner's too. With
    *resume* a mount goes on that another process served: the kernel sends again what that had not answered. *posix_acl*
    lets the kernel apply ACLs and modes (mounts that others may look at, and in user namespaces). *ready* is called
    once, when the kernel has got the answer to its first request; *failed* with the node and the error of each read
    that failed, in any thread. Raises Unsupported for kernels that are too old.
    """
    session = Session(
        device,
        nodes,
        contents,
        pool=pool,
        posix_acl=posix_acl,
        ready=ready,
        failed=failed,
        counters=counters,
    )
    if resume:
        session.resend()
    session.run()
    return session.counters


class _Waiting(NamedTuple):
    """A read in the pool: the thread that asked for it, and what ends the wait."""

    thread: int
    interruption: Interruption


class Session:
    """The state of a connection: which reads wait, and what was counted. See :func:`serve`."""

    def __init__(
        self,
        device: int,
        nodes: Nodes,
        contents: Contents,
        *,
        pool: Pool,
        posix_acl: bool = False,
        ready: Callable[[], None] | None = None,
        failed: Callable[[int, CfsError], None] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._device = device
        self._nodes = nodes
        self._contents = contents
        self._pool = pool
        self._wanted = _WANTED | (layout.POSIX_ACL if posix_acl else 0)
        self._ready = ready
        self._failed = failed
        self.counters = counters or Counters()
        # Reads in the pool, by unique number; whoever removes one answers it.
        self._waiting: dict[int, _Waiting] = {}
        self._counting = threading.Lock()
        self._handlers = self._table()

    def resend(self) -> None:
        """Ask the kernel to send again what another process has read and not answered. Raises Unsupported."""
        try:
            os.write(self._device, layout.OUT_HEADER.pack(layout.OUT_SIZE, layout.NOTIFY_RESEND, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise Unsupported("resuming a mount needs Linux 6.9 or newer") from error
        self._start()

    def run(self) -> None:
        """Answer requests until the mount is gone."""
        device, answer = self._device, self.answer
        # One buffer for all: a new one for each request would be as long, and its pages be cleared each time.
        buffer = memoryview(bytearray(layout.MAX_REQUEST))
        buffers = (buffer,)
        while True:
            try:
                request = bytes(buffer[: os.readv(device, buffers)])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                raise os_error(error, "cannot read requests") from error
            if not answer(request):
                return

    def answer(self, request: bytes) -> bool:
        """Answer *request*, now or later; return whether the mount is still there."""
        if len(request) < layout.IN_HEADER.size:
            return True
        _, number, unique, node, _, _, _, _ = layout.IN_HEADER.unpack_from(request)
        self.counters.requests += 1
        handler = self._handlers.get(number)
        if handler is None:
            return self._send(unique, errno.ENOSYS)
        try:
            found = handler(unique, node, request)
        except KeyError:
            found = errno.ESTALE
        return True if found is None else self._send(unique, found)

    def _send(self, unique: int, found: Data | int) -> bool:
        """Send the answer to a request; return whether the mount is still there."""
        try:
            if isinstance(found, int):
                os.write(self._device, layout.OUT_HEADER.pack(layout.OUT_SIZE, -found, unique))
            else:
                length = layout.OUT_SIZE + len(found)
                os.writev(self._device, (layout.OUT_HEADER.pack(length, 0, unique), found))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            if error.errno == errno.EINVAL and not isinstance(found, int):  # the kernel does not take this answer
                return self._send(unique, errno.EIO)
            if error.errno != errno.ENOENT:  # nobody waits for the answer any more
                raise os_error(error, "cannot answer a request") from error
        return True

    def _table(self) -> dict[int, Callable[[int, int, bytes], Answer]]:
        return {
            **dict.fromkeys(layout.CHANGING, _read_only),
            **dict.fromkeys((layout.RELEASE, layout.RELEASEDIR, layout.ACCESS, layout.DESTROY), _done),
            **dict.fromkeys((layout.FORGET, layout.BATCH_FORGET), _nothing),
            layout.INIT: self._init,
            layout.LOOKUP: self._lookup,
            layout.GETATTR: self._getattr,
            layout.READLINK: self._readlink,
            layout.READ: self._read,
            layout.STATFS: self._statfs,
            layout.READDIR: self._readdir,
            layout.READDIRPLUS: self._readdirplus,
            layout.INTERRUPT: self._interrupt,
            layout.GETXATTR: self._getxattr,
            layout.LISTXATTR: self._listxattr,
        }

    def _init(self, unique: int, _node: int, request: bytes) -> Answer:
        fields = _fields(layout.INIT_IN, request)
        if fields is None:
            return errno.EINVAL
        major, minor, _, offered = fields
        if major < layout.MAJOR or (major == layout.MAJOR and minor < layout.LEAST_MINOR):
            self._send(unique, errno.EPROTO)
            raise Unsupported("file systems in user space need Linux 5.2 or newer here")
        out = layout.INIT_OUT.pack(
            layout.MAJOR,
            min(minor, layout.MINOR),
            layout.MAX_READ,
            self._wanted & offered,
            _BACKGROUND,
            _CONGESTION,
            layout.MAX_WRITE,
            1,
            layout.PAGES_PER_READ,
            0,
            0,
            0,
            0,
        )
        # A newer protocol gets our version, and asks again in it.
        if self._send(unique, out) and major == layout.MAJOR:
            self._start()
        return None

    def _start(self) -> None:
        if self._ready is not None:
            self._ready()
            self._ready = None

    def _lookup(self, _unique: int, node: int, request: bytes) -> Answer:
        name = _name(request, layout.IN_HEADER.size)
        if name is None:
            return errno.EINVAL
        # Only for handles of files that the kernel has forgotten.
        if name == b".":
            return self._nodes.entry(node)
        found = self._nodes.parent(node) if name == b".." else self._nodes.find(node, name)
        return self._nodes.entry(found) if found else layout.NO_ENTRY

    def _getattr(self, _unique: int, node: int, _request: bytes) -> Answer:
        return layout.ATTR_HEAD + self._nodes.entry(node)[layout.ENTRY_HEAD.size :]

    def _readlink(self, _unique: int, node: int, _request: bytes) -> Answer:
        target = self._nodes.target(node)
        return errno.EINVAL if target is None else target

    def _statfs(self, _unique: int, _node: int, _request: bytes) -> Answer:
        blocks = -(-self._nodes.size // 4096)
        return layout.STATFS_OUT.pack(blocks, 0, 0, self._nodes.count, 0, 4096, layout.MAX_NAME, 4096)

    def _read(self, unique: int, node: int, request: bytes) -> Answer:
        fields = _fields(layout.READ_IN, request)
        if fields is None:
            return errno.EINVAL
        _, offset, size, *_ = fields
        size = min(size, layout.MAX_READ)
        counters = self.counters
        counters.reads += 1
        try:
            found = self._contents.at_hand(node, offset, size)
        except OSError:  # whoever may wait finds out why
            found = None
        if found is not None:
            with self._counting:
                counters.bytes += len(found)
            self._send(unique, found)
            return None
        if len(self._waiting) >= MAX_WAITING:
            with self._counting:
                counters.failed += 1
            return errno.EIO
        counters.waited += 1
        self._waiting[unique] = waiting = _Waiting(layout.thread_in(request), Interruption())
        counters.waiting = len(self._waiting)
        self._pool.submit(self._wait, unique, waiting.interruption, node, offset, size)
        return None

    def _wait(self, unique: int, interruption: Interruption, node: int, offset: int, size: int) -> None:
        """Answer a read, in a thread of the pool."""
        found: Data | int
        try:
            if interruption.is_set:
                return
            with interruptible(interruption):
                found = self._contents.wait(node, offset, size)
        except Interrupted:
            found = errno.EINTR
        except KeyError:
            found = errno.ESTALE
        except OSError as error:
            found = error.errno or errno.EIO
        except CfsError as error:
            found = errno.EIO
            if self._failed is not None:
                self._failed(node, error)
        except BaseException:
            self._answer_waiting(unique, errno.EIO)
            raise
        self._answer_waiting(unique, found)

    def _answer_waiting(self, unique: int, found: Data | int) -> None:
        if self._waiting.pop(unique, None) is None:
            return  # was interrupted
        counters = self.counters
        with self._counting:
            counters.waiting = len(self._waiting)
            if isinstance(found, int):
                counters.failed += 1
            else:
                counters.bytes += len(found)
        with suppress(CfsError):
            self._send(unique, found)

    def _interrupt(self, _unique: int, _node: int, request: bytes) -> Answer:
        """Let go of a reader that is being killed. Other signals wait: most programs expect no EINTR from a file, and a
        page fault would end them with SIGBUS."""
        fields = _fields(layout.INTERRUPT_IN, request)
        if fields is None:
            return None
        waiting = self._waiting.get(fields[0])
        if waiting is None or not is_being_killed(waiting.thread) or self._waiting.pop(fields[0], None) is None:
            return None
        waiting.interruption.interrupt()
        self.counters.waiting = len(self._waiting)
        self.counters.interrupted += 1
        self._send(fields[0], errno.EINTR)
        return None

    def _readdir(self, _unique: int, node: int, request: bytes) -> Answer:
        return self._records(node, request, plus=False)

    def _readdirplus(self, _unique: int, node: int, request: bytes) -> Answer:
        return self._records(node, request, plus=True)

    def _records(self, node: int, request: bytes, *, plus: bool) -> Answer:
        """Records of a directory from an offset on, as many as fit. An offset is a number of records."""
        fields = _fields(layout.READ_IN, request)
        if fields is None:
            return errno.EINVAL
        nodes = self._nodes
        above = nodes.parent(node)
        if not above:
            return errno.ENOTDIR
        _, offset, room, *_ = fields
        room = min(room, layout.MAX_READ)
        records: list[Data] = []
        head = layout.DIRENT_PLUS.size if plus else layout.DIRENT.size
        for name, child in zip(_DOTS[offset:], (node, above)[offset:], strict=False):
            offset += 1
            room -= head + 8
            if room < 0:
                return b"".join(records)
            record = layout.DIRENT.pack(child, offset, len(name), 4) + name + layout.padding(len(name))
            records.append(layout.NO_NODE + record if plus else record)
        start = offset - len(_DOTS)
        records.append(
            nodes.records(node, start, room) if plus else packed_records(nodes, node, start, room, plus=False)
        )
        return b"".join(records) if len(records) > 1 else records[0]

    def _getxattr(self, _unique: int, node: int, request: bytes) -> Answer:
        name = _name(request, layout.IN_HEADER.size + layout.GETXATTR_IN.size)
        fields = _fields(layout.GETXATTR_IN, request)
        if name is None or fields is None:
            return errno.EINVAL
        if not self._nodes.has_xattrs:
            return errno.ENOSYS
        value = self._nodes.xattrs(node).get(name)
        return errno.ENODATA if value is None else _sized(value, fields[0])

    def _listxattr(self, _unique: int, node: int, request: bytes) -> Answer:
        fields = _fields(layout.GETXATTR_IN, request)
        if fields is None:
            return errno.EINVAL
        if not self._nodes.has_xattrs:
            return errno.ENOSYS
        return _sized(b"".join([name + b"\0" for name in self._nodes.xattrs(node)]), fields[0])


def _fields(form: struct.Struct, request: bytes) -> tuple[int, ...] | None:
    """The fields behind the header of *request*; ``None`` if it ends before them."""
    if len(request) < layout.IN_HEADER.size + form.size:
        return None
    return form.unpack_from(request, layout.IN_HEADER.size)


def _name(request: bytes, start: int) -> bytes | None:
    """The name that ends with a zero byte at *start* of *request*."""
    end = request.find(b"\0", start)
    return None if end < 0 else request[start:end]


def _sized(value: bytes, room: int) -> Answer:
    """*value*, or its length where that is asked for."""
    if not room:
        return layout.GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= room else errno.ERANGE


def _read_only(_unique: int, _node: int, _request: bytes) -> Answer:
    return errno.EROFS


def _done(_unique: int, _node: int, _request: bytes) -> Answer:
    return _SUCCESS


def _nothing(_unique: int, _node: int, _request: bytes) -> Answer:
    return None
