"""The digest cache: digests of unchanged files, so that a rebuild need not read them.

An entry identifies a file by inode number, size, mtime and ctime on one mounted volume (:mod:`cfstools.linux.volume`).
While the volume is mounted, only the kernel changes its files, and it updates the ctime with every change of contents
or inode. So a matching entry is valid if its ctime was in the past when the file was read, no write could skip the
ctime update, and the clock was not set back since. It does not matter who set earlier ctimes. These conditions are
checked when an entry is made (see :meth:`DigestCache.settle` and ``docs/store.md``) and when the cache is read. The
cache only saves time: a damaged or unusable one is as good as empty.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cfstools import native
from cfstools.errors import CfsError
from cfstools.lifetime import Closable
from cfstools.linux import files
from cfstools.linux.volume import clock_offset, mounted_volume, xattr_view
from cfstools.store.cache import files as cache_files
from cfstools.store.cache.files import Records, Shelf
from cfstools.store.cache.recall import Recall

if TYPE_CHECKING:
    from cfstools.store.directory import DirectoryStore
    from cfstools.tree.model import Stamp
    from cfstools.verity import Algorithm

# Files changed less than this long before they were read are not cached: the kernel's clock is coarse, and a leap
# second sets it back.
RACY_NS = 3_000_000_000
_SECOND = 1_000_000_000
_MINUTE_NS = 60 * _SECOND
_DAY = 24 * 60
_KEEP = 30 * _DAY
# Minimum number of most recent files to keep for a volume; a larger build keeps more.
_LAST = 1 << 19
# Write back at most this many files one by one: about as fast as one syncfs on an idle file system.
_SINGLES = 256
_NEVER = -1 << 63
_NOTHING = Records(_NEVER, memoryview(b""))

_File = TypeVar("_File")
# A file that was read: stamp, owner, mode, digest, and whether no extended attributes of it were kept.
Met = tuple["Stamp", int, int, bytes, bool]
# A lookup result: inline contents, (digest, size, -1), or None on a miss.
Lookup = bytes | tuple[bytes, int, int] | None


class Recalled(NamedTuple):
    """Lookup results for files, and the number and total size of the objects among them."""

    found: list[Lookup]
    objects: int
    object_bytes: int


class DigestCache(Closable):
    """Cache entries for the files of one source below *root_fd*. Thread-safe; never raises.

    Files on other file systems than that of *root_fd* are not cached. *view* is the number of what shows attributes
    to this process (:func:`~cfstools.linux.volume.xattr_view`), and *all_xattrs* whether all that it shows are kept.
    """

    def __init__(self, directory: int, shelf: Shelf, root_fd: int, *, view: int = 0, all_xattrs: bool = False) -> None:
        self._directory = directory
        self._shelf = shelf
        self._root_fd = root_fd
        self._lock = threading.Lock()
        self._minute = time.time_ns() // _MINUTE_NS
        self._made = bytearray()
        self._records: Records | None = None
        self._settled: int | None = None
        self._singles = 0
        # Which files had no attributes was seen after this moment. A clock that is set back just here shows later.
        clock, self._opened = clock_offset(), time.time_ns()
        self._clock = _NEVER if clock is None else clock
        self._view = 0 if clock is None else view
        self._bare = self._view if all_xattrs else 0
        self._is_open = True
        self.hits = 0
        """Cache hits so far."""

    @classmethod
    def open(cls, path: bytes, root_fd: int, algorithm: Algorithm, *, all_xattrs: bool = False) -> DigestCache | None:
        """Open the cache in the directory *path*, creating it if missing; ``None`` if it cannot be used.

        To be called before files are looked at.
        """
        try:
            volume = mounted_volume(root_fd)
            directory = cache_files.open_directory(path) if volume is not None else None
        except (OSError, ValueError):
            return None
        if volume is None or directory is None:
            return None
        view = 0
        with suppress(OSError):
            view = xattr_view(root_fd)
        return cls(directory, Shelf(volume, algorithm), root_fd, view=view, all_xattrs=all_xattrs)

    def _known(self) -> memoryview[int]:
        """The records of earlier builds, read on first use."""
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

    def recall(self, inline_threshold: int) -> Recall:
        """What a walk needs to find files by itself; entries are left to :meth:`find` that it would refresh."""
        shelf = self._shelf
        return Recall(
            self._known(),
            shelf.volume.device,
            digest_size=shelf.algorithm.digest_size,
            inline_threshold=inline_threshold,
            seen=max(self._minute - _DAY, 0),
            bare=self._view,
        )

    def count(self, hits: int) -> None:
        """Count files that a walk has found."""
        with self._lock:
            self.hits += hits

    def find(
        self,
        stamps: list[Stamp],
        inline_threshold: int,
        store: DirectoryStore | None = None,
        bare: Sequence[bool] | None = None,
    ) -> Recalled:
        """Look up files by their *stamps*; those up to *inline_threshold* bytes are inline and never cached.

        With *store*, an entry whose object the store lacks is a miss. *bare* says of which files no attributes were
        kept.
        """
        matched = self._match(stamps, inline_threshold)
        lost = store.lacks([(found[0], found[1]) for found, _ in matched.values()]) if store else set()
        kept = {number: one for number, one in matched.items() if one[0][0] not in lost}
        results: list[Lookup] = [None if stamp.size else b"" for stamp in stamps]
        for number, (found, _) in kept.items():
            results[number] = found
        oldest = min([seen for _, seen in kept.values()], default=self._minute)
        objects, object_bytes = len(kept), sum([found[1] for found, _ in kept.values()])
        with self._lock:
            self.hits += objects
        if self._minute - oldest > _DAY:
            # Refresh all entries so that age does not expire them. They then have the same time, so this happens once
            # a day.
            self._add(
                (stamp, found[0], is_bare)
                for stamp, found, is_bare in zip(stamps, results, bare or [False] * len(stamps), strict=True)
                if type(found) is tuple
            )
        return Recalled(results, objects, object_bytes)

    def _match(self, stamps: Sequence[Stamp], inline_threshold: int) -> dict[int, tuple[tuple[bytes, int, int], int]]:
        """The results for those files that have an entry, by number, and when each was seen."""
        records, device = self._known(), self._shelf.volume.device
        inodes, size = native.index_records(records, self._shelf.algorithm.digest_size)
        matched = {}
        for number, stamp in enumerate(stamps):
            place = bisect_left(inodes, stamp.inode)
            if stamp.device != device or stamp.size <= inline_threshold or place == len(inodes):
                continue
            record = records[place * size : (place + 1) * size]
            *numbers, seen, _ = native.KNOWN_RECORD.unpack_from(record)
            if tuple(numbers) == stamp[1:]:
                matched[number] = (bytes(record[native.KNOWN_RECORD.size :]), stamp.size, -1), seen
        return matched

    def forgo(self) -> None:
        """Stop caching new files, which saves the sync of the source's file system."""
        with self._lock:
            self._settled = _NEVER

    def settle(self, files: Sequence[_File] = (), open_file: Callable[[_File], int] | None = None) -> int:
        """Call before reading *files* to be cached; returns a time after which every change gives a new ctime.

        A dirty page of a shared mapping can be written again without a new ctime until it is written back. The first
        few files of a build are written back one by one; for more, one ``syncfs`` covers all files, but also waits for
        what other programs wrote.
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
        """Cache files that were read after :meth:`settle` returned *since*, if every later change will be noticed.

        Their ctime must be clearly before that time. A ctime without nanoseconds is skipped: the inode may only store
        whole seconds, and later changes could get the same one. Files that other users can write to are skipped: a
        writer can swap blocks between files without changing times (XFS_IOC_SWAPEXT, EXT4_IOC_MOVE_EXT).
        """
        limit = since - RACY_NS
        owners = (0, os.geteuid())
        self._add(
            (stamp, digest, is_bare)
            for stamp, uid, mode, digest, is_bare in read
            if stamp.device == self._shelf.volume.device
            and stamp.ctime_ns < limit
            and stamp.ctime_ns % _SECOND
            and uid in owners
            and not mode & (stat.S_IWGRP | stat.S_IWOTH)
        )

    def _add(self, entries: Iterable[tuple[Stamp, bytes, bool]]) -> None:
        pack = native.KNOWN_RECORD.pack
        made = bytearray()
        # A ctime that was in the past when the walk began tells of attributes too: they were looked at later.
        limit = self._opened - RACY_NS
        for stamp, digest, is_bare in entries:
            bare = self._bare if is_bare and stamp.ctime_ns < limit else 0
            with suppress(struct.error):  # a number does not fit into a record
                made += pack(*stamp[1:], self._minute, bare) + digest
        with self._lock:
            self._made += made

    def close(self) -> None:
        """Write the new entries to the cache."""
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
        """Merge the new entries into what other builds may have written meanwhile, up to the size limit."""
        clock = clock_offset()
        if clock is None:
            return
        old = cache_files.read(self._directory, self._shelf, clock, self._records) or _NOTHING
        highest = max(old.clock, self._clock, self._records.clock if self._records else _NEVER)
        if not cache_files.is_credible(highest, clock):
            return  # the clock was set back while this build ran
        digest_size, size = self._shelf.algorithm.digest_size, self._shelf.record_size
        limit = max(_LAST, 2 * (self.hits + len(self._made) // size))
        data = native.merge_records(old.data, self._made, digest_size, max(self._minute - _KEEP, 0))
        del old  # as the new ones, it may be as large as the result
        self._made.clear()
        if len(data) > limit * size:
            data = native.merge_records(data, b"", digest_size, _oldest_kept(data, size, limit * 3 // 4))
        records = memoryview(data)[: cache_files.MAX_RECORDS * size]
        cache_files.write(self._directory, self._shelf, Records(highest, records))


def _oldest_kept(data: bytes, size: int, least: int) -> int:
    """The latest time since which at least *least* of the records of *size* bytes were seen."""
    seen = Counter(memoryview(data).cast("I")[8 :: size // 4])  # KNOWN_RECORD
    for minute in sorted(seen, reverse=True):
        least -= seen[minute]
        if least <= 0:
            return minute
    return 0


def _written_back(file: _File, open_file: Callable[[_File], int]) -> bool:
    """Write back the pages of *file*; ``False`` on an error, which the reader will report."""
    with suppress(CfsError, OSError):
        fd = open_file(file)
        try:
            files.write_back(fd)
        finally:
            files.close(fd)
        return True
    return False


__all__ = ["RACY_NS", "DigestCache", "Lookup", "Met", "Recalled"]
