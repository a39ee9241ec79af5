"""Several stores read as one."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from cfstools.errors import ObjectMissing, StoreError
from cfstools.linux.lookup import file_type
from cfstools.store.base import Object, Store, digest_of
from cfstools.store.directory import DirectoryStore
from cfstools.store.open import StorePlace, open_stores
from cfstools.store.place import local_path


def has_object(stores: Sequence[Store], path: bytes, size: int) -> bool:
    """Whether the kernel would find an object of *size* bytes at *path*, as an image names it, in one of *stores*.

    It takes what is at the path in the first store that has anything there: that must be a regular file of this size,
    not reached through links. Contents are not looked at. Raises ``StoreError`` for what cannot be looked at.
    """
    for store in stores:
        found = store.look_at(path) if isinstance(store, DirectoryStore) else _size_at(store, path)
        if found is not None:
            return found == size
    return False


def _size_at(store: Store, path: bytes) -> int | None:
    """How long what is at *path* in *store* is, ``None`` for nothing. Raises ``StoreError``."""
    parts = [part for part in path.split(b"/") if part]
    digest = digest_of(*parts) if len(parts) == 2 else None
    if digest is not None:
        return store.size(digest)
    try:
        found = store.open_path(path)
    except ObjectMissing:
        return None
    size = found.size
    found.close()
    return size


def missing_objects(places: Sequence[StorePlace], sizes: Mapping[bytes, int | None]) -> list[bytes]:
    """Those of the objects in *sizes*, by path as images name them, that are in none of the stores at *places*.

    They are in order. A size of ``None``, where images contradict each other, is that of no file. A store that does not
    exist has nothing. Raises ``StoreError`` for one that cannot be used.
    """
    there = [place for place in places if not isinstance(place, bytes) or file_type(local_path(place))]
    with open_stores(there) as stores:
        return [path for path, size in sorted(sizes.items()) if size is None or not has_object(stores, path, size)]


class StoreChain:
    """*stores* in the order in which they are asked; the first is the one that is written, by a ``StoreWriter``.

    A store that cannot give an object (missing, damaged, unreadable) does not keep the next from giving it.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)

    def size(self, digest: bytes) -> int | None:
        """The object's length in the first store that has it, ``None`` when none has."""
        failure: StoreError | None = None
        for store in self.stores:
            try:
                size = store.size(digest)
            except StoreError as error:
                failure = failure or error
            else:
                if size is not None:
                    return size
        if failure is not None:
            raise failure
        return None

    def open(self, digest: bytes) -> Object:
        """The object in the first store that can open it.

        Raises ``ObjectMissing`` when no store has it, else the first ``StoreError`` met.
        """
        return self._first(lambda store: store.open(digest), digest.hex())

    def open_path(self, path: bytes) -> Object:
        """What is at *path* in the first store that can open it; raises as :meth:`open` does."""
        return self._first(lambda store: store.open_path(path), os.fsdecode(path))

    def _first(self, opener: Callable[[Store], Object], subject: str) -> Object:
        failure: StoreError | None = None
        for store in self.stores:
            try:
                return opener(store)
            except ObjectMissing:
                continue
            except StoreError as error:
                failure = failure or error
        raise failure or ObjectMissing("object is in no store", subject=subject)

    def objects(self) -> Iterator[bytes]:
        """The digests of all stores, each once, in order."""
        merged = heapq.merge(*(store.objects() for store in self.stores))
        return (digest for digest, _ in groupby(merged))

    def describe(self, digest: bytes) -> str:
        """The object's place in the first store that has it, else in the first store."""
        for store in self.stores:
            try:
                if store.size(digest) is not None:
                    return store.describe(digest)
            except StoreError:
                continue
        return self.stores[0].describe(digest) if self.stores else digest.hex()
