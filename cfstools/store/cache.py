"""The digest cache: the digests that unchanged files had the last time they were read.

A file is known again by its inode number, size, mtime and ctime on one mounted volume (:mod:`cfstools.linux.volume`).
As long as that is mounted, only the kernel changes its files, and sets the ctime to the time of the change whenever
contents or inode change. So an entry that matches in all of these still tells the truth, provided that its ctime was
in the past when the file was read, that nothing was written behind the ctime's back when the entry was made, and that
the clock was not set back since. Who chose the ctime before does not matter. All of that is made sure of when an entry
is made (see :meth:`DigestCache.settle` and ``docs/store.md``) and when the cache is read. Results never depend on the
cache, only the time they take does: whatever is wrong with it, it is as if it were empty.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from cfstools import native
from cfstools.errors import CfsError
from cfstools.linux import files
from cfstools.linux.volume import clock_offset, mounted_volume
from cfstools.store import cache_files
from cfstools.store.cache_files import Records, Shelf

if TYPE_CHECKING:
    from cfstools.store.directory import DirectoryStore
    from cfstools.tree.model import Stamp
    from cfstools.verity import Algorithm

# Files changed less than this long before they were read are not remembered: the kernel's clock has ticks, and a leap
# second sets it back.
RACY_NS = 3_000_000_000
_SECOND = 1_000_000_000
_MINUTE_NS = 60 * _SECOND
_DAY = 24 * 60
_KEEP = 30 * _DAY
# The last files met that are remembered of a volume, at least; a build remembers more if it has more.
_LAST = 1 << 19
# So many files are written back one by one: about as long as one syncfs takes where nobody else writes.
_SINGLES = 256
_NEVER = -1 << 63
_NOTHING = Records(_NEVER, memoryview(b""))

_File = TypeVar("_File")
# A file that was read: what it was, its owner and mode, and its digest.
Met = tuple["Stamp", int, int, bytes]
# What is known of a file: no contents, or digest, size and -1, or nothing.
Found = bytes | tuple[bytes, int, int] | None


class Recalled(NamedTuple):
    """What is known of files; how many of them are objects, and their bytes."""

    found: list[Found]
    objects: int
    object_bytes: int


class DigestCache:
    """The entries for the files of one source, read through *root_fd*. Used from several threads; never raises.

    Nothing is remembered of files on other file systems than that of *root_fd*.
    """

    def __init__(self, directory: int, shelf: Shelf, root_fd: int) -> None:
        self._directory = directory
        self._shelf = shelf
        self._root_fd = root_fd
        self._lock = threading.Lock()
        self._minute = time.time_ns() // _MINUTE_NS
        self._made: list[bytes] = []
        self._records: Records | None = None
        self._settled: int | None = None
        self._singles = 0
        self._clock = _NEVER
        self._is_open = True
        self.hits = 0
        """Files that were known, so far."""

    @classmethod
    def open(cls, path: bytes, root_fd: int, algorithm: Algorithm) -> DigestCache | None:
        """The cache in the directory *path*, made if it is not there; ``None`` where there can be none."""
        try:
            volume = mounted_volume(root_fd)
            directory = cache_files.open_directory(path) if volume is not None else None
        except (OSError, ValueError):
            return None
        if volume is None or directory is None:
            return None
        return cls(directory, Shelf(volume, algorithm), root_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self) -> memoryview[int]:
        """The records of earlier builds; the first thread that asks reads them."""
        with self._lock:
            if self._records is None:
                self._records = self._read()
            return self._records.data

    def _read(self) -> Records:
        clock = clock_offset()
        found = None
        if clock is not None and self._is_open:
            with suppress(OSError, MemoryError):
                found = cache_files.read(self._directory, self._shelf, clock)
        return found or _NOTHING

    def find(self, stamps: list[Stamp], inline_threshold: int, store: DirectoryStore | None = None) -> Recalled:
        """What is known of the files with these *stamps*, of which those up to the threshold are kept in images.

        With *store*, files whose objects it lacks are not known.
        """
        results, oldest, _, objects, object_bytes = native.match_stamps(
            stamps,
            self._known(),
            self._shelf.volume.device,
            self._shelf.algorithm.digest_size,
            inline_threshold,
            store.fd if store else -1,
            store.prefix_fds if store else b"",
        )
        with self._lock:
            self.hits += objects
        if self._minute - oldest > _DAY:
            # Remember all of them anew, lest they are dropped for their age. As they all have one time then, this
            # happens to them once a day.
            self._add((stamp, found[0]) for stamp, found in zip(stamps, results, strict=True) if type(found) is tuple)
        return Recalled(results, objects, object_bytes)

    def forgo(self) -> None:
        """Remember nothing from here on, which spares the sync of the source's file system."""
        with self._lock:
            self._settled = _NEVER

    def settle(self, files: Sequence[_File] = (), open_file: Callable[[_File], int] | None = None) -> int:
        """Call before reading *files* to be remembered; returns a time from which on every change gives a new ctime.

        A page that a program has mapped and written to is not watched until it was written back: it could be written
        to again without a new ctime. Writing pages back ends that. For the first few files of a build each is opened
        and written back by itself; for more one ``syncfs`` does it for all, but also waits for what other programs
        wrote.
        """
        with self._lock:
            if self._settled is None:
                self._singles += len(files)
                if open_file is None or self._singles > _SINGLES:
                    self._settle_all()
            if self._settled is not None:
                return self._settled
        assert open_file is not None
        now, clock = time.time_ns(), clock_offset()
        if clock is None or not all(_written_back(file, open_file) for file in files):
            return _NEVER
        with self._lock:
            self._clock = max(self._clock, clock)
        return now

    def _settle_all(self) -> None:
        self._settled = _NEVER
        with suppress(OSError):
            now, clock = time.time_ns(), clock_offset()
            files.syncfs(self._root_fd)
            if clock is not None:
                self._settled, self._clock = now, max(self._clock, clock)

    def remember(self, read: Iterable[Met], since: int) -> None:
        """Remember what files were that were read after :meth:`settle` said *since*, if no later change can hide.

        Their ctime must lie clearly before that time. One without nanoseconds was chosen by a program or comes from an
        inode that has no room for more, and where later ones may be cut to the same. Whoever can write to a file can
        exchange its blocks for another's (XFS_IOC_SWAPEXT, EXT4_IOC_MOVE_EXT), which leaves the times as they were:
        that must be nobody but this user and root.
        """
        limit = since - RACY_NS
        owners = (0, os.geteuid())
        self._add(
            (stamp, digest)
            for stamp, uid, mode, digest in read
            if stamp.device == self._shelf.volume.device
            and stamp.ctime_ns < limit
            and stamp.ctime_ns % _SECOND
            and uid in owners
            and not mode & (stat.S_IWGRP | stat.S_IWOTH)
        )

    def _add(self, entries: Iterable[tuple[Stamp, bytes]]) -> None:
        pack = native.KNOWN_RECORD.pack
        made = []
        for stamp, digest in entries:
            with suppress(struct.error):  # a number that no record can hold
                made.append(pack(*stamp[1:], self._minute) + digest)
        with self._lock:
            self._made += made

    def close(self) -> None:
        """Write down what is remembered."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
        with suppress(OSError, MemoryError):
            if self._made:
                with cache_files.alone(self._directory):
                    self._write()
        files.close(self._directory)

    def _write(self) -> None:
        """Add what was made to what other builds may have written meanwhile, as far as there is room."""
        clock = clock_offset()
        if clock is None:
            return
        old = cache_files.read(self._directory, self._shelf, clock) or _NOTHING
        highest = max(old.clock, self._clock, self._records.clock if self._records else _NEVER)
        if not cache_files.is_credible(highest, clock):
            return  # the clock was set back while this build ran
        digest_size, size = self._shelf.algorithm.digest_size, self._shelf.record_size
        made = b"".join(self._made)
        limit = max(_LAST, 2 * (self.hits + len(self._made)))
        data = native.merge_records(old.data, made, digest_size, max(self._minute - _KEEP, 0))
        if len(data) > limit * size:
            times = sorted(memoryview(data).cast("I")[8 :: size // 4])
            data = native.merge_records(data, made, digest_size, times[-limit * 3 // 4])
        data = data[: cache_files.MAX_RECORDS * size]
        cache_files.write(self._directory, self._shelf, Records(highest, memoryview(data)))


def _written_back(file: _File, open_file: Callable[[_File], int]) -> bool:
    """Whether the pages of *file* are clean now; who reads it will say what is wrong with it."""
    with suppress(CfsError, OSError):
        fd = open_file(file)
        try:
            files.write_back(fd)
        finally:
            files.close(fd)
        return True
    return False


__all__ = ["RACY_NS", "DigestCache", "Found", "Met", "Recalled"]
