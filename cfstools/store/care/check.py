"""Check objects against their digests, for verify, extract, fsck and repair.

If fs-verity guards a file and the kernel reports the wanted digest, nothing is read. A native function hashes small
files in batches, with the GIL released; each object that fails there is checked again by itself to report the error.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate
from typing import NamedTuple, Self, TypeVar

from cfstools import native
from cfstools.errors import ContentsWrong, InputError, NetworkError, ObjectMissing, StoreError
from cfstools.lifetime import Closable
from cfstools.linux import verity as kernel_verity
from cfstools.progress import SILENT, Stage
from cfstools.store.base import Object, Store
from cfstools.store.directory import DirectoryStore
from cfstools.threadpool import Call, ThreadPool, give_up_if_stopped
from cfstools.verity import MerkleHasher, ObjectId, Params, descriptor, digest_bytes, object_path
from cfstools.verity.files import hash_fd

# Minimum size of a batch, the unit of work of a thread.
LEAST_FILES = 256
LEAST_BYTES = 1 << 20
_BATCH_BYTES = 256 << 20
_OPEN_FILES = 16  # objects that a thread holds open
_WHOLE = 1 << 20  # objects up to this size are read with one call
_SPLIT = 32 << 20  # larger ones are hashed by several threads at once
_ARENA_BYTES = 1 << 20  # files up to a quarter of this are hashed in batches
_BUSY_SECONDS = 0.05

_T = TypeVar("_T")


# One object


def measured(fd: int | None, wanted: ObjectId) -> bool:
    """Whether fs-verity is enabled on *fd* with the *wanted* digest: the kernel then fails reads of other data."""
    if fd is None:
        return False
    try:
        return kernel_verity.measure(fd) == (wanted.algorithm.number, wanted.digest)
    except OSError:
        return False  # unknown: read the file


def digest_object(
    found: Object, size: int, params: Params, *, threads: int = 1, progress: Stage = SILENT
) -> tuple[bytes, int]:
    """Digest and length of the object *found*, expected to have *size* bytes. Raises ``InputError``."""
    if size <= _WHOLE:
        # Ask for one byte more, to notice that the object has grown.
        data = found.read(0, size + 1)
        if len(data) <= size:
            progress.advance(size)
            return digest_bytes(data, params), len(data)
    fd = found.fileno()
    if fd is not None:
        return hash_fd(fd, params, threads=threads if size > _SPLIT else 1, progress=progress)
    hasher = MerkleHasher(params)
    while data := found.read(hasher.size, _WHOLE):
        hasher.update(data)
        progress.advance(len(data))
        give_up_if_stopped()
    return hasher.digest(), hasher.size


def is_intact(store: Store, digest: bytes) -> bool:
    """Whether the object exists and has the contents that its digest names."""
    wanted = ObjectId.of(digest)
    try:
        found = store.open(digest)
    except StoreError:
        return False
    try:
        return digest_object(found, found.size, wanted.params)[0] == digest
    except InputError:
        return False
    finally:
        found.close()


# Many objects


ObjectKey = tuple[bytes, bytes | None, int]
"""An object as an image names it: the path below a store that the kernel opens, the digest, the size in bytes."""


class Wanted:
    """The objects to check, by number.

    ``ends`` has the cumulative sizes: the total bytes up to and including each object. If every object is at the path
    made of its digest, ``packed`` has the concatenated digests and ``ends`` for the native functions, which saves
    creating a key for every object.
    """

    def __init__(self, keys: Sequence[ObjectKey], packed: tuple[bytes, memoryview[int]] | None = None) -> None:
        self.packed = packed
        self.ends: Sequence[int] = packed[1] if packed is not None else list(accumulate([key[2] for key in keys]))
        self._keys = keys

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def size(self) -> int:
        """The total size in bytes."""
        return self.ends[-1] if self.ends else 0

    def key(self, number: int) -> ObjectKey:
        """The key of object *number*, from 0 on."""
        if self.packed is None:
            return self._keys[number]
        length = len(self.packed[0]) // len(self.ends)
        digest = self.packed[0][number * length : (number + 1) * length]
        return object_path(digest), digest, self.ends[number] - (self.ends[number - 1] if number else 0)


class Flaw(Enum):
    """What is wrong with an object."""

    MISSING = "missing"
    SIZE = "size"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    UNVERIFIABLE = "unverifiable"


class BadObject(NamedTuple):
    """An object that failed the check, and why; ``location`` is its path if known."""

    key: ObjectKey
    flaw: Flaw
    what: str
    location: str | None = None


class Tally:
    """Counts of intact objects by method (measured, hashed, present), and the bad ones. Sizes are in bytes."""

    __slots__ = ("bytes_hashed", "findings", "hashed", "measured", "present")

    def __init__(self) -> None:
        self.measured = self.hashed = self.present = self.bytes_hashed = 0
        self.findings: list[BadObject] = []


def split_batches(wanted: Wanted, threads: int) -> list[range]:
    """Split the objects into batches, large ones first: little overhead, and threads end at about the same time."""
    ends, count = wanted.ends, len(wanted)
    batches = []
    start = before = 0
    while start < count:
        files = max(LEAST_FILES, (count - start) // (2 * threads))
        size = min(_BATCH_BYTES, max(LEAST_BYTES, (wanted.size - before) // (2 * threads)))
        end = max(start + 1, min(start + files, bisect_right(ends, before + size, start)))
        batches.append(range(start, end))
        start, before = end, ends[end - 1]
    return batches


def gather_batches(objects: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Group an iterable of unknown length into batches of the minimum size."""
    batch: list[_T] = []
    size = 0
    for one in objects:
        batch.append(one)
        size += size_of(one)
        if len(batch) >= LEAST_FILES or size >= LEAST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class SmallFiles:
    """Hashes small objects of a store in batches, or looks objects up; thread-safe."""

    def __init__(self, store: DirectoryStore, params: Params) -> None:
        self._prefixes = store.prefix_fds  # opened once, not by several threads at the same time
        self._params = params
        self._descriptor = descriptor(b"", 0, params)
        self._local = threading.local()

    def right(self, packed: tuple[bytes, memoryview[int]], batch: range) -> bytes:
        """One byte for each object of *batch*, numbers in *packed*: 1 if it is intact, else 0."""
        params = self._params
        right = b""
        # A call returns after a moment, with as many as it took: another thread may hold the GIL for as long.
        while len(right) < len(batch):
            give_up_if_stopped()
            right += native.check_objects(
                self._prefixes,
                *packed,
                batch.start + len(right),
                batch.stop,
                self._arena(),
                params.algorithm.value,
                params.block_size,
                params.salt_prefix,
                self._descriptor,
            )
        return right

    def there(self, packed: tuple[bytes, memoryview[int]], batch: range) -> bytes:
        """One byte for each object of *batch*, numbers in *packed*: 1 if a regular file of its size is there."""
        give_up_if_stopped()
        size = self._params.algorithm.digest_size
        return native.find_objects(self._prefixes, *packed, batch.start, batch.stop, size)

    def _arena(self) -> bytearray:
        arena: bytearray | None = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = bytearray(_ARENA_BYTES)
        return arena


