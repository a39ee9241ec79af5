"""Verb ``extract``: the tree of an image back on disk, its contents checked on the way."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cfstools.api.extract_inodes import DEVICES, CopyMode, InodeOptions, InodeWriter, Spot, Tally
from cfstools.api.listing import load_image
from cfstools.errors import CfsError, ImageError, InputError, Interrupted, LimitExceeded, naming, os_error, shown_path
from cfstools.formats.escape import escape_text
from cfstools.linux.files import close, open_below
from cfstools.output.directories import output_directory
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.sources.directory import MAX_PATH
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace, open_stores
from cfstools.tree import Directory, HardLink, Leaf, RegularFile
from cfstools.tree.select import select
from cfstools.tree.walk import inode_of, iter_entries, iter_inodes, iter_names
from cfstools.values import Value
from cfstools.view import View
from cfstools.workers import Call, Workers

__all__ = ["CopyMode", "ExtractOptions", "ExtractReport", "LeftOut", "extract", "extract_view"]

_JOB_FILES = 64
_JOB_BYTES = 8 << 20
_AHEAD = 8  # jobs waiting for each thread
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NO_NAMES = frozenset({b"", b".", b".."})


class ExtractOptions(InodeOptions):
    """What is put on disk, and how.

    Of ``paths`` (all without any) everything below is extracted, and the directories that lead to it. With ``sync``
    the tree is on stable storage before it gets its name. ``shared`` lets root extract where others may write.
    """

    paths: tuple[bytes, ...] = ()
    sync: bool = False
    shared: bool = False


class LeftOut(Value):
    """Something the image has and the tree on disk has not: what, of how many names, and the first of them."""

    what: str
    count: int
    first: str


class ExtractReport(Report):
    """What an extraction made. Files are counted by inode, ``hard_links`` are further names.

    The bytes are those of file contents: ``bytes_copied`` were written, ``bytes_cloned`` share storage with objects,
    ``bytes_linked`` are objects themselves.
    """

    directory: str
    directories: int
    files: int
    symlinks: int
    special_files: int
    hard_links: int
    bytes_copied: int
    bytes_cloned: int
    bytes_linked: int
    left_out: tuple[LeftOut, ...]


def extract(
    image: bytes,
    directory: bytes,
    *,
    stores: Sequence[StorePlace] = (),
    options: ExtractOptions | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Put the tree of the image at *image* into the new (or empty) *directory*, with contents from *stores*.

    See :func:`extract_view`. Raises also ImageError.
    """
    with naming(image), open_stores(stores) as opened:
        view = View(load_image(image), StoreChain(opened))
        return extract_view(view, directory, options=options, threads=threads, progress=progress)


