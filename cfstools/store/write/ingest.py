"""Read the unread files of a tree: compute digests, keep small contents inline, store the rest as objects."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from cfstools import native
from cfstools.errors import InputError, SourceChanged, StoreError, UsageError, naming, os_error
from cfstools.lifetime import Closable
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.store.write.batch import ARENA_BYTES, BATCH_FILES, SMALL, BatchReader
from cfstools.store.write.blobs import Blobs, DatedBlobs, RootedBlobs
from cfstools.text import counted
from cfstools.threadpool import Call, ThreadPool
from cfstools.tree.model import Content, Directory, External, RegularFile, Unread
from cfstools.tree.walk import iter_inodes
from cfstools.verity import DEFAULT, Params, digest_bytes, object_path
from cfstools.verity.files import hash_fd

if TYPE_CHECKING:
    from cfstools.store.cache.digest_cache import DigestCache, Met
    from cfstools.store.cache.recall import Taken
    from cfstools.store.write.writer import StoreWriter

# Files up to this size, in bytes, are kept inside the image (composefs format, section 5.2).
INLINE_THRESHOLD = 64

# Objects of recalled files that are looked up together.
_CONFIRM_TOGETHER = 4096

# Recalled files of a directory: what their paths begin with, their names, and the files.
Group = tuple[bytes, Sequence[bytes], Sequence[RegularFile]]

# The result for a file: contents of a tree, a result of ``native.digest_files``, or None if not read yet.
Result = Content | tuple[bytes, int, int] | None


class IngestReport(NamedTuple):
    """Regular files read, by where their contents went; the writer's report has what was stored."""

    empty_files: int
    inline_files: int
    inline_bytes: int
    external_files: int
    external_bytes: int


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
    """Read every unread file of the tree: its ``content`` becomes inline bytes or ``External``.

    Without *writer*, only compute digests; else queue objects with the writer, which the caller commits. ``threads``
    defaults to the number of usable processors and does not change the result. Of several errors, the one for the
    first file in tree order is raised: ``SourceChanged`` if a file has changed since the walk, ``InputError`` if it
    cannot be read, or ``StoreError``. After an error the tree is partly read.
    """
    with Ingest(
        blobs, writer, params=params, inline_threshold=inline_threshold, threads=threads, progress=progress
    ) as run:
        inodes = iter_inodes(root)
        run.add(inode for inode in inodes if type(inode) is RegularFile and isinstance(inode.content, Unread))
        return run.finish()


