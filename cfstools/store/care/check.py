"""Is an object what its digest says? The one check, for all who ask: verify, extract, fsck and repair.

Where fs-verity guards a file and the kernel says the digest that is wanted, nothing is read. Small files of a directory
are hashed together by a native function, with the GIL released; whatever that does not find right is looked at one by
one, so that what is wrong can be said.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate
from typing import NamedTuple, Self, TypeVar

from cfstools import native
from cfstools.errors import InputError, ObjectMissing, StoreError
from cfstools.linux import verity as kernel_verity
from cfstools.progress import SILENT, Stage
from cfstools.store.base import Object, Store
from cfstools.store.directory import DirectoryStore
from cfstools.verity import MerkleHasher, ObjectId, Params, descriptor, digest_bytes, hash_fd, object_path
from cfstools.workers import Call, Workers, give_up_if_stopped

# A batch is what a thread checks between two steps of progress.
LEAST_FILES = 256
LEAST_BYTES = 1 << 20
_BATCH_BYTES = 256 << 20
_STEP_FILES = 1024  # hashed between two looks whether the result is still wanted
_OPEN_FILES = 16  # how many objects a thread holds open
_WHOLE = 1 << 20  # objects up to this size are read with one call
_SPLIT = 32 << 20  # larger ones are hashed by several threads at once
_ARENA_BYTES = 1 << 20  # files up to a quarter of this are hashed together
_BUSY_SECONDS = 0.05

_T = TypeVar("_T")


# One object


def measured(fd: int | None, wanted: ObjectId) -> bool:
    """Whether the kernel guards the file *fd* with the digest that is *wanted*, and fails every read of other bytes."""
    if fd is None:
        return False
    try:
        return kernel_verity.measure(fd) == (wanted.algorithm.number, wanted.digest)
    except OSError:
        return False  # what cannot be measured is read


def digest_object(
    found: Object, size: int, params: Params, *, threads: int = 1, progress: Stage = SILENT
) -> tuple[bytes, int]:
    """The digest and the length of what *found* holds, which should be *size* bytes. Raises ``InputError``."""
    if size <= _WHOLE:
        # One byte more than expected tells whether the object has grown.
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
    """Whether the object is there and has the contents its name says."""
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


Key = tuple[bytes, bytes | None, int]
"""An object as an image names it: the path below a store at which the kernel looks, the digest of what must be found
there, and its size."""


class Wanted:
    """The objects to check, by number.

    ``ends`` says how many bytes the objects have together up to and including each. Where all are at the paths made of
    their digests, ``packed`` are those, one behind the other, and ``ends``, as the native functions take them: nothing
    else is made of an object that is right.
    """

    def __init__(self, keys: Sequence[Key], packed: tuple[bytes, memoryview[int]] | None = None) -> None:
        self.packed = packed
        self.ends: Sequence[int] = packed[1] if packed is not None else list(accumulate([key[2] for key in keys]))
        self._keys = keys

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def size(self) -> int:
        """How many bytes all have together."""
        return self.ends[-1] if self.ends else 0

    def key(self, number: int) -> Key:
        """The object with this *number*, from 0 on."""
        if self.packed is None:
            return self._keys[number]
        length = len(self.packed[0]) // len(self.ends)
        digest = self.packed[0][number * length : (number + 1) * length]
        return object_path(digest), digest, self.ends[number] - (self.ends[number - 1] if number else 0)


class Flaw(Enum):
    """What is wrong with an object that is wanted."""

    MISSING = "missing"
    SIZE = "size"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    UNVERIFIABLE = "unverifiable"


class Finding(NamedTuple):
    """What is wrong with one object; ``place`` is where it was met, if that is known."""

    key: Key
    flaw: Flaw
    what: str
    place: str | None = None


class Tally:
    """How many objects were found right, by how, and what is wrong with the others. Sizes are in bytes."""

    __slots__ = ("bytes_hashed", "findings", "hashed", "measured", "present")

    def __init__(self) -> None:
        self.measured = self.hashed = self.present = self.bytes_hashed = 0
        self.findings: list[Finding] = []


def split_batches(wanted: Wanted, threads: int) -> list[range]:
    """The objects in batches, large ones first, so that threads are left alone for long and yet end together."""
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
    """The *objects* of an unknown number in batches of the least size, as they come."""
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
    """Hashes the small objects of a directory together; may be called from several threads."""

    def __init__(self, store: DirectoryStore, params: Params) -> None:
        self._prefixes = store.prefix_fds  # opened once, and not in several threads that wait for each other
        self._params = params
        self._descriptor = descriptor(b"", 0, params)
        self._local = threading.local()

    def right(self, packed: tuple[bytes, memoryview[int]], batch: range) -> bytes:
        """For each object of *batch*, by number in *packed*, a byte: 1 if it was found right, else 0."""
        params = self._params
        right = b""
        for start in range(batch.start, batch.stop, _STEP_FILES):
            give_up_if_stopped()
            right += native.check_objects(
                self._prefixes,
                *packed,
                start,
                min(start + _STEP_FILES, batch.stop),
                self._arena(),
                params.algorithm.value,
                params.block_size,
                params.salt_prefix,
                self._descriptor,
            )
        return right

    def _arena(self) -> bytearray:
        arena: bytearray | None = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = bytearray(_ARENA_BYTES)
        return arena


class ObjectCheck:
    """A check of each of the *wanted* objects in the first of *stores* that has it, as the kernel would find it.

    Deep: contents have the digest, by the kernel's measurement where fs-verity guards the file, else by hashing; where
    it does not guard the first object of a batch, none is measured. Otherwise objects only have to be there with the
    right size. *params* are those of all digests. ``progress`` is advanced in bytes.

    With several *threads* they begin at once. Leaving the ``with`` block stops what is not done.
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
        self._workers = Workers(min(threads, len(self._batches)), "verify") if threads > 1 and self._batches else None
        self._calls: list[Call[Tally]] = []

    def __enter__(self) -> Self:
        if self._workers is not None:
            self._calls = [self._workers.submit(self._check, batch) for batch in self._batches]
            try:
                self._check.wait_until_busy(self._workers.count)
            except BaseException:  # a signal
                self._workers.stop()
                raise
        return self

    def __exit__(self, *_error: object) -> None:
        if self._workers is not None:
            self._workers.stop()

    def tallies(self) -> Iterator[Tally]:
        """What was found, batch after batch in the order of the objects; to be added up."""
        if self._workers is None:
            yield from map(self._check, self._batches)
        for call in self._calls:
            yield call.result()


