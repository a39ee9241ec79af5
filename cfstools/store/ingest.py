"""From files not read yet to digests, inline contents and objects."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from cfstools.errors import InputError, SourceChanged, UsageError, naming, os_error
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.store.stream import SMALL
from cfstools.store.writer import StoreWriter
from cfstools.tree.model import Content, Directory, External, RegularFile, Stamp, Unread
from cfstools.tree.walk import iter_inodes
from cfstools.verity import DEFAULT, Params, digest_bytes, hash_fd, object_path

# Files of up to this size are kept inside the image (composefs format, section 5.2).
INLINE_THRESHOLD = 64

_TASK_FILES = 64
_TASK_BYTES = 8 << 20


class Blobs(Protocol):
    """Where contents that are still unread come from. Used from several threads."""

    def open(self, unread: Unread) -> int:
        """A descriptor of the regular file, at its start, which the caller closes. Raises ``CfsError``."""


class MemoryBlobs:
    """Contents held in memory files, one descriptor each: for trees a program makes up, and for tests."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}

    def add(self, path: bytes, data: bytes) -> Unread:
        """Keep *data* as the contents of *path*; the result goes into a ``RegularFile``."""
        try:
            fd = os.memfd_create("contents", os.MFD_CLOEXEC)
            self._files[path] = fd
            with open(os.dup(fd), "wb") as file:
                file.write(data)
            return Unread(path, stamp(os.fstat(fd)))
        except OSError as error:
            raise os_error(error, "cannot keep contents in memory") from error

    def open(self, unread: Unread) -> int:
        """A new descriptor of the contents."""
        fd = self._files.get(unread.path)
        if fd is None:
            raise InputError("no such contents", subject=os.fsdecode(unread.path))
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open", subject=os.fsdecode(unread.path)) from error

    def close(self) -> None:
        """Let go of all contents."""
        while self._files:
            os.close(self._files.popitem()[1])


@dataclass(frozen=True, kw_only=True)
class IngestReport(Report):
    """Regular files that were read, by where their contents went; what the store did is in the writer's report."""

    empty_files: int
    inline_files: int
    inline_bytes: int
    external_files: int
    external_bytes: int


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file with this *status*."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def ingest(
    root: Directory,
    blobs: Blobs,
    writer: StoreWriter | None,
    *,
    params: Params = DEFAULT,
    inline_threshold: int = INLINE_THRESHOLD,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> IngestReport:
    """Read every file of the tree that is unread: its ``content`` becomes inline bytes or ``External``.

    Without *writer* only digests are computed. Objects are queued with the writer; committing it is left to the
    caller. ``threads`` is by default the number of usable processors. The result does not depend on it, and of
    several errors the one of the first file in tree order is raised: ``SourceChanged`` when a file is not as it
    was when it was met, ``InputError`` when it cannot be read, ``StoreError``. After an error the tree is partly
    read.
    """
    if writer is not None and writer.params != params:
        raise UsageError("the store's writer computes digests with other parameters")
    wanted = [
        (inode, inode.content)
        for inode in iter_inodes(root)
        if type(inode) is RegularFile and isinstance(inode.content, Unread)
    ]
    tasks = list(_tasks(wanted))
    run = _Run(blobs, writer, params, inline_threshold, progress)
    progress.start("read", sum(file.size for file, _ in wanted), "B")
    workers = min(len(tasks), threads or len(os.sched_getaffinity(0)))
    if workers <= 1:
        for number, task in enumerate(tasks):
            run.read(number, task)
    else:
        _in_threads(run, tasks, workers)
    progress.finish()
    return run.report()


def _tasks(wanted: list[tuple[RegularFile, Unread]]) -> Iterator[list[tuple[RegularFile, Unread]]]:
    """Cut the work into pieces that are worth handing to a thread."""
    task: list[tuple[RegularFile, Unread]] = []
    size = 0
    for item in wanted:
        task.append(item)
        size += item[0].size
        if len(task) >= _TASK_FILES or size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _in_threads(run: _Run, tasks: list[list[tuple[RegularFile, Unread]]], workers: int) -> None:
    with ThreadPoolExecutor(workers, thread_name_prefix="ingest") as pool:
        futures: list[Future[None]] = [pool.submit(run.read, number, task) for number, task in enumerate(tasks)]
        try:
            # In order: what comes before the task that failed is finished, so the first error is always the same.
            for future in futures:
                future.result()
        except BaseException:
            run.stop(-1)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Run:
    """What the tasks of one ingest share."""

    def __init__(
        self, blobs: Blobs, writer: StoreWriter | None, params: Params, inline_threshold: int, progress: Progress
    ) -> None:
        self._blobs = blobs
        self._writer = writer
        self._params = params
        self._inline_threshold = inline_threshold
        self._progress = progress
        self._lock = threading.Lock()
        # Tasks after this one need not be done any more.
        self._last: float = float("inf")
        self._empty = 0
        self._inline = [0, 0]
        self._external = [0, 0]

    def stop(self, number: int) -> None:
        """Leave out the tasks after *number*."""
        with self._lock:
            self._last = min(self._last, number)

    def report(self) -> IngestReport:
        return IngestReport(
            empty_files=self._empty,
            inline_files=self._inline[0],
            inline_bytes=self._inline[1],
            external_files=self._external[0],
            external_bytes=self._external[1],
        )

    def read(self, number: int, task: list[tuple[RegularFile, Unread]]) -> None:
        """Read the files of one task."""
        done: list[tuple[RegularFile, Content]] = []
        try:
            for file, unread in task:
                if number > self._last:
                    return
                done.append((file, self._contents(file, unread)))
        except BaseException:
            self.stop(number)
            raise
        self._settle(done)

    def _settle(self, done: list[tuple[RegularFile, Content]]) -> None:
        with self._lock:
            for file, content in done:
                file.content = content
                if isinstance(content, External):
                    self._external[0] += 1
                    self._external[1] += file.size
                elif file.size:
                    self._inline[0] += 1
                    self._inline[1] += file.size
                else:
                    self._empty += 1

    def _contents(self, file: RegularFile, unread: Unread) -> Content:
        if not file.size:
            return b""
        with naming(unread.path):
            fd = self._blobs.open(unread)
            try:
                content, size = self._read(fd, file.size)
                now = os.fstat(fd)
            except OSError as error:
                raise os_error(error, "cannot read") from error
            finally:
                os.close(fd)
            was = unread.stamp
            if (size, now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
                file.size,
                was.size,
                was.mtime_ns,
                was.ctime_ns,
            ):
                raise SourceChanged("changed while it was read")
            return content

    def _read(self, fd: int, size: int) -> tuple[Content, int]:
        """The contents of *fd*, expected to be *size* bytes, and the bytes really met."""
        if size <= self._inline_threshold:
            data = os.pread(fd, size + 1, 0)
            self._progress.advance(len(data))
            return data, len(data)
        if self._writer is not None:
            digest, met, _ = self._writer.add_fd(fd, progress=self._progress)
        elif size <= SMALL:
            data = os.pread(fd, size + 1, 0)
            self._progress.advance(len(data))
            digest, met = digest_bytes(data, self._params), len(data)
        else:
            digest, met = hash_fd(fd, self._params, progress=self._progress)
        return External(digest, object_path(digest)), met