class Ingest(Closable):
    """Reads files while a tree is still being walked; :func:`ingest` is for a complete tree.

    Threads start with the first files, so that reading overlaps with the walk; with one thread, :meth:`finish` reads
    everything. Errors are always raised by :meth:`finish`. Closing it skips the rest and waits for the threads. Files
    found in *cache* whose objects are in the writer's store are not opened.
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
        # The thread that walks the tree is one of them: finish() reads in it as well.
        self._workers = ThreadPool(threads - 1, "ingest") if threads > 1 else None
        self._calls: list[Call[None]] = []
        self._tasks: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._small: list[RegularFile] = []
        self._small_bytes = 0
        self._bytes = 0
        self._recalled: list[Group] = []
        is_of_use = cache is not None and writer is not None and _may_have_objects(writer)
        self.recall = cache.recall(inline_threshold) if cache is not None and is_of_use else None
        """What a walk may know of files without reading them; it calls :meth:`add_recalled` with these."""

    def add_recalled(self, prefix: bytes, names: Sequence[bytes], files: Sequence[RegularFile]) -> None:
        """Take *files* with contents from :attr:`recall`; those whose objects the store has lost are read at the end.

        Their paths are *prefix* and one of *names*.
        """
        self._recalled.append((prefix, names, files))
        if self.recall is not None and len(self.recall) >= _CONFIRM_TOGETHER:
            self._confirm()

    def _confirm(self) -> None:
        if self.recall is not None and self._recalled:
            taken, groups = self.recall.take(), self._recalled
            self._recalled = []
            self._bytes += taken.size
            self._submit(self._run.confirm, self._count, groups, taken, self.recall.device)
            self._count += len(taken)

    def add(self, files: Iterable[RegularFile]) -> None:
        """Read *files*, whose contents are unread; files must be added in tree order."""
        files = list(files)
        sizes = [file.size for file in files]
        size = sum(sizes)
        self._bytes += size
        # In a batch's buffer each file is padded to blocks.
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
            self._read([file])
            return
        padded = size + self._block_size
        if self._small_bytes + padded > ARENA_BYTES or len(self._small) >= BATCH_FILES:
            self._flush()
        self._small.append(file)
        self._small_bytes += padded

    def _flush(self) -> None:
        if self._small:
            self._read(self._small)
            self._small, self._small_bytes = [], 0

    def _read(self, files: list[RegularFile]) -> None:
        self._submit(self._run.read, self._count, files)
        self._count += len(files)

    def _submit(self, task: Callable[..., None], *words: Any) -> None:
        if self._workers is not None:
            self._calls.append(self._workers.submit(task, *words))
        else:
            self._tasks.append((task, words))

    def finish(self) -> IngestReport:
        """Read the remaining files and return the totals; raises the first error in tree order.

        Files whose objects the store has lost are the last.
        """
        self._flush()
        self._confirm()
        with running_stage(self._progress, "read", self._bytes, "B") as stage:
            self._run.progress.show(stage)
            try:
                self._finish_tasks()
                for file in self._run.lost_files():
                    self._add(file)
                self._flush()
                self._finish_tasks()
            finally:
                self.close()
            return self._run.report()

    def _finish_tasks(self) -> None:
        for task, words in self._tasks:
            task(*words)
        if self._workers is not None:
            self._workers.help()
        for call in self._calls:
            call.result()
        self._tasks, self._calls = [], []

    def close(self) -> None:
        """Skip what has not been read yet and wait for the threads."""
        self._run.stop(-1)
        if self._workers is not None:
            self._workers.close()


def _may_have_objects(writer: StoreWriter) -> bool:
    """Whether files may be recalled: of an empty store all of them would have to be read all the same."""
    try:
        return writer.lookup.has_prefixes()
    except StoreError:  # who may not list a store may still use it
        return True


def _unread(file: RegularFile) -> Unread:
    content = file.content
    assert isinstance(content, Unread)
    return content


def _false_size(met: int, size: int) -> InputError:
    """The error for an unchanged file whose length is not what its file system says."""
    what = f"ends after {counted(met, 'byte')}" if met < size else "goes on"
    return InputError(f"{what}, though its file system says that it has {counted(size, 'byte')}")


def _sizes(files: Sequence[RegularFile], found: Sequence[Result]) -> int:
    """The total size of the files that have a result."""
    return sum([file.size for file, one in zip(files, found, strict=True) if one is not None])


def _met(read: Iterable[tuple[RegularFile, Result]]) -> Iterator[Met]:
    """Yield the cache entries for files that were read, except inline ones."""
    for file, one in read:
        digest = one[0] if isinstance(one, tuple) else one.digest if isinstance(one, External) else None
        if digest is not None:
            yield _unread(file).stamp, file.uid, file.mode, digest, not file.xattrs


def _lost(groups: Sequence[Group], taken: Taken, found: bytes, device: int) -> list[RegularFile]:
    """The files whose objects were not found, with their contents unread again."""
    lost = []
    paths = ((prefix + name, file) for prefix, names, files in groups for name, file in zip(names, files, strict=True))
    for number, (path, file) in enumerate(paths):
        if not found[number]:
            file.content = Unread(path, taken.stamp(device, number))
            lost.append(file)
    return lost


class _LateStage:
    """Counts progress until the real stage opens, once all files were added and the total is known."""

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
    """State shared by the tasks of one ingest."""

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
        # The first file that failed, and its error; later files are skipped.
        self._last: float = float("inf")
        self._failure: BaseException | None = None
        self._empty = 0
        self._lost: list[tuple[int, list[RegularFile]]] = []
        self._inline = [0, 0]
        self._external = [0, 0]

    def stop(self, position: int, failure: BaseException | None = None) -> None:
        """Skip the files after *position*, because of *failure*."""
        with self._lock:
            if position < self._last:
                self._last = position
                self._failure = failure or self._failure

    def report(self) -> IngestReport:
        """The totals; raises the error of the first file that failed."""
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
        """Read *files*, numbered in tree order from *first* on; errors are kept for :meth:`report`."""
        position = first
        if position > self._last:
            return
        try:
            found = self._recall(files)
            left = [number for number, one in enumerate(found) if one is None] if None in found else []
            # Inline files are not cached, so they alone are no reason to sync.
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

    def confirm(self, first: int, groups: Sequence[Group], taken: Taken, device: int) -> None:
        """Look up the objects of recalled files, numbered from *first* on; see :meth:`lost_files`."""
        if first > self._last:
            return
        try:
            assert self._writer is not None
            assert self._cache is not None
            size = self._params.algorithm.digest_size
            found = native.find_objects(self._writer.lookup.prefix_fds, taken.digests, taken.ends, 0, len(taken), size)
            lost = _lost(groups, taken, found, device) if 0 in found else []
            count, held = len(taken) - len(lost), taken.size - sum([file.size for file in lost])
            self._writer.count_shared(count, held)
            self._cache.count(count)
            self.progress.advance(held)
        except BaseException as error:  # noqa: BLE001 - as in read()
            self.stop(first, error)
            return
        with self._lock:
            self._lost.append((first, lost))
            self._external[0] += count
            self._external[1] += held

    def lost_files(self) -> list[RegularFile]:
        """Those files whose objects :meth:`confirm` did not find, to be read like any others."""
        with self._lock:
            lost, self._lost = sorted(self._lost, key=itemgetter(0)), []
        return [file for _, files in lost for file in files]

    def _recall(self, files: Sequence[RegularFile]) -> list[Result]:
        """Look up *files* in the cache; objects must also be in the store."""
        writer = self._writer
        if self._cache is None or writer is None:
            return [None] * len(files)
        stamps = [file.content.stamp for file in files if isinstance(file.content, Unread)]
        known = self._cache.find(stamps, self._inline_threshold, writer.lookup, [not file.xattrs for file in files])
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
        external = external_bytes = inline = inline_bytes = empty = 0
        for file, one in zip(files, found, strict=True):
            if isinstance(one, tuple):  # the usual case, kept short because it runs once for every file
                external += 1
                external_bytes += file.size
                file.content = External(one[0], object_path(one[0]))
            elif isinstance(one, bytes):
                inline += bool(file.size)
                inline_bytes += file.size
                empty += not file.size
                file.content = one
            elif one is not None:
                external += 1
                external_bytes += file.size
                file.content = one
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
        """Whether *fd*, whose times have changed, has the same *content* when read again."""
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
        """The contents of *fd*, expected to have *size* bytes, and their real length."""
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
