"""From files not read yet to digests, inline contents and objects."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, runtime_checkable

from cfstools import native
from cfstools.errors import InputError, SourceChanged, UsageError, naming, os_error
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.store.batch import ARENA_BYTES, BATCH_FILES, SMALL, BatchReader
from cfstools.text import counted
from cfstools.tree.model import KINDS, Content, Directory, External, RegularFile, Stamp, Unread
from cfstools.tree.walk import iter_inodes
from cfstools.verity import DEFAULT, Params, digest_bytes, hash_fd, object_path
from cfstools.workers import Call, Workers

if TYPE_CHECKING:
    from cfstools.store.cache import DigestCache, Met
    from cfstools.store.writer import StoreWriter

# Files of up to this size are kept inside the image (composefs format, section 5.2).
INLINE_THRESHOLD = 64

# What was found out about a file: its contents, those of the tree or as ``native.digest_files`` says; or nothing.
Result = Content | tuple[bytes, int, int] | None


class Blobs(Protocol):
    """Where contents that are still unread come from. Used from several threads."""

    def open(self, unread: Unread) -> int:
        """A descriptor of the regular file, at its start, which the caller closes. Raises ``CfsError``."""

    def name(self, unread: Unread) -> str:
        """What messages call the file: a path that other programs take as well, where it has one."""


@runtime_checkable
class RootedBlobs(Blobs, Protocol):
    """Blobs that lie at their paths below one directory, where they may be read without :meth:`open`."""

    root_fd: int


@runtime_checkable
class DatedBlobs(Blobs, Protocol):
    """Blobs on file systems that may make times up."""

    def times_matter(self, fd: int) -> bool:
        """Whether the file *fd* has changed if its times have."""


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
            raise InputError("no such contents", subject=self.name(unread))
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open", subject=self.name(unread)) from error

    def name(self, unread: Unread) -> str:
        """The path that was given with the contents."""
        return os.fsdecode(unread.path)

    def close(self) -> None:
        """Let go of all contents."""
        while self._files:
            close(self._files.popitem()[1])


class IngestReport(NamedTuple):
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
    with Ingest(
        blobs, writer, params=params, inline_threshold=inline_threshold, threads=threads, progress=progress
    ) as run:
        inodes = iter_inodes(root)
        run.add(inode for inode in inodes if type(inode) is RegularFile and isinstance(inode.content, Unread))
        return run.finish()


class Ingest:
    """Reads files as they are found: :func:`ingest` for a tree that is not whole yet.

    Threads start with the first files, so that reading overlaps with whatever finds them; with one thread all is
    read by :meth:`finish`. Errors are raised by :meth:`finish`, whenever they happen. Leaving the ``with`` block
    stops what is not done; no thread is left then. Files known to *cache* whose objects are in the writer's store
    are not opened.
    """

    def __init__(
        self,
        blobs: Blobs,
        writer: StoreWriter | None,
        *,
        params: Params = DEFAULT,
        inline_threshold: int = INLINE_THRESHOLD,
        threads: int | None = None,
        cache: DigestCache | None = None,
        progress: Progress = SILENT,
    ) -> None:
        if writer is not None and writer.params != params:
            raise UsageError("the store's writer computes digests with other parameters")
        threads = threads or len(os.sched_getaffinity(0))
        self._run = _Run(blobs, writer, params=params, inline_threshold=inline_threshold, threads=threads, cache=cache)
        self._block_size = params.block_size
        self._progress = progress
        # One is the thread that finds the files: it reads as well once it has found all.
        self._workers = Workers(threads - 1, "ingest") if threads > 1 else None
        self._calls: list[Call[None]] = []
        self._tasks: list[tuple[int, list[RegularFile]]] = []
        self._count = 0
        self._small: list[RegularFile] = []
        self._small_bytes = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add(self, files: Iterable[RegularFile]) -> None:
        """Read *files*, whose contents are unread; they are to be added in tree order."""
        files = list(files)
        sizes = [file.size for file in files]
        size = sum(sizes)
        self._bytes += size
        # In the arena of a batch each file is padded to blocks.
        padded = self._small_bytes + size + len(files) * self._block_size
        if padded <= ARENA_BYTES and len(self._small) + len(files) <= BATCH_FILES and max(sizes, default=0) <= SMALL:
            self._small += files
            self._small_bytes = padded
            return
        for file in files:
            self._add(file)

    def _add(self, file: RegularFile) -> None:
        size = file.size
        if size > SMALL:
            self._flush()
            self._submit([file])
            return
        padded = size + self._block_size
        if self._small_bytes + padded > ARENA_BYTES or len(self._small) >= BATCH_FILES:
            self._flush()
        self._small.append(file)
        self._small_bytes += padded

    def _flush(self) -> None:
        if self._small:
            self._submit(self._small)
            self._small, self._small_bytes = [], 0

    def _submit(self, files: list[RegularFile]) -> None:
        first = self._count
        self._count += len(files)
        if self._workers is not None:
            self._calls.append(self._workers.submit(self._run.read, first, files))
        else:
            self._tasks.append((first, files))

    def finish(self) -> IngestReport:
        """All files were added: read what is left and say what was read; raises the first error in tree order."""
        self._flush()
        with running_stage(self._progress, "read", self._bytes, "B") as stage:
            self._run.progress.show(stage)
            try:
                for first, files in self._tasks:
                    self._run.read(first, files)
                if self._workers is not None:
                    self._workers.help()
                for call in self._calls:
                    call.result()
            finally:
                self.stop()
            return self._run.report()

    def stop(self) -> None:
        """Leave out what is not done yet and wait for the threads."""
        self._run.stop(-1)
        if self._workers is not None:
            self._workers.stop()


def _unread(file: RegularFile) -> Unread:
    content = file.content
    assert isinstance(content, Unread)
    return content


def _false_size(met: int, size: int) -> InputError:
    """The error for a file that is as it was, and never had as many bytes as its file system says."""
    what = f"ends after {counted(met, 'byte')}" if met < size else "goes on"
    return InputError(f"{what}, though its file system says that it has {counted(size, 'byte')}")


def _sizes(files: Sequence[RegularFile], found: Sequence[Result]) -> int:
    """How many bytes the files have of which something was found out."""
    return sum([file.size for file, one in zip(files, found, strict=True) if one is not None])


def _met(read: Iterable[tuple[RegularFile, Result]]) -> Iterator[Met]:
    """What the cache is to remember of files that were read; nothing of those that images hold."""
    for file, one in read:
        digest = one[0] if isinstance(one, tuple) else one.digest if isinstance(one, External) else None
        if digest is not None:
            yield _unread(file).stamp, file.uid, file.mode, digest


class _LateStage:
    """Adds up what is advanced until the real stage is open: its total is known only when all files were added."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: Stage | None = None
        self._early = 0

    def advance(self, amount: int) -> None:
        with self._lock:
            if self._shown is None:
                self._early += amount
                return
        self._shown.advance(amount)

    def finish(self) -> None:
        pass

    def show(self, stage: Stage) -> None:
        with self._lock:
            self._shown = stage
        stage.advance(self._early)


