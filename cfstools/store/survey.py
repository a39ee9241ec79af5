"""Everything there is below a store: objects, and what is none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from cfstools.errors import raise_exhausted
from cfstools.linux.files import close
from cfstools.store.base import KEPT_NAME, LOCK_NAME, NEW_KEPT_NAME, STAGE_PREFIX, digest_of, is_prefix, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.scratch import is_temporary

# No objects, and nobody's fault: the lock, the record of the last collection, the digest cache of earlier versions; and
# what fsck.ext4 makes.
_KNOWN = frozenset({LOCK_NAME, KEPT_NAME, NEW_KEPT_NAME, b".mkcfs", b"lost+found"})

# The C tools do not lock, so only age tells whether one of their temporaries is still written: seconds.
UNLOCKED_STALE_AGE = 86400


class Kind(Enum):
    """What a name below a store stands for."""

    OBJECT = "object"
    ODD = "odd"  # something else than a regular file has an object's name, or a directory of objects is none
    FOREIGN = "foreign"
    STAGE = "stage"  # a directory of temporaries
    UNLOCKED_TEMPORARY = "unlocked temporary"  # one of the C tools
    CLOSED = "closed"  # a directory that cannot be read


class Found(NamedTuple):
    """One name: its ``path`` below the store; ``digest`` where it is an object's; the inode's own status."""

    kind: Kind
    path: bytes
    digest: bytes | None
    status: os.stat_result
    why: str = ""

    @property
    def is_temporary(self) -> bool:
        """Whether these are temporaries of a writer, running or not."""
        return self.kind in (Kind.STAGE, Kind.UNLOCKED_TEMPORARY)


def place(store: DirectoryStore, path: bytes) -> str:
    """Where *path* below the store is, for messages."""
    return os.path.join(store.path, os.fsdecode(path))


def survey(store: DirectoryStore) -> Iterator[Found]:
    """All names of the store in byte order. Foreign directories are not entered, links are not followed.

    Raises ``StoreError`` when the store itself cannot be listed. What vanishes meanwhile is left out.
    """
    for name, status in _top(store):
        if is_prefix(name):
            yield from _prefix(store, name, status)
        elif name not in _KNOWN:
            yield Found(_top_kind(name, status), name, None, status)


def temporaries(store: DirectoryStore) -> list[Found]:
    """The temporaries of the store, without looking at any object. Raises ``StoreError``."""
    found = (Found(_top_kind(name, status), name, None, status) for name, status in _top(store))
    return [one for one in found if one.is_temporary]


def _top(store: DirectoryStore) -> list[tuple[bytes, os.stat_result]]:
    try:
        return _listing(store.fd)
    except OSError as error:
        raise store_error(error, "cannot list the store", store.path) from error


def _top_kind(name: bytes, status: os.stat_result) -> Kind:
    if is_temporary(name):
        if name.startswith(STAGE_PREFIX):
            return Kind.STAGE if stat.S_ISDIR(status.st_mode) else Kind.FOREIGN
        if stat.S_ISREG(status.st_mode):
            return Kind.UNLOCKED_TEMPORARY
    return Kind.FOREIGN


def look(store: DirectoryStore, path: bytes) -> Found | None:
    """What is at *path*, as a survey gave it, by now; ``None`` when it is gone. Raises ``StoreError``."""
    prefix, _, name = path.rpartition(b"/")
    try:
        if not prefix:
            status = os.stat(name, dir_fd=store.fd, follow_symlinks=False)
            return Found(_top_kind(name, status), name, None, status)
        with store.prefix_fd(prefix) as directory:
            return _below(prefix, name, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, "cannot look up the object", place(store, path)) from error


def _prefix(store: DirectoryStore, prefix: bytes, status: os.stat_result) -> Iterator[Found]:
    if not stat.S_ISDIR(status.st_mode):
        yield Found(Kind.ODD, prefix, None, status)
        return
    try:
        with store.prefix_fd(prefix) as fd:
            names = _listing(fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise_exhausted(error, "cannot list the store", place(store, prefix))
        yield Found(Kind.CLOSED, prefix, None, status, error.strerror or str(error))
        return
    for name, below in names:
        yield _below(prefix, name, below)


def _below(prefix: bytes, name: bytes, status: os.stat_result) -> Found:
    digest = digest_of(prefix, name)
    kind = Kind.OBJECT if stat.S_ISREG(status.st_mode) else Kind.ODD
    return Found(Kind.FOREIGN if digest is None else kind, b"%b/%b" % (prefix, name), digest, status)


def _listing(directory: int) -> list[tuple[bytes, os.stat_result]]:
    """Names and status of what is in *directory*, in order. Raises plain ``OSError``."""
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


def is_stale(found: Found, *, now: float, alone: bool) -> bool:
    """Whether temporaries belong to nobody any more; *alone* when the store is, or just was, locked exclusively."""
    if found.kind is Kind.STAGE:
        return alone
    return now - max(found.status.st_mtime, found.status.st_ctime) > UNLOCKED_STALE_AGE


def remove_temporary(store: DirectoryStore, found: Found) -> bool:
    """Remove stale temporaries; ``False`` when something in their directory is not theirs. Raises ``StoreError``."""
    try:
        if found.kind is Kind.UNLOCKED_TEMPORARY:
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
        raise store_error(error, "cannot remove temporaries", place(store, found.path)) from error
    return True
