"""Scan a store: objects and everything else found there."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from cfstools import native
from cfstools.errors import raise_exhausted
from cfstools.linux.files import close
from cfstools.store.base import KEPT_NAME, LOCK_NAME, NEW_KEPT_NAME, STAGE_PREFIX, digest_of, is_prefix, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.write.scratch import is_temporary
from cfstools.verity import Algorithm
from cfstools.verity.object_id import LEAVES

# Files that belong to a store without being objects: the lock, the record of the last collection, the digest cache of
# earlier versions, the leaves of large objects, and the directory that fsck.ext4 makes.
_KNOWN = frozenset({LOCK_NAME, KEPT_NAME, NEW_KEPT_NAME, LEAVES.encode(), b".mkcfs", b"lost+found"})

# Of so many objects one is looked up by itself.
_FEW = 4

_COLUMNS = 3  # numbers of each object: size, blocks, ctime
_DIGEST_SIZES = bytes(one.digest_size for one in Algorithm)

# Seconds. The C tools take no lock, so only the age tells whether one of their temporaries is in use.
UNLOCKED_STALE_AGE = 86400


class EntryKind(Enum):
    """What an entry of a store is."""

    OBJECT = "object"
    ODD = "odd"  # not a regular file with an object's name, or no directory with a prefix's name
    FOREIGN = "foreign"
    STAGE = "stage"  # a directory of temporaries
    UNLOCKED_TEMPORARY = "unlocked temporary"  # of the C tools
    CLOSED = "closed"  # an unreadable directory


class Entry(NamedTuple):
    """One entry: its ``path`` below the store, its ``digest`` if it has an object's name, its lstat(2) status."""

    kind: EntryKind
    path: bytes
    digest: bytes | None
    status: os.stat_result
    why: str = ""

    @property
    def is_temporary(self) -> bool:
        """Whether this is a temporary, or a directory of them, in use or not."""
        return self.kind in (EntryKind.STAGE, EntryKind.UNLOCKED_TEMPORARY)


def location(store: DirectoryStore, path: bytes) -> str:
    """*path* below the store as text for messages."""
    return os.path.join(store.path, os.fsdecode(path))


def scan(store: DirectoryStore) -> Iterator[Entry]:
    """Yield all entries of the store in byte order, without entering foreign directories or following links.

    Entries that vanish meanwhile are skipped. Raises ``StoreError`` if the store itself cannot be listed.
    """
    for name, status in _top(store):
        if is_prefix(name):
            yield from _prefix(store, name, status)
        elif name not in _KNOWN:
            yield Entry(_top_kind(name, status), name, None, status)


class Listing(NamedTuple):
    """What is in one directory of a store: the digests of its objects, and all else, both in byte order.

    *sizes* in bytes, *blocks* of 512 bytes and *ctimes* in nanoseconds are those of the objects in the same order.
    *known* are digests of further objects.
    """

    digests: Sequence[bytes] = ()
    sizes: Sequence[int] = ()
    blocks: Sequence[int] = ()
    ctimes: Sequence[int] = ()
    others: Sequence[Entry] = ()
    known: Sequence[bytes] = ()


def listings(store: DirectoryStore, known: Collection[bytes] = ()) -> Iterator[Listing]:
    """Yield all that :func:`scan` does, a directory at a time: most objects cost little. Raises likewise.

    Of objects in *known* only the digests may be told, apart from the others: their status costs most of the time.
    """
    top: list[Entry] = []
    for name, status in _top(store):
        if not is_prefix(name):
            if name not in _KNOWN:
                top.append(Entry(_top_kind(name, status), name, None, status))
            continue
        try:
            with store.prefix_fd(name) as fd:
                if known and (found := _with_known(fd, name, known)) is not None:
                    yield found
                    continue
                digests, packed, names = native.list_objects(fd, int(name, 16), _DIGEST_SIZES, _COLUMNS)
                others = [_below(name, other, status) for other, status in _statuses(fd, names)]
                numbers = memoryview(packed).cast("q")
                sizes, blocks, ctimes = (numbers[len(digests) * at : len(digests) * (at + 1)] for at in range(_COLUMNS))
                yield Listing(digests, sizes, blocks, ctimes, others)
        except OSError:
            yield Listing(others=list(_prefix(store, name, status)))  # says why
    yield Listing(others=top)