class _Run:
    """What the tasks of one ingest share."""

    def __init__(
        self,
        blobs: Blobs,
        writer: StoreWriter | None,
        *,
        params: Params,
        inline_threshold: int,
        threads: int,
        cache: DigestCache | None,
    ) -> None:
        self._threads = threads
        self._cache = cache
        self._blobs = blobs
        self._writer = writer
        self._params = params
        self._inline_threshold = inline_threshold
        self._batch = (
            BatchReader(blobs.root_fd, writer, params, inline_threshold) if isinstance(blobs, RootedBlobs) else None
        )
        self.progress = _LateStage()
        self._lock = threading.Lock()
        # Files after this one need not be read any more, and what is wrong with it.
        self._last: float = float("inf")
        self._failure: BaseException | None = None
        self._empty = 0
        self._inline = [0, 0]
        self._external = [0, 0]

    def stop(self, position: int, failure: BaseException | None = None) -> None:
        """Leave out the files after *position*, because of *failure*."""
        with self._lock:
            if position < self._last:
                self._last = position
                self._failure = failure or self._failure

    def report(self) -> IngestReport:
        """What was read; raises what is wrong with the first file that could not be."""
        if self._failure is not None:
            raise self._failure
        return IngestReport(
            empty_files=self._empty,
            inline_files=self._inline[0],
            inline_bytes=self._inline[1],
            external_files=self._external[0],
            external_bytes=self._external[1],
        )

    def read(self, first: int, files: list[RegularFile]) -> None:
        """Read *files*, from number *first* in tree order on; what is wrong is kept for :meth:`report`."""
        position = first
        if position > self._last:
            return
        try:
            found = self._recall(files)
            left = [number for number, one in enumerate(found) if one is None] if None in found else []
            # Small files are in images, and so in no cache: they alone are no reason to sync.
            objects = [files[number] for number in left if files[number].size > self._inline_threshold]
            cache = self._cache if objects else None
            if cache is not None:
                since = cache.settle([_unread(file) for file in objects], self._blobs.open)
            for number, one in zip(left, self._read_together([files[number] for number in left]), strict=True):
                found[number] = one
                if one is None:
                    position = first + number
                    if position > self._last:
                        return
                    found[number] = self._contents(files[number])
            if cache is not None:
                cache.remember(_met((files[number], found[number]) for number in left), since)
        except BaseException as error:  # noqa: BLE001 - raised by report(), in the thread that asks for the result
            self.stop(position, error)
        else:
            self._settle(files, found)

    def _recall(self, files: Sequence[RegularFile]) -> list[Result]:
        """What the cache knows of *files* and, if they are objects, the store has."""
        writer = self._writer
        if self._cache is None or writer is None:
            return [None] * len(files)
        stamps = [file.content.stamp for file in files if isinstance(file.content, Unread)]
        known = self._cache.find(stamps, self._inline_threshold, writer.lookup)
        writer.count_shared(known.objects, known.object_bytes)
        self.progress.advance(known.object_bytes)
        found: list[Result] = [*known.found]
        return found

    def _read_together(self, files: list[RegularFile]) -> Sequence[Result]:
        if self._batch is None or not files or files[0].size > SMALL:
            return [None] * len(files)
        found = self._batch.read([_unread(file) for file in files])
        self.progress.advance(_sizes(files, found))
        return found

    def _settle(self, files: list[RegularFile], found: list[Result]) -> None:
        external, external_bytes, inline, inline_bytes, empty = native.give_contents(files, found, KINDS)
        with self._lock:
            self._external[0] += external
            self._external[1] += external_bytes
            self._inline[0] += inline
            self._inline[1] += inline_bytes
            self._empty += empty

    def _contents(self, file: RegularFile) -> Content:
        unread = _unread(file)
        if not file.size:
            return b""
        with naming(self._blobs.name(unread)):
            fd = self._blobs.open(unread)
            try:
                content, size = self._read(fd, file.size)
                now, was = os.fstat(fd), unread.stamp
                if size != file.size and (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (
                    was.size,
                    was.mtime_ns,
                    was.ctime_ns,
                ):
                    raise _false_size(size, file.size)
                is_same = (size, now.st_size) == (file.size, was.size)
                if is_same and (now.st_mtime_ns, now.st_ctime_ns) != (was.mtime_ns, was.ctime_ns):
                    is_same = self._is_same_again(file, fd, content)
            except OSError as error:
                raise os_error(error, "cannot read") from error
            finally:
                close(fd)
            if not is_same:
                raise SourceChanged("changed while it was read")
            return content

    def _is_same_again(self, file: RegularFile, fd: int, content: Content) -> bool:
        """Whether *fd*, the times of which are others now, has the same *content* when it is read once more."""
        if not isinstance(self._blobs, DatedBlobs) or self._blobs.times_matter(fd):
            return False
        if isinstance(content, External):
            digest, size = hash_fd(fd, self._params, threads=self._threads)
            is_same = digest == content.digest
        else:
            data = os.pread(fd, file.size + 1, 0)
            size, is_same = len(data), data == content
        now = os.fstat(fd)
        said = (size, now.st_size, now.st_mode, now.st_uid, now.st_gid)
        return is_same and said == (file.size, file.size, file.mode, file.uid, file.gid)

    def _read(self, fd: int, size: int) -> tuple[Content, int]:
        """The contents of *fd*, expected to be *size* bytes, and the bytes really met."""
        if size <= self._inline_threshold:
            data = os.pread(fd, size + 1, 0)
            self.progress.advance(len(data))
            return data, len(data)
        if self._writer is not None:
            digest, met, _ = self._writer.add_fd(fd, threads=self._threads, progress=self.progress)
        elif size <= SMALL:
            data = os.pread(fd, size + 1, 0)
            self.progress.advance(len(data))
            digest, met = digest_bytes(data, self._params), len(data)
        else:
            digest, met = hash_fd(fd, self._params, threads=self._threads, progress=self.progress)
        return External(digest, object_path(digest)), met