class ObjectChecker(Closable):
    """Checks each of the *wanted* objects in the first of *stores* that has it, which the kernel would use.

    With *deep*, compares the digest: measured by the kernel if fs-verity guards the file, else by hashing. If the first
    object of a batch is not guarded, the rest of the batch is hashed without asking. Without *deep*, objects only need
    the right size. *params* apply to all digests. ``progress`` is advanced in bytes.

    Several *threads* start when the ``with`` block is entered; closing skips what has not been checked.
    """

    def __init__(
        self,
        wanted: Wanted,
        stores: Sequence[Store],
        params: Params,
        *,
        deep: bool = True,
        threads: int = 1,
        progress: Stage = SILENT,
    ) -> None:
        self._batches = split_batches(wanted, threads)
        self._check = _BatchCheck(wanted, stores, params, deep=deep, threads=threads, progress=progress)
        self._workers = (
            ThreadPool(min(threads, len(self._batches)), "verify") if threads > 1 and self._batches else None
        )
        self._calls: list[Call[Tally]] = []

    def __enter__(self) -> Self:
        if self._workers is not None:
            self._calls = [self._workers.submit(self._check, batch) for batch in self._batches]
            try:
                self._check.wait_until_busy(self._workers.count)
            except BaseException:  # such as KeyboardInterrupt
                self._workers.close()
                raise
        return self

    def close(self) -> None:
        """Skip what has not been checked yet and wait for the threads."""
        if self._workers is not None:
            self._workers.close()

    def tallies(self) -> Iterator[Tally]:
        """Yield the tally of each batch in the order of the objects; the caller adds them up."""
        if self._workers is None:
            yield from map(self._check, self._batches)
        for call in self._calls:
            yield call.result()


class _WrongError(Exception):
    """An object failed the check."""

    def __init__(self, flaw: Flaw, what: str, location: str | None = None) -> None:
        super().__init__(what)
        self.flaw = flaw
        self.what = what
        self.location = location


class _Opened(NamedTuple):
    """An open object that must be read."""

    key: ObjectKey
    found: Object
    store: Store


