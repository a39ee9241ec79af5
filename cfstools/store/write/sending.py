"""Send objects to another store: a directory, or names in object storage; only what is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from cfstools import native
from cfstools.errors import ContentsWrong, SourceChanged, naming
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.store.base import FsVerity, Object, Store, Sync, digest_of
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.write.arriving import ArrivingObjects
from cfstools.store.write.writer import StoreWriter
from cfstools.streams.buffered import BufferedReader, Read, read_up_to
from cfstools.threadpool import Call, ThreadPool, give_up_if_stopped
from cfstools.transport.base import Target
from cfstools.verity import Algorithm, MerkleHasher, ObjectId, digest_bytes
from cfstools.verity.merkle import leaves_size
from cfstools.verity.object_id import LARGE, leaves_name, object_name

LOOKED_UP = 64
"""So many objects at most are looked up one by one; for more, all that is there is listed."""

_SMALL = 1 << 20
_PIECE = 1 << 20
_AHEAD = 4096  # calls that wait at most


class Sent(NamedTuple):
    """What was sent: objects, and their bytes."""

    objects: int
    size: int


def send_to_directory(
    source: Store,
    wanted: Mapping[bytes, int],
    there: DirectoryStore,
    *,
    threads: int,
    object_mode: int = 0o644,
    fs_verity: FsVerity = "auto",
    sync: Sync = "auto",
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> Sent:
    """Add to *there* those of *wanted*, sizes by digest, that it lacks or has with another size.

    Raises ``ContentsWrong`` for an object of *source* that has not the contents its digest names, ``StoreError``,
    ``InputError``. What was sent before stays.
    """
    missing = {digest: size for digest, size in wanted.items() if there.size(digest) != size}
    for algorithm in Algorithm:
        mine = {digest: size for digest, size in missing.items() if ObjectId.of(digest).algorithm is algorithm}
        if not mine:
            continue
        writer = StoreWriter(
            there,
            params=ObjectId.of(next(iter(mine))).params,
            object_mode=object_mode,
            fs_verity=fs_verity,
            sync=sync,
            waiting=waiting,
        )
        with writer:
            arriving = ArrivingObjects(writer)

            def add(digest: bytes, size: int, arriving: ArrivingObjects = arriving) -> bool:
                with naming(source.describe(digest)), _opened(source, digest, size) as found:
                    arriving.take(digest, size, _reader(found, size))
                return True

            try:
                _send(add, mine, threads, progress)
            finally:
                arriving.finish()
                writer.commit()
    return Sent(len(missing), sum(missing.values()))


def send_to_target(
    source: Store,
    wanted: Mapping[bytes, int],
    there: Target,
    prefix: str = "",
    *,
    connections: int,
    progress: Progress = SILENT,
) -> Sent:
    """Put below *prefix* of *there* those of *wanted*, sizes by digest, that it lacks or has with another size.

    Each is compared with its digest before its last byte leaves, so that none appears with other contents. Raises as
    :func:`send_to_directory` does, and ``NetworkError``.
    """
    known = _found(there, prefix, wanted, connections)
    missing = {digest: size for digest, size in wanted.items() if known.get(digest) != size}

    def put(digest: bytes, size: int) -> bool:
        body = ObjectBody(source, digest, size)
        return there.put(object_name(digest, prefix), body, replace=digest in known)

    return _send(put, missing, connections, progress)


def send_leaves(
    source: Store,
    wanted: Mapping[bytes, int],
    there: Target,
    prefix: str = "",
    *,
    connections: int,
    progress: Progress = SILENT,
) -> int:
    """Put the leaves of the large ones of *wanted* below *prefix* of *there*, where they are missing; how many.

    Whoever reads them can check parts of these objects (docs/store.md, "Leaves"). Raises as :func:`send_to_target`.
    """
    large = {digest: size for digest, size in wanted.items() if size > LARGE}
    if not large:
        return 0

    def put(digest: bytes, size: int) -> bool:
        body = LeavesBody(source, digest, size)
        name = leaves_name(digest, prefix)
        return there.size(name) != body.size and there.put(name, body, replace=True)

    return _send(put, large, connections, progress, name="leaves").objects


class ObjectBody:
    """An object of *source* to send, whose end is only given if all of it has the digest."""

    def __init__(self, source: Store, digest: bytes, size: int) -> None:
        self._source = source
        self._digest = digest
        self.size = size

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read it from the start. Raises ``ContentsWrong`` before the last bytes of other contents."""
        with naming(self._source.describe(self._digest)), _opened(self._source, self._digest, self.size) as found:
            yield self._whole(found) if self.size <= _SMALL else self._checked(_reader(found, self.size))

    def _whole(self, found: Object) -> Read:
        data = found.read(0, self.size)
        if digest_bytes(data, ObjectId.of(self._digest).params) != self._digest:
            raise _wrong()
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            part = data[at : at + count]
            at += len(part)
            return part

        return read

    def _checked(self, read: Read) -> Read:
        hasher = MerkleHasher(ObjectId.of(self._digest).params)

        def checked(count: int) -> bytes:
            give_up_if_stopped()
            part = read(count)
            hasher.update(part)
            if part and hasher.size == self.size and hasher.digest() != self._digest:
                raise _wrong()
            return part

        return checked


