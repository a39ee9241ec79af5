"""Large objects that stay open with the hashes that their parts are compared with, so many as may."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from cfstools.errors import CfsError, CheckFailed
from cfstools.lifetime import Closable
from cfstools.linux.files import fd_limit
from cfstools.mount.lazy.waiting import again
from cfstools.view.contents import Contents

LEAF_BYTES = 64 << 20
"""Bytes of hashes that stay in memory: those of 8 GiB of objects."""
MAX_OPEN = 512
"""Objects that stay open, unless a quarter of the process's limit is less."""

_SPLIT = 32 << 20  # objects that are larger are hashed by several threads
_THREADS = 4

_T = TypeVar("_T")


class OpenFile:
    """An open object, and how many use it: the table of open objects is one user."""

    __slots__ = ("contents", "failure", "held", "threads", "users")

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.held = 0  # bytes of hashes that are counted
        self.threads = min(_THREADS, len(os.sched_getaffinity(0))) if contents.size > _SPLIT else 1
        self.users = 1
        self.failure: tuple[CheckFailed, _Stamp] | None = None  # of hashing the whole, and the state of the file then


class OpenFiles(Closable):
    """Open objects by node, made by *opener*; the least recently used are closed. Thread-safe."""

    def __init__(self, opener: Callable[[int], Contents]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._leaf_bytes = 0
        self._most = max(1, min(MAX_OPEN, fd_limit() // 4))

    def use(self, node: int, read: Callable[[OpenFile], _T]) -> _T:
        """Call *read* with the open object of *node*.

        If the object is wrong and another file is in its place by now, it is called once more: someone may have
        repaired the store. Raises as opening and *read* do.
        """
        opened = self.acquire(node) or self._add(node)
        before = _stamp(opened.contents)
        try:
            _fail_again(opened, before)
            return read(opened)
        except CheckFailed as error:
            _note_failure(opened, error, before)
            newer = self._replace(node, opened)
            if newer is None:
                raise
            self.release(opened)
            opened = newer
            return read(opened)
        finally:
            self._count(node, opened)
            self.release(opened)

    def acquire(self, node: int) -> OpenFile | None:
        """The open object of *node*, for :meth:`release`; ``None`` if it is not open."""
        if node not in self._open:
            return None
        with self._lock:
            opened = self._open.get(node)
            if opened is not None:
                self._open.move_to_end(node)
                opened.users += 1
            return opened

    def release(self, opened: OpenFile) -> None:
        """End a use."""
        with self._lock:
            opened.users -= 1
            is_last = not opened.users
        if is_last:
            opened.contents.close()

    def close(self) -> None:
        """Close all. Closing twice is allowed."""
        with self._lock:
            kept = list(self._open.values())
            self._open.clear()
            self._leaf_bytes = 0
        for opened in kept:
            self.release(opened)

    def _add(self, node: int) -> OpenFile:
        return self._put(node, OpenFile(self._opener(node)), None)

    def _put(self, node: int, made: OpenFile, instead: OpenFile | None) -> OpenFile:
        """Note *made*, unless there is another one than *instead* already; return which it is, in use."""
        with self._lock:
            opened = self._open.get(node)
            gone = [made]
            if opened is None or opened is instead:
                gone = [] if opened is None else [self._forget(node)]
                opened = self._open[node] = made
            opened.users += 1
            while len(self._open) > self._most:
                gone.append(self._forget(next(iter(self._open))))
        for old in gone:
            self.release(old)
        return opened

    def _replace(self, node: int, failed: OpenFile) -> OpenFile | None:
        """Open *node* anew; ``None`` if that is the same file, or does not go."""
        try:
            made = OpenFile(self._opener(node))
        except CfsError:
            return None
        if _is_same(made.contents, failed.contents):
            made.contents.close()
            return None
        return self._put(node, made, failed)

    def _count(self, node: int, opened: OpenFile) -> None:
        """Count the hashes that a use may have made, and close others if that is too many bytes."""
        leaves = opened.contents.leaves
        if leaves is None or opened.held:
            return
        gone = []
        with self._lock:
            if self._open.get(node) is opened and not opened.held:
                opened.held = leaves.held
                self._leaf_bytes += opened.held
            while self._leaf_bytes > LEAF_BYTES and len(self._open) > 1:
                gone.append(self._forget(next(iter(self._open))))
        for old in gone:
            self.release(old)

    def _forget(self, node: int) -> OpenFile:
        """Take out of the table; the caller releases it. The lock is held."""
        opened = self._open.pop(node)
        self._leaf_bytes -= opened.held
        return opened


_Stamp = tuple[int, int, int] | None


def _stamp(contents: Contents) -> _Stamp:
    """The state of a file whose whole is not checked yet."""
    fd = None if contents.is_prepared else contents.fileno()
    if fd is None:
        return None
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _note_failure(opened: OpenFile, error: CheckFailed, before: _Stamp) -> None:
    """Remember that the whole is wrong: a reader that tries block after block must not have it hashed each time."""
    if not opened.contents.is_prepared and before is not None:
        opened.failure = error, before


def _fail_again(opened: OpenFile, now: _Stamp) -> None:
    """Raise the error of a file that is as it was when it was found wrong."""
    if opened.failure is not None:
        error, before = opened.failure
        if before == now:
            raise again(error)
        opened.failure = None


def _is_same(one: Contents, other: Contents) -> bool:
    first, second = one.fileno(), other.fileno()
    if first is None or second is None:
        return True
    return os.path.samestat(os.fstat(first), os.fstat(second))
