"""A view as files on disk: directories first, then all else in parallel, hard links, attributes of directories."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from cfstools.errors import CfsError, ImageError, InputError, Interrupted, LimitExceeded, os_error
from cfstools.formats.escape import escape_text
from cfstools.linux.files import MAX_PATH, close, open_below
from cfstools.text import shown_path
from cfstools.threadpool import Call, ThreadPool
from cfstools.view.disk_inodes import DEVICES, InodeWriter, Spot, Tally
from cfstools.view.nodes import Node, View, walk

_JOB_FILES = 64
_JOB_BYTES = 8 << 20
_AHEAD = 8  # jobs waiting for each thread
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NO_NAMES = frozenset({b"", b".", b".."})


@dataclass(slots=True)
class _Job:
    """Files of one directory that are made together: their names, paths and nodes."""

    parent: bytes
    files: list[tuple[bytes, bytes, Node]]
    size: int


class Extraction:
    """One extraction of *view* into the new directory *directory*, which is open as *top*."""

    def __init__(self, view: View, directory: bytes, top: int, writer: InodeWriter) -> None:
        self._view = view
        self._place = directory.rstrip(b"/")
        self._top = top
        self._status = os.fstat(top)
        self._writer = writer
        self._directories: list[tuple[bytes, Node]] = []
        self._links: list[tuple[bytes, bytes, Node]] = []
        self._tally = Tally()

    def run(self, threads: int) -> Tally:
        """Make everything; what was done, and what was left out. Raises CfsError naming the file."""
        jobs = self._jobs()
        if threads > 1:
            self._in_threads(jobs, threads)
        else:
            for job in jobs:
                self._tally.add(self._make(job))
        for first, path, node in self._links:
            self._link(first, path, node)
        # From the depths up: nothing changes a directory any more once it has its time, and its mode may close it.
        for path, node in reversed(self._directories):
            self._finish(path, node)
        return self._tally

    def _in_threads(self, jobs: Iterator[_Job], threads: int) -> None:
        with ThreadPool(threads, "extract") as workers:
            waiting: deque[Call[Tally]] = deque()
            try:
                for job in jobs:
                    waiting.append(workers.submit(self._make, job))
                    if len(waiting) > threads * _AHEAD:
                        self._tally.add(waiting.popleft().result())
                while waiting:
                    self._tally.add(waiting.popleft().result())
            except BaseException:
                self._writer.stopped = True
                raise

    def _jobs(self) -> Iterator[_Job]:
        """Make every directory, and yield the files of one once it is there."""
        view, linked = self._view, self._view.linked
        firsts: dict[Node, bytes] = {}
        job = _Job(b"", [], 0)
        for path, name, node in walk(view):
            if node is not view.root:
                _check_name(name, path)
            parent = path[1 : -1 - len(name)]
            attributes = view.attributes(node)
            if stat.S_ISDIR(attributes.mode):
                self._directories.append((path[1:], node))
                if node is not view.root:
                    self._make_directory(parent, name, path)
                continue
            if node in linked and firsts.setdefault(node, path) is not path:
                self._links.append((firsts[node], path, node))
                continue
            if job.parent != parent or len(job.files) >= _JOB_FILES or job.size >= _JOB_BYTES:
                if job.files:
                    yield job
                job = _Job(parent, [], 0)
            job.files.append((name, path, node))
            job.size += attributes.size
        if job.files:
            yield job

    def _make_directory(self, parent: bytes, name: bytes, path: bytes) -> None:
        try:
            with self._opened(parent) as fd:
                os.mkdir(name, 0o700, dir_fd=fd)
        except OSError as error:
            raise self._failed(error, path) from error

    def _make(self, job: _Job) -> Tally:
        tally = Tally()
        path = job.parent
        try:
            with self._opened(job.parent) as fd:
                for name, path, node in job.files:
                    if self._writer.stopped:
                        raise Interrupted("interrupted")
                    self._writer.make(Spot(fd, name, path), node, tally)
        except OSError as error:
            raise self._failed(error, path) from error
        except ValueError as error:
            raise ImageError("a link or attribute holds a zero byte", where=escape_text(path)) from error
        except CfsError as error:
            if error.where is None and error.subject is None:
                error.subject = self._on_disk(path)
            raise
        return tally

    def _link(self, first: bytes, path: bytes, node: Node) -> None:
        if node in self._tally.absent:
            if DEVICES in self._tally.left_out:
                self._tally.leave_out(DEVICES, path)
            return
        try:
            (parent, _, name), (first_parent, _, first_name) = path[1:].rpartition(b"/"), first[1:].rpartition(b"/")
            with self._opened(first_parent) as source, self._opened(parent) as target:
                os.link(first_name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            raise self._failed(error, path) from error
        self._tally.done["hard_links"] += 1

    def _finish(self, path: bytes, node: Node) -> None:
        try:
            with self._opened(path) as fd:
                self._writer.finish_directory(fd, b"/" + path, node, self._tally)
        except OSError as error:
            raise self._failed(error, path) from error
        except InputError as error:
            error.subject = self._on_disk(path)
            raise
        self._tally.done["directories"] += 1

    def _opened(self, path: bytes) -> _Open:
        """Open a directory that was made, and has no attributes of the tree yet."""
        fd = open_below(self._top, path, _DIRECTORY)
        status = os.fstat(fd)
        if (status.st_dev, status.st_uid) != (self._status.st_dev, self._status.st_uid):
            close(fd)
            raise OSError(errno.EBUSY, "it was replaced while it was made")
        return _Open(fd)

    def _failed(self, error: OSError, path: bytes) -> CfsError:
        return os_error(error, "cannot write", subject=self._on_disk(path))

    def _on_disk(self, path: bytes) -> str:
        return shown_path(self._place + b"/" + path.lstrip(b"/"))


class _Open:
    """A descriptor that is closed at the end of a block."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_error: object) -> None:
        close(self._fd)


def content_total(view: View) -> int:
    """How many bytes all files of *view* have, each counted once."""
    linked, met, total = view.linked, set(), 0
    for _, _, node in walk(view):
        if node not in linked or node not in met:
            attributes = view.attributes(node)
            total += attributes.size if stat.S_ISREG(attributes.mode) else 0
        if node in linked:
            met.add(node)
    return total


def _check_name(name: bytes, path: bytes) -> None:
    """Raise unless a directory can have the name, so that no path leads anywhere by it."""
    if name in _NO_NAMES or b"\0" in name or b"/" in name:
        raise ImageError("no directory can have this name", where=escape_text(path))
    if len(path) > MAX_PATH:
        raise LimitExceeded(f"a path is longer than {MAX_PATH} bytes", where=escape_text(path[:200]) + "...")