class LeavesBody:
    """The leaves of an object of *source* to send, whose end is only given if all of the object has the digest."""

    def __init__(self, source: Store, digest: bytes, size: int) -> None:
        self._source = source
        self._digest = digest
        self._object_size = size
        self._params = ObjectId.of(digest).params
        self.size = leaves_size(size, self._params)

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read them from the start. Raises ``ContentsWrong`` before the last of another object."""
        with (
            naming(self._source.describe(self._digest)),
            _opened(self._source, self._digest, self._object_size) as found,
        ):
            yield BufferedReader(self._hashed(_reader(found, self._object_size))).read

    def _hashed(self, read: Read) -> Read:
        params = self._params
        hasher = MerkleHasher(params)

        def leaves(_count: int) -> bytes:
            give_up_if_stopped()
            data = read_up_to(read, _PIECE)
            hashes = native.hash_blocks(params.algorithm.value, data, params.block_size, b"")
            hasher.update_hashed(hashes, len(data))
            if data and hasher.size == self._object_size and hasher.digest() != self._digest:
                raise _wrong()
            return hashes

        return leaves


def _send(
    put: Callable[[bytes, int], bool],
    missing: Mapping[bytes, int],
    threads: int,
    progress: Progress,
    *,
    name: str = "send",
) -> Sent:
    """Call *put* for each object in threads; it says whether it was not there meanwhile."""
    with running_stage(progress, name, sum(missing.values()), "B") as stage, ThreadPool(threads, "send") as workers:
        objects = size = 0
        items = iter(missing.items())
        while batch := list(islice(items, _AHEAD)):
            calls = [workers.submit(_put, put, digest, length, stage) for digest, length in batch]
            done = [call.result() for call in calls]
            objects += sum(done)
            size += sum(length for (_, length), was_sent in zip(batch, done, strict=True) if was_sent)
    return Sent(objects, size)


def _put(put: Callable[[bytes, int], bool], digest: bytes, size: int, stage: Stage) -> bool:
    was_sent = put(digest, size)
    stage.advance(size)
    return was_sent


@contextmanager
def _opened(source: Store, digest: bytes, size: int) -> Iterator[Object]:
    found = source.open(digest)
    try:
        if found.size != size:
            raise SourceChanged(f"has {found.size} bytes instead of {size}")
        yield found
    finally:
        found.close()


def _reader(found: Object, size: int) -> Read:
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        part = found.read(at, min(count, size - at, _PIECE))
        if not part and count and at < size:
            raise SourceChanged("changed while it was read")
        at += len(part)
        return part

    return read


def _found(there: Target, prefix: str, wanted: Mapping[bytes, int], connections: int) -> dict[bytes, int]:
    """The sizes of objects that are there: of those wanted if they are few, else of all."""
    if len(wanted) > LOOKED_UP:
        listed = ((_digest(name, prefix), size) for name, size in there.names(prefix))
        return {digest: size for digest, size in listed if digest is not None and digest in wanted}
    with ThreadPool(min(connections, len(wanted)), "look") as workers:
        calls: Sequence[tuple[bytes, Call[int | None]]] = [
            (digest, workers.submit(there.size, object_name(digest, prefix))) for digest in wanted
        ]
        return {digest: size for digest, call in calls if (size := call.result()) is not None}


def _digest(name: str, prefix: str) -> bytes | None:
    parts = os.fsencode(name.removeprefix(f"{prefix}/") if prefix else name).split(b"/")
    return digest_of(*parts) if len(parts) == 2 else None


def _wrong() -> ContentsWrong:
    return ContentsWrong("its contents do not have the digest that its name says")
