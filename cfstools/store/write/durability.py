"""Sync objects to stable storage: contents before they get names, names before a build reports success.

Two methods give the same guarantee. One ``syncfs`` for each batch costs least per object, but waits for everything that
other programs wrote to the file system. One ``fsync`` for each object and prefix directory waits for little else, but
takes some milliseconds each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable

from cfstools.linux import files
from cfstools.store.base import Sync, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.write.scratch import Scratch, Temporary

# Measured on ext4 (docs/store.md): fsync of a small object takes as long as syncfs of this many dirty bytes.
_COST = 5 << 19
# Limits of "auto": larger batches are never synced object by object.
_MOST = 64
_MOST_BYTES = 64 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Durability:
    """Syncs what one writer adds to *store*; create it before anything is added. Not thread-safe.

    Raises ``StoreError`` and ``Exhausted``.
    """

    def __init__(self, store: DirectoryStore, sync: Sync) -> None:
        self._store = store
        self._sync = sync
        # The store's own directory may be new and not durable yet.
        self._is_new = sync in ("auto", "object") and not store.has_prefixes()
        self._lock = threading.Lock()
        self._named: set[bytes] = set()  # directories that got names since the last sync

    def by_object(self, objects: int, size: int) -> bool:
        """Whether to sync *objects* objects with *size* bytes in all one by one."""
        if self._sync != "auto" or objects > _MOST or size > _MOST_BYTES:
            return self._sync == "object"
        return objects * _COST <= files.dirty_bytes() - size

    @property
    def is_wanted(self) -> bool:
        """Whether syncing is enabled."""
        return self._sync != "none"

    def contents(self, temporaries: Collection[tuple[Scratch, Temporary]]) -> None:
        """Sync the contents of sealed temporaries."""
        if not self.is_wanted:
            return
        try:
            if self.by_object(len(temporaries), sum(temporary.size for _, temporary in temporaries)):
                for scratch, temporary in temporaries:
                    scratch.sync(temporary)
            else:
                files.syncfs(self._store.fd)
        except OSError as error:
            raise store_error(error, "cannot bring objects to stable storage", self._store.path) from error

    def will_name(self, prefixes: Iterable[bytes]) -> None:
        """Note that objects in these prefix directories are about to be named."""
        with self._lock:
            self._named.update(prefixes)

    def names(self) -> None:
        """Sync all names given so far."""
        with self._lock:
            named, self._named = self._named, set()
        if not named or not self.is_wanted:
            return
        try:
            if self.by_object(len(named), 0):
                self._sync_directories(named)
            else:
                files.syncfs(self._store.fd)
        except OSError as error:
            raise store_error(error, "cannot bring objects to stable storage", self._store.path) from error
        self._is_new = False

    def _sync_directories(self, prefixes: Collection[bytes]) -> None:
        for prefix in sorted(prefixes):
            _sync_open(os.open(prefix, _DIRECTORY, dir_fd=self._store.fd))
        os.fsync(self._store.fd)  # some of them may be new
        if self._is_new:
            self._sync_parents()

    def _sync_parents(self) -> None:
        """Sync the store's parent directories, which may have been created with it."""
        path = b".."
        here = os.fstat(self._store.fd)
        while True:
            try:
                above = os.stat(path, dir_fd=self._store.fd)
                if above.st_dev != here.st_dev or above.st_ino == here.st_ino:
                    return
                fd = os.open(path, _DIRECTORY, dir_fd=self._store.fd)
            except PermissionError:
                return  # an unreadable directory was not created by this user
            _sync_open(fd)
            here, path = above, path + b"/.."


def _sync_open(fd: int) -> None:
    """Sync a directory and close it."""
    try:
        os.fsync(fd)
    finally:
        files.close(fd)