def extract_view(
    view: View,
    directory: bytes,
    *,
    options: ExtractOptions | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Put the tree of *view* into the new (or empty) *directory*.

    It appears once it is whole; after an error nothing is left, or a note at the error says what. Nothing is ever
    written outside of it; as root, *directory* must be where nobody else may write, unless ``options.shared``. Root
    gets the tree as it is, and an error for what cannot be; anybody else gets what they can hold, and the report says
    what was left out. Raises CheckFailed for contents that are not what the image says, InputError for what cannot be
    written and paths that are not there, StoreError, Unsupported (for ``REFLINK``), ImageError and LimitExceeded for
    names no directory can have.
    """
    options = options or ExtractOptions()
    root = select(view.root, options.paths) if options.paths else view.root
    with output_directory(directory, sync=options.sync, shared=options.shared) as top:
        total = sum(_size(inode) for inode in iter_inodes(root))
        with running_stage(progress, "extract", total, "B") as stage:
            tally = _Extraction(root, directory, top, InodeWriter(view, options, stage)).run(threads)
    done = tally.done
    return ExtractReport(
        directory=shown_path(directory),
        directories=done["directories"],
        files=done["files"],
        symlinks=done["symlinks"],
        special_files=done["special_files"],
        hard_links=done["hard_links"],
        bytes_copied=done["bytes_copied"],
        bytes_cloned=done["bytes_cloned"],
        bytes_linked=done["bytes_linked"],
        left_out=tuple(
            LeftOut(what=what, count=count, first=escape_text(first)) for what, (count, first) in tally.left_out.items()
        ),
    )


@dataclass(slots=True)
class _Job:
    """Leaves of one directory that are made together: their names, paths and inodes."""

    parent: bytes
    leaves: list[tuple[bytes, bytes, Leaf]]
    size: int


class _Extraction:
    """One extraction: directories first, leaves in parallel, further names, then the directories' attributes."""

    def __init__(self, root: Directory, directory: bytes, top: int, writer: InodeWriter) -> None:
        self._root = root
        self._place = directory.rstrip(b"/")
        self._top = top
        self._status = os.fstat(top)
        self._writer = writer
        self._directories: list[tuple[bytes, Directory]] = []
        self._links: list[tuple[bytes, bytes, Leaf]] = []
        self._tally = Tally()

    def run(self, threads: int) -> Tally:
        jobs = self._jobs()
        if threads > 1:
            self._in_threads(jobs, threads)
        else:
            for job in jobs:
                self._tally.add(self._make(job))
        for first, path, inode in self._links:
            self._link(first, path, inode)
        # From the depths up: nothing changes a directory any more once it has its time, and its mode may close it.
        for path, directory in reversed(self._directories):
            self._finish(path, directory)
        return self._tally

    def _in_threads(self, jobs: Iterator[_Job], threads: int) -> None:
        with Workers(threads, "extract") as workers:
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
        """Make every directory, and yield the leaves of one once it is there."""
        linked: set[Directory | Leaf] = {
            entry.inode for _, _, entry in iter_names(self._root) if isinstance(entry, HardLink)
        }
        firsts: dict[Directory | Leaf, bytes] = {}
        job = _Job(b"", [], 0)
        for path, name, entry in iter_entries(self._root):
            if entry is not self._root:
                _check_name(name, path)
            parent = path[1 : -1 - len(name)]
            inode = inode_of(entry)
            if isinstance(inode, Directory):
                self._directories.append((path[1:], inode))
                if inode is not self._root:
                    self._make_directory(parent, name, path)
                continue
            if inode in linked and firsts.setdefault(inode, path) is not path:
                self._links.append((firsts[inode], path, inode))
                continue
            if job.parent != parent or len(job.leaves) >= _JOB_FILES or job.size >= _JOB_BYTES:
                if job.leaves:
                    yield job
                job = _Job(parent, [], 0)
            job.leaves.append((name, path, inode))
            job.size += _size(inode)
        if job.leaves:
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
                for name, path, inode in job.leaves:
                    if self._writer.stopped:
                        raise Interrupted("interrupted")
                    self._writer.make(Spot(fd, name, path), inode, tally)
        except OSError as error:
            raise self._failed(error, path) from error
        except ValueError as error:
            raise ImageError("a link or attribute holds a zero byte", where=escape_text(path)) from error
        except CfsError as error:
            if error.where is None and error.subject is None:
                error.subject = self._on_disk(path)
            raise
        return tally

    def _link(self, first: bytes, path: bytes, inode: Leaf) -> None:
        if inode in self._tally.absent:
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

    def _finish(self, path: bytes, directory: Directory) -> None:
        try:
            with self._opened(path) as fd:
                self._writer.finish_directory(fd, b"/" + path, directory, self._tally)
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


def _size(inode: Directory | Leaf) -> int:
    return inode.size if isinstance(inode, RegularFile) else 0


def _check_name(name: bytes, path: bytes) -> None:
    """Raise unless a directory can have the name, so that no path leads anywhere by it."""
    if name in _NO_NAMES or b"\0" in name or b"/" in name:
        raise ImageError("no directory can have this name", where=escape_text(path))
    if len(path) > MAX_PATH:
        raise LimitExceeded(f"a path is longer than {MAX_PATH} bytes", where=escape_text(path[:200]) + "...")