def _with_known(directory: int, prefix: bytes, known: Collection[bytes]) -> Listing | None:
    """The listing of a directory with little in it but objects in *known*; ``None`` for any other one.

    Raises plain ``OSError``.
    """
    digests, _, names = native.list_objects(directory, int(prefix, 16), _DIGEST_SIZES, 0)
    others = [digest for digest in digests if digest not in known]
    if names or _FEW * len(others) > len(digests):
        return None
    rest, sizes, blocks, ctimes = [], [], [], []
    for digest in others:
        with suppress(FileNotFoundError):
            status = os.stat(digest.hex()[2:], dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                return None
            rest.append(digest)
            sizes.append(status.st_size)
            blocks.append(status.st_blocks)
            ctimes.append(status.st_ctime_ns)
    there = [digest for digest in digests if digest in known] if others else digests
    return Listing(rest, sizes, blocks, ctimes, known=there)


def _statuses(directory: int, names: Sequence[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    for name in names:
        with suppress(FileNotFoundError):
            yield name, os.stat(name, dir_fd=directory, follow_symlinks=False)


def temporaries(store: DirectoryStore) -> list[Entry]:
    """The temporaries of the store; objects are not listed. Raises ``StoreError``."""
    found = (Entry(_top_kind(name, status), name, None, status) for name, status in _top(store))
    return [one for one in found if one.is_temporary]


def _top(store: DirectoryStore) -> list[tuple[bytes, os.stat_result]]:
    try:
        return _listing(store.fd)
    except OSError as error:
        raise store_error(error, "cannot list the store", store.path) from error


def _top_kind(name: bytes, status: os.stat_result) -> EntryKind:
    if is_temporary(name):
        if name.startswith(STAGE_PREFIX):
            return EntryKind.STAGE if stat.S_ISDIR(status.st_mode) else EntryKind.FOREIGN
        if stat.S_ISREG(status.st_mode):
            return EntryKind.UNLOCKED_TEMPORARY
    return EntryKind.FOREIGN


def look_up(store: DirectoryStore, path: bytes) -> Entry | None:
    """Look again at the entry *path* of an earlier scan; ``None`` if it is gone. Raises ``StoreError``."""
    prefix, _, name = path.rpartition(b"/")
    try:
        if not prefix:
            status = os.stat(name, dir_fd=store.fd, follow_symlinks=False)
            return Entry(_top_kind(name, status), name, None, status)
        with store.prefix_fd(prefix) as directory:
            return _below(prefix, name, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, "cannot look up the object", location(store, path)) from error


def _prefix(store: DirectoryStore, prefix: bytes, status: os.stat_result) -> Iterator[Entry]:
    if not stat.S_ISDIR(status.st_mode):
        yield Entry(EntryKind.ODD, prefix, None, status)
        return
    try:
        with store.prefix_fd(prefix) as fd:
            names = _listing(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise_exhausted(error, "cannot list the store", location(store, prefix))
        yield Entry(EntryKind.CLOSED, prefix, None, status, error.strerror or str(error))
        return
    for name, below in names:
        yield _below(prefix, name, below)


def _below(prefix: bytes, name: bytes, status: os.stat_result) -> Entry:
    digest = digest_of(prefix, name)
    kind = EntryKind.OBJECT if stat.S_ISREG(status.st_mode) else EntryKind.ODD
    return Entry(EntryKind.FOREIGN if digest is None else kind, b"%b/%b" % (prefix, name), digest, status)


def _listing(directory: int) -> list[tuple[bytes, os.stat_result]]:
    """Names and status of the entries of *directory*, sorted. Raises plain ``OSError``."""
    own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    found = []
    try:
        with os.scandir(own) as entries:
            for entry in entries:
                try:
                    found.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    finally:
        close(own)
    found.sort(key=lambda item: item[0])
    return found


def is_stale(found: Entry, *, now: float, alone: bool) -> bool:
    """Whether no writer uses a temporary any more; *alone*: the store is, or just was, locked exclusively."""
    if found.kind is EntryKind.STAGE:
        return alone
    return now - max(found.status.st_mtime, found.status.st_ctime) > UNLOCKED_STALE_AGE


def remove_temporary(store: DirectoryStore, found: Entry) -> bool:
    """Remove stale temporaries; ``False`` if their directory has subdirectories. Raises ``StoreError``."""
    try:
        if found.kind is EntryKind.UNLOCKED_TEMPORARY:
            os.unlink(found.path, dir_fd=store.fd)
            return True
        stage = os.open(found.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store.fd)
        try:
            names = _listing(stage)
            for name, status in names:
                if stat.S_ISDIR(status.st_mode):
                    return False
                os.unlink(name, dir_fd=stage)
        finally:
            close(stage)
        os.rmdir(found.path, dir_fd=store.fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise store_error(error, "cannot remove temporaries", location(store, found.path)) from error
    return True
