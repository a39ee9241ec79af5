"""Several stores read as one."""

from __future__ import annotations

import heapq
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, compress, groupby
from operator import not_

from cfstools import native
from cfstools.errors import ObjectMissing, StoreError
from cfstools.linux.contents import file_type
from cfstools.store.base import Object, Store, digest_of
from cfstools.store.directory import DirectoryStore
from cfstools.store.open import StorePlace, open_stores
from cfstools.store.place import is_remote, local_path
from cfstools.tree.objects import PackedObjects, add_size, unpacked_objects
from cfstools.verity import Algorithm

_AT_ONCE = 8192
_DIGEST_SIZES = frozenset(one.digest_size for one in Algorithm)


def has_object(stores: Sequence[Store], path: bytes, size: int) -> bool:
    """Whether the kernel would find an object of *size* bytes at *path*, as an image names it, in *stores*.

    The kernel uses the first store that has anything at the path: it must be a regular file of this size, reached
    without links. Contents are not read. Raises ``StoreError`` if a lookup fails.
    """
    for store in stores:
        found = store.size_at(path) if isinstance(store, DirectoryStore) else _size_at(store, path)
        if found is not None:
            return found == size
    return False


def _size_at(store: Store, path: bytes) -> int | None:
    """The length of the file at *path* in *store*, ``None`` if missing. Raises ``StoreError``."""
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


def missing_objects(
    places: Sequence[StorePlace], sizes: Mapping[bytes, int | None], packed: Sequence[PackedObjects] = ()
) -> list[bytes]:
    """The paths in *sizes*, and those of the objects in *packed*, sorted, that are in none of the stores at *places*.

    *sizes* has the path of each object as images name it and its size; ``None``, where images disagree about the size,
    matches no file. A store that does not exist is empty. Raises ``StoreError`` for an unusable store.
    """
    there = [
        place for place in places if not isinstance(place, bytes) or is_remote(place) or file_type(local_path(place))
    ]
    with open_stores(there) as stores:
        first = stores[0] if stores and isinstance(stores[0], DirectoryStore) else None
        left = _left(first, sizes)
        for some in packed:
            for path, one in _left_of_packed(first, some):
                add_size(left, path, one)
        return [path for path in sorted(left) if (size := left[path]) is None or not has_object(stores, path, size)]


def _left(store: DirectoryStore | None, sizes: Mapping[bytes, int | None]) -> dict[bytes, int | None]:
    """What a quick look at the store does not find."""
    if store is None:
        return dict(sizes)
    paths = sorted(sizes)
    parts = (paths[at : at + _AT_ONCE] for at in range(0, len(paths), _AT_ONCE))
    return {path: sizes[path] for part in parts for path in _not_found(store, part, [sizes[path] for path in part])}


def _left_of_packed(store: DirectoryStore | None, packed: PackedObjects) -> Iterator[tuple[bytes, int]]:
    """Paths and sizes of what a quick look at the store does not find."""
    if store is None or not packed[1]:
        return unpacked_objects(packed)
    found = _found(store, packed)
    return compress(unpacked_objects(packed), map(not_, found)) if 0 in found else iter(())


def _found(store: DirectoryStore, packed: PackedObjects) -> bytes:
    """A byte for each object: 1 if the store has a regular file of its size. Many are looked up by several threads."""
    digests, ends = packed
    count, prefixes = len(ends), store.prefix_fds

    def look_up(start: int) -> bytes:
        return native.find_objects(prefixes, digests, ends, start, min(start + _AT_ONCE, count), len(digests) // count)

    if count <= _AT_ONCE:
        return look_up(0)
    from cfstools.threadpool import map_ahead  # noqa: PLC0415 - few objects do without threads

    threads = len(os.sched_getaffinity(0))
    return b"".join(map_ahead(look_up, range(0, count, _AT_ONCE), threads=threads, ahead=1, name="missing"))


def _not_found(store: DirectoryStore, paths: list[bytes], sizes: list[int | None]) -> list[bytes]:
    """Those of *paths* that a quick look at the store does not find; all of them where some are not made of digests."""
    length = (len(paths[0]) - 1) // 2
    known = [size for size in sizes if size is not None]
    joined = b"".join(paths)
    if length not in _DIGEST_SIZES or len(known) < len(paths):
        return paths
    if not re.fullmatch(rb"(?:[0-9a-f]{2}/[0-9a-f]{%d})*" % (2 * length - 2), joined):
        return paths
    digests = bytes.fromhex(joined.replace(b"/", b"").decode())
    found = native.find_objects(store.prefix_fds, digests, array("Q", accumulate(known)), 0, len(paths), length)
    return list(compress(paths, map(not_, found)))


class StoreChain:
    """Looks for an object in each of *stores*, in this order.

    If one store cannot open an object (missing, damaged, unreadable), the next one is tried.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)

    def size(self, digest: bytes) -> int | None:
        """The object's length in the first store that has it, ``None`` if no store has it."""
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

        Raises ``ObjectMissing`` if no store has it, else the first ``StoreError``.
        """
        return self._first(lambda store: store.open(digest), digest.hex())

    def open_path(self, path: bytes) -> Object:
        """The file at *path* in the first store that can open it; raises as :meth:`open` does."""
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
        """The digests in all stores, each once, in byte order."""
        merged = heapq.merge(*(store.objects() for store in self.stores))
        return (digest for digest, _ in groupby(merged))

    def describe(self, digest: bytes) -> str:
        """The object's path in the first store that has it, else in the first store."""
        for store in self.stores:
            try:
                if store.size(digest) is not None:
                    return store.describe(digest)
            except StoreError:
                continue
        return self.stores[0].describe(digest) if self.stores else digest.hex()