class _WrongError(Exception):
    """An object is not as it should be."""

    def __init__(self, flaw: Flaw, what: str, place: str | None = None) -> None:
        super().__init__(what)
        self.flaw = flaw
        self.what = what
        self.place = place


class _Opened(NamedTuple):
    """An object that is to be read."""

    key: Key
    found: Object
    store: Store


class _BatchCheck:
    """Checks batches of objects; may be called from several threads."""

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
        """Wait a moment until so many threads are at work, as the caller may then keep the interpreter for long."""
        for _ in range(threads):
            self._busy.acquire(timeout=_BUSY_SECONDS)

    def __call__(self, batch: range) -> Tally:
        tally = Tally()
        self._check(batch[:1], tally)
        rest: Sequence[int] = batch[1:]
        self._busy.release()
        if self._deep and not tally.measured:
            rest = self._pass_good(batch[1:], tally)
        for start in range(0, len(rest), _OPEN_FILES):
            self._check(rest[start : start + _OPEN_FILES], tally)
        return tally

    def _pass_good(self, batch: range, tally: Tally) -> Sequence[int]:
        """Hash the small ones of *batch* in the first store together; returns those not found right this way."""
        wanted = self._wanted
        if wanted.packed is None or not batch or self._small is None:
            return batch
        right = self._small.right(wanted.packed, batch)
        left = [number for number, is_right in zip(batch, right, strict=True) if not is_right] if 0 in right else []
        good = wanted.ends[batch.stop - 1] - wanted.ends[batch.start - 1] - sum([wanted.key(one)[2] for one in left])
        tally.hashed += len(batch) - len(left)
        tally.bytes_hashed += good
        self._progress.advance(good)
        return left

    def _check(self, numbers: Sequence[int], tally: Tally) -> None:
        """Check objects one by one, and say what is wrong with them."""
        queue: list[_Opened] = []
        try:
            for key in map(self._wanted.key, numbers):
                try:
                    self._look(key, queue, tally)
                except _WrongError as wrong:
                    tally.findings.append(Finding(key, wrong.flaw, wrong.what, wrong.place))
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
            tally.findings.append(Finding(key, Flaw.UNREADABLE, str(error), _place(key, store)))
            return
        if digest != key[1]:
            what = f"its fs-verity digest is {digest.hex()}"
            tally.findings.append(Finding(key, Flaw.DAMAGED, what, _place(key, store)))
        else:
            tally.hashed += 1
            tally.bytes_hashed += key[2]

    def _look(self, key: Key, queue: list[_Opened], tally: Tally) -> None:
        """Find the object and judge what needs no reading; else queue it, open. Raises _WrongError."""
        path, digest, expected = key
        if not path or (self._deep and digest is None):
            raise _WrongError(Flaw.UNVERIFIABLE, "the image has no digest for these contents")
        found, store = self._open(path, digest)
        keep = False
        try:
            if found.size != expected:
                raise _WrongError(Flaw.SIZE, f"it has {found.size} bytes instead of {expected}", _place(key, store))
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
        """The object in the first store that has it, and that store."""
        at_digest = _is_at_digest(path, digest)
        for store in self._stores:
            try:
                if digest is not None and at_digest:
                    return store.open(digest), store
                return store.open_path(path), store
            except ObjectMissing:
                continue
            except StoreError as error:
                raise _WrongError(Flaw.UNREADABLE, error.what, error.subject) from None
        raise _WrongError(Flaw.MISSING, "it is in none of the stores")


def _is_at_digest(path: bytes, digest: bytes | None) -> bool:
    """Whether the path is the one made of the digest."""
    return digest is not None and path == object_path(digest)


def _place(key: Key, store: Store) -> str | None:
    """Where the object is in *store*, for messages, if it is at its digest."""
    path, digest, _ = key
    return store.describe(digest) if digest is not None and _is_at_digest(path, digest) else None
