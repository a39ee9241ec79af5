"""Bringing objects to stable storage: contents before they get names, names before anybody relies on them.

Two ways with one guarantee. One ``syncfs`` for a batch costs the least for each object, and waits for whatever other
programs wrote to the file system. An ``fsync`` for each object and each directory that got a name waits for little
else, and costs some milliseconds each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable

from cfstools.linux import files
from cfstools.store.base import Sync, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.scratch import Scratch, Temporary

# Measured on ext4 (docs/store.md): an fsync of a small object takes as long as syncfs for so many bytes of others.
_COST = 5 << 19
# However much that is: more are never synced one by one of our own accord.
_MOST = 64
_MOST_BYTES = 64 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Durability:
    """Syncs what one writer adds to *store*. Raises ``StoreError`` and ``Exhausted``; not for several threads at once.

    To be made before anything is added.
    """

    def __init__(self, store: DirectoryStore, sync: Sync) -> None:
        self._store = store
        self._sync = sync
        # The store's directory may just have been made, and is perhaps not durable itself.
        self._is_new = sync in ("auto", "object") and not store.has_prefixes()
        self._lock = threading.Lock()
        self._named: set[bytes] = set()  # directories that got names since the last sync

    def by_object(self, objects: int, size: int) -> bool:
        """Whether so many objects with so many bytes are synced one by one."""
        if self._sync != "auto" or objects > _MOST or size > _MOST_BYTES:
            return self._sync == "object"
        return objects * _COST <= files.dirty_bytes() - size

    @property
    def is_wanted(self) -> bool:
        """Whether anything is synced at all."""
        return self._sync != "none"

    def contents(self, temporaries: Collection[tuple[Scratch, Temporary]]) -> None:
        """Make the contents of sealed temporaries durable."""
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
        """Objects below these directories are about to get their names."""
        with self._lock:
            self._named.update(prefixes)

    def names(self) -> None:
        """Make durable which names were given so far."""
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
        """Sync the directories above the store, of which any may have been made with it."""
        path = b".."
        here = os.fstat(self._store.fd)
        while True:
            try:
                above = os.stat(path, dir_fd=self._store.fd)
                if above.st_dev != here.st_dev or above.st_ino == here.st_ino:
                    return
                fd = os.open(path, _DIRECTORY, dir_fd=self._store.fd)
            except PermissionError:
                return  # what cannot be read was not made by this user
            _sync_open(fd)
            here, path = above, path + b"/.."


def _sync_open(fd: int) -> None:
    """Sync a directory and close it."""
    try:
        os.fsync(fd)
    finally:
        files.close(fd)
