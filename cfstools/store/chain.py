"""Several stores read as one."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from cfstools.errors import ObjectMissing, StoreError
from cfstools.store.base import Store
from cfstools.store.directory import DirectoryStore


def has_object(stores: Sequence[DirectoryStore], path: bytes, size: int) -> bool:
    """Whether the kernel would find an object of *size* bytes at *path*, as an image names it, in one of *stores*.

    It takes what is at the path in the first store that has anything there: that must be a regular file of this size,
    not reached through links. Contents are not looked at. Raises ``StoreError`` for what cannot be looked at.
    """
    for store in stores:
        found = store.look_at(path)
        if found is not None:
            return found == size
    return False


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

    def open(self, digest: bytes) -> int:
        """A descriptor of the object in the first store that can open it.

        Raises ``ObjectMissing`` when no store has it, else the first ``StoreError`` met.
        """
        return self._first(lambda store: store.open(digest), digest.hex())

    def open_path(self, path: bytes) -> int:
        """A descriptor of what is at *path* in the first store that can open it; raises as :meth:`open` does."""
        return self._first(lambda store: store.open_path(path), os.fsdecode(path))

    def _first(self, opener: Callable[[Store], int], subject: str) -> int:
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