class _BatchCheck:
    """Checks batches of objects; thread-safe."""

    def __init__(
        self, wanted: Wanted, stores: Sequence[Store], params: Params, *, deep: bool, threads: int, progress: Stage
    ) -> None:
        self._wanted = wanted
        self._stores = stores
        self._params = params
        self._deep = deep
        self._threads = threads
        self._progress = progress
        first = stores[0] if stores else None
        self._small = SmallFiles(first, params) if isinstance(first, DirectoryStore) else None
        self._busy = threading.Semaphore(0)

    def wait_until_busy(self, threads: int) -> None:
        """Wait briefly until all threads work, because the caller may then hold the GIL for long."""
        for _ in range(threads):
            self._busy.acquire(timeout=_BUSY_SECONDS)

    def __call__(self, batch: range) -> Tally:
        tally = Tally()
        self._check(batch[:1], tally)
        rest: Sequence[int] = batch[1:]
        self._busy.release()
        if not tally.measured:
            rest = self._pass_good(batch[1:], tally)
        for start in range(0, len(rest), _OPEN_FILES):
            self._check(rest[start : start + _OPEN_FILES], tally)
        return tally

    def _pass_good(self, batch: range, tally: Tally) -> Sequence[int]:
        """Hash or look up objects of *batch* in the first store; return the numbers that still need a check."""
        wanted = self._wanted
        if wanted.packed is None or not batch or self._small is None:
            return batch
        right = (self._small.right if self._deep else self._small.there)(wanted.packed, batch)
        left = [number for number, is_right in zip(batch, right, strict=True) if not is_right] if 0 in right else []
        good = wanted.ends[batch.stop - 1] - wanted.ends[batch.start - 1] - sum([wanted.key(one)[2] for one in left])
        if self._deep:
            tally.hashed += len(batch) - len(left)
            tally.bytes_hashed += good
        else:
            tally.present += len(batch) - len(left)
        self._progress.advance(good)
        return left

    def _check(self, numbers: Sequence[int], tally: Tally) -> None:
        """Check objects one by one and record the bad ones."""
        queue: list[_Opened] = []
        try:
            for key in map(self._wanted.key, numbers):
                try:
                    self._look(key, queue, tally)
                except _WrongError as wrong:
                    tally.findings.append(BadObject(key, wrong.flaw, wrong.what, wrong.location))
                    self._progress.advance(key[2])
            for opened in queue:
                self._judge(opened, tally)
        finally:
            for opened in queue:
                opened.found.close()

    def _judge(self, opened: _Opened, tally: Tally) -> None:
        """Compare the digest of an object."""
        key, found, store = opened
        try:
            digest, _ = digest_object(found, key[2], self._params, threads=self._threads, progress=self._progress)
        except InputError as error:
            tally.findings.append(BadObject(key, Flaw.UNREADABLE, str(error), _location(key, store)))
            return
        if digest != key[1]:
            what = f"its fs-verity digest is {digest.hex()}"
            tally.findings.append(BadObject(key, Flaw.DAMAGED, what, _location(key, store)))
        else:
            tally.hashed += 1
            tally.bytes_hashed += key[2]

    def _look(self, key: ObjectKey, queue: list[_Opened], tally: Tally) -> None:
        """Open the object and check it without reading if possible, else queue it. Raises _WrongError."""
        path, digest, expected = key
        if not path or (self._deep and digest is None):
            raise _WrongError(Flaw.UNVERIFIABLE, "the image has no digest for these contents")
        found, store = self._open(path, digest)
        keep = False
        try:
            if found.size != expected:
                raise _WrongError(Flaw.SIZE, f"it has {found.size} bytes instead of {expected}", _location(key, store))
            if not self._deep:
                tally.present += 1
            elif digest is not None and measured(found.fileno(), ObjectId(self._params.algorithm, digest)):
                tally.measured += 1
            else:
                queue.append(_Opened(key, found, store))
                keep = True
                return
            self._progress.advance(expected)
        finally:
            if not keep:
                found.close()

    def _open(self, path: bytes, digest: bytes | None) -> tuple[Object, Store]:
        """Open the object in the first store that has it; return it and the store."""
        at_digest = _is_at_digest(path, digest)
        failure: _WrongError | None = None
        for store in self._stores:
            try:
                if digest is not None and at_digest:
                    return store.open(digest), store
                return store.open_path(path), store
            except ObjectMissing:
                continue
            except ContentsWrong as error:  # of a store elsewhere: the next may be a mirror
                failure = failure or _WrongError(Flaw.DAMAGED, error.what, error.subject)
            except NetworkError as error:
                failure = failure or _WrongError(Flaw.UNREADABLE, error.what, error.subject)
            except StoreError as error:
                raise _WrongError(Flaw.UNREADABLE, error.what, error.subject) from None
        raise failure or _WrongError(Flaw.MISSING, "it is in none of the stores")


def _is_at_digest(path: bytes, digest: bytes | None) -> bool:
    """Whether *path* is the one made of *digest*."""
    return digest is not None and path == object_path(digest)


def _location(key: ObjectKey, store: Store) -> str | None:
    """The object's path in *store* for messages, if it is named by its digest."""
    path, digest, _ = key
    return store.describe(digest) if digest is not None and _is_at_digest(path, digest) else None
