"""The digest cache of a store: what unchanged files were the last time they were read.

A file is known again by its file system, inode number, size, mtime and ctime. The kernel sets the ctime whenever
contents or inode change, and nobody can set it to a wanted value, so an entry that matches in all of these still
tells the truth, provided that nothing was written behind the ctime's back when the entry was made. That is made
sure of when an entry is made (see :meth:`DigestCache.settle` and ``docs/store.md``), not when it is used. Results
never depend on the cache, only the time they take does: whatever is wrong with it, it is as if it were empty.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

from cfstools import native
from cfstools.linux import files
from cfstools.report import Report
from cfstools.store import buckets
from cfstools.store.directory import DirectoryStore
from cfstools.tree.model import Stamp
from cfstools.verity import Algorithm

CACHE_DIRECTORY = b".mkcfs"
CACHE_NAME = b"digests.sqlite"
_VERSION = 2

# Files changed less than this long before they were read are not remembered: clocks of file systems are coarse, up
# to two seconds.
RACY_NS = 3_000_000_000
# File systems that keep inode numbers, and give every change of contents a ctime, also those through memory maps.
_TRUSTED = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xE0F5E1E2, 0x73717368})
_DAY_NS = 86_400_000_000_000
_REFRESH_DAYS = 14
_KEEP_DAYS = 60
_NEVER = -1 << 63
# Above this size entries not met for long are dropped.
_LARGE_BYTES = 256 << 20
_FLUSH_RECORDS = 20_000

_SCHEMA = f"""
CREATE TABLE volumes (number INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
{buckets.SCHEMA};
"""
_COUNT = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"

# What is remembered of a file: its contents if these go into images (true), else its digest.
Known = tuple[bool, bytes]
# The same as it is found: contents, or digest, size and -1; None for what is not known.
Found = bytes | tuple[bytes, int, int] | None


class Recalled(NamedTuple):
    """What is known of files; how many of them are objects, and their bytes; and the bytes of all."""

    found: list[Found]
    objects: int
    object_bytes: int
    bytes: int


class CacheStatistics(Report):
    """What the digest cache of a store holds, and how often it helped: since it was made, and in the last build."""

    entries: int
    bytes: int
    hits: int
    misses: int
    last_hits: int
    last_misses: int


class CacheCheck(Report):
    """What a look at every entry of the digest cache found; ``problem`` says why the cache is of no use, if so."""

    entries: int
    malformed: int
    problem: str | None = None


class DigestCache:
    """The entries for the files of one source, read through *root_fd*. Used from several threads; never raises.

    Nothing is remembered of files on other file systems than that of *root_fd*, or if that is not one of those
    known to keep their promises.
    """

    def __init__(self, database: sqlite3.Connection, root_fd: int, algorithm: Algorithm) -> None:
        self._database: sqlite3.Connection | None = database
        self._root_fd = root_fd
        self._device = os.fstat(root_fd).st_dev
        self._digest_size = algorithm.digest_size
        self._lock = threading.Lock()
        self._today = time.time_ns() // _DAY_NS
        self._hits = self._misses = 0
        self._made: list[bytes] = []
        self._settled: int | None = None
        self._shelf = buckets.Shelf(self._find_volume(volume_identity(root_fd)), algorithm.number)

    @classmethod
    def open(cls, store: DirectoryStore, root_fd: int, algorithm: Algorithm) -> DigestCache | None:
        """The cache in *store*, made if it is not there; ``None`` where there can be none."""
        try:
            if volume_identity(root_fd) is None:
                return None
            try:
                database = _connect(store, create=True)
            except sqlite3.OperationalError:
                return None  # in use, or the disk is full or read-only
            except sqlite3.DatabaseError:
                database = None
            if database is None:
                # Damaged, or made by another version: what it holds can be found out again.
                remove_cache(store)
                database = _connect(store, create=True)
            return None if database is None else cls(database, root_fd, algorithm)
        except (OSError, sqlite3.Error):
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_volume(self, identity: bytes | None) -> int:
        assert self._database is not None
        ask = "SELECT number FROM volumes WHERE identity = ?"
        row = self._database.execute(ask, (identity,)).fetchone()
        if row is None:
            with self._database:
                self._database.execute("INSERT OR IGNORE INTO volumes (identity) VALUES (?)", (identity,))
            row = self._database.execute(ask, (identity,)).fetchone()
        return int(row[0])

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection | None]:
        """The database for one thread; after an error there is none any more."""
        with self._lock:
            try:
                yield self._database
            except (sqlite3.Error, OverflowError):
                database, self._database = self._database, None
                if database is not None:
                    database.close()

    def find(self, stamps: list[Stamp], inline_threshold: int, store: DirectoryStore | None = None) -> Recalled:
        """What is known of the files with these *stamps*, of which those up to the threshold are kept in images.

        With *store*, files whose objects it lacks are not known.
        """
        records = b""
        with self._using() as database:
            if database is not None:
                records = buckets.read(database, self._shelf, stamps)
        results, oldest, *counts = native.match_stamps(
            stamps,
            records,
            self._device,
            self._digest_size,
            inline_threshold,
            store.fd if store else -1,
            store.prefix_fds if store else b"",
        )
        hits = len(stamps) - results.count(None)
        with self._lock:
            self._hits += hits
            self._misses += len(stamps) - hits
        if self._today - oldest > _REFRESH_DAYS:
            # Remember all of them anew, lest they are dropped for their age. As they all have one day then, this
            # happens to them once in so many days.
            self._add(
                [(stamp, _known(found)) for stamp, found in zip(stamps, results, strict=True) if found is not None]
            )
        return Recalled(results, *counts[1:])

    def settle(self) -> None:
        """To be called before files are read that shall be remembered: from here on their ctimes tell all.

        A page that a program has mapped and written to is not watched until it was brought to the disk: it could be
        written to again without a new ctime. Syncing the file system ends that for all pages, so that whatever is
        written after this moment gives its file a ctime that is not before this moment, too.
        """
        with self._lock:
            if self._settled is None:
                self._settled = _NEVER
                with suppress(OSError):
                    now = time.time_ns()
                    files.syncfs(self._root_fd)
                    self._settled = now

    def remember(self, entries: Iterable[tuple[Stamp, Known]]) -> None:
        """Remember what files read after :meth:`settle` were, except those changed shortly before it, or since."""
        assert self._settled is not None
        limit = self._settled - RACY_NS
        self._add(
            (stamp, known)
            for stamp, known in entries
            if stamp.device == self._device and stamp.ctime_ns < limit and stamp.mtime_ns < limit
        )

    def _add(self, entries: Iterable[tuple[Stamp, Known]]) -> None:
        made = [buckets.make_record(stamp, *known, self._today) for stamp, known in entries]
        with self._lock:
            self._made += filter(None, made)
        if len(self._made) >= _FLUSH_RECORDS:
            self._flush()

    def _flush(self, oldest: int = 0) -> None:
        """Write down what is remembered; what is there from before the day *oldest* goes."""
        with self._using() as database:
            made, self._made = self._made, []
            if database is not None and made:
                buckets.merge(database, self._shelf, made, oldest)

    def close(self) -> None:
        """Write down what is remembered, and how often it helped."""
        # Not sooner: what is old may be of files that were still to be looked up.
        self._flush(self._today - _KEEP_DAYS)
        with self._using() as database:
            if database is None:
                return
            with database:
                database.execute("DELETE FROM counters WHERE name LIKE 'last_%'")
                for name, value in (("hits", self._hits), ("misses", self._misses)):
                    database.execute(_COUNT, (name, value))
                    database.execute(_COUNT, (f"last_{name}", value))
            if _pragma(database, "page_count") * _pragma(database, "page_size") > _LARGE_BYTES:
                buckets.expire(database, self._today - _KEEP_DAYS)
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None


def volume_identity(fd: int) -> bytes | None:
    """What tells the file system of *fd* from all others, ``None`` if it is not one to be trusted.

    Device numbers are given to other file systems after a restart, so the identity of the file system itself, made
    from its UUID, is part of it. Where that is only the device number in other words, or nothing, it holds until
    the next restart: its id is part of it then.
    """
    if files.filesystem_type(fd) not in _TRUSTED:
        return None
    device = os.fstat(fd).st_dev
    identity = os.fstatvfs(fd).f_fsid
    boot = b""
    if identity in {0, device, device & 0xFFFFFFFF}:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read().strip()
    return struct.pack("<QQ", device & (2**64 - 1), identity & (2**64 - 1)) + boot


def cache_statistics(store: DirectoryStore) -> CacheStatistics | None:
    """What the digest cache of *store* holds; ``None`` if there is none that can be read."""
    try:
        database = _connect(store, create=False)
        if database is None:
            return None
        with closing(database):
            counters = dict(database.execute("SELECT name, value FROM counters"))
            entries = buckets.count(database)
            size = _pragma(database, "page_count") * _pragma(database, "page_size")
    except (OSError, sqlite3.Error):
        return None
    return CacheStatistics(
        entries=entries,
        bytes=size,
        hits=counters.get("hits", 0),
        misses=counters.get("misses", 0),
        last_hits=counters.get("last_hits", 0),
        last_misses=counters.get("last_misses", 0),
    )


def check_cache(store: DirectoryStore) -> CacheCheck | None:
    """Look at every entry of the digest cache; ``None`` if there is no cache.

    Whether an entry is true cannot be seen without the file it is of; but contents that an entry holds must be as
    long as it says, and digests as long as digests are.
    """
    entries = malformed = 0
    try:
        database = _connect(store, create=False)
        if database is None:
            return None
        with closing(database):
            (answer,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if answer != "ok":
                return CacheCheck(entries=0, malformed=0, problem=str(answer))
            for is_possible in buckets.check(database):
                entries += 1
                malformed += not is_possible
    except (OSError, sqlite3.Error) as error:
        return CacheCheck(entries=entries, malformed=malformed, problem=str(error))
    return CacheCheck(entries=entries, malformed=malformed)


def remove_cache(store: DirectoryStore) -> None:
    """Remove the digest cache, if there is one; the next build makes a new one. Raises ``OSError``."""
    for suffix in (b"", b"-wal", b"-shm", b"-journal"):
        with suppress(FileNotFoundError):
            os.unlink(CACHE_DIRECTORY + b"/" + CACHE_NAME + suffix, dir_fd=store.fd)


def _known(found: bytes | tuple[bytes, int, int]) -> Known:
    return (True, found) if isinstance(found, bytes) else (False, found[0])


def _pragma(database: sqlite3.Connection, name: str) -> int:
    (value,) = database.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _connect(store: DirectoryStore, *, create: bool) -> sqlite3.Connection | None:
    """The database of *store* with its tables; ``None`` if it is not there and not to be made.

    Nothing is reached through symbolic links. A database of another version, or damaged, is replaced if *create*.
    """
    if create:
        with suppress(FileExistsError):
            os.mkdir(CACHE_DIRECTORY, 0o700, dir_fd=store.fd)
    try:
        directory = os.open(CACHE_DIRECTORY, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store.fd)
    except FileNotFoundError:
        return None
    try:
        if not create:
            os.stat(CACHE_NAME, dir_fd=directory, follow_symlinks=False)
        # SQLite opens files beside the database by name, so it needs a path.
        path = os.path.join(os.fsencode(store.path), CACHE_DIRECTORY, CACHE_NAME)
        if not os.path.samestat(os.fstat(directory), os.stat(os.path.dirname(path), follow_symlinks=False)):
            return None
        if os.path.islink(path):
            return None
        return _open(path, create=create)
    except FileNotFoundError:
        return None
    finally:
        files.close(directory)


def _open(path: bytes, *, create: bool) -> sqlite3.Connection | None:
    database = sqlite3.connect(os.fsdecode(path), timeout=5, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        version = _pragma(database, "user_version")
        if version == 0 and create:
            version = _make_tables(database)
    except sqlite3.Error:
        database.close()
        raise
    if version != _VERSION:
        database.close()
        return None
    return database


def _make_tables(database: sqlite3.Connection) -> int:
    with database:
        database.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        if _pragma(database, "user_version") == 0:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        return _pragma(database, "user_version")


__all__ = [
    "CACHE_DIRECTORY",
    "RACY_NS",
    "CacheCheck",
    "CacheStatistics",
    "DigestCache",
    "cache_statistics",
    "check_cache",
    "remove_cache",
    "volume_identity",
]
