"""The objects an image needs, and whether stores have them intact (part of ``verify``)."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Self

from cfstools import native
from cfstools.api.problems import Problem, ProblemKind, shown
from cfstools.errors import InputError, ObjectMissing, StoreError, raise_exhausted
from cfstools.linux import verity as kernel_verity
from cfstools.linux.files import close
from cfstools.progress import Stage
from cfstools.store import DirectoryStore, Store
from cfstools.tree import Directory, External, Leaf, RegularFile
from cfstools.tree.model import KINDS
from cfstools.tree.walk import inode_of, iter_directories, iter_entries
from cfstools.verity import Algorithm, Params, descriptor, digest_bytes, hash_fd, object_path
from cfstools.workers import Call, Workers, give_up_if_stopped

SHOWN_PATHS = 3
_BATCH_BYTES = 256 << 20  # as much is checked between two steps of progress, and this at least:
_LEAST_FILES = 256
_LEAST_BYTES = 1 << 20
_MOMENT = 0.05  # seconds
_STEP_FILES = 1024  # hashed between two looks whether that is still wanted
_OPEN_FILES = 16  # how many objects a thread holds open
_WHOLE = 1 << 20  # files up to this size are read with one call
_SPLIT = 32 << 20  # larger ones are hashed by several threads at once
_ARENA_BYTES = 1 << 20  # files up to a quarter of this are hashed together


Key = tuple[bytes, bytes | None, int]
"""An object as an image names it: the path below a store at which the kernel looks, the digest of what must be found
there, and its size."""


class Names:
    """The names of the files that need each object, found out when something is wrong. Used from several threads."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._found: dict[Key, tuple[list[bytes], int]] | None = None

    def of(self, key: Key) -> tuple[list[bytes], int]:
        """The first few paths of files with this object, and how many there are."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
        return self._found[key]

    def _find(self) -> dict[Key, tuple[list[bytes], int]]:
        found: dict[Key, tuple[list[bytes], int]] = {}
        for path, _, entry in iter_entries(self._root):
            key = _key(inode_of(entry))
            if key is not None:
                paths, count = found.get(key, ([], 0))
                if count < SHOWN_PATHS:
                    paths.append(path)
                found[key] = paths, count + 1
        return found


class Needed:
    """Every object that a tree needs, once, in the order in which directories are met.

    ``ends`` says how many bytes the objects have together up to and including each. Where all are at the paths made of
    their digests, ``packed`` are those, one behind the other, and ``ends``, as the native functions take them: nothing
    else is made of an object that is right.
    """

    def __init__(self, names: Names, keys: Sequence[Key], packed: tuple[bytes, memoryview[int]] | None = None) -> None:
        self.packed = packed
        self.ends: Sequence[int] = packed[1] if packed is not None else list(accumulate([key[2] for key in keys]))
        self._names = names
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

    def problem(self, key: Key, kind: ProblemKind, what: str, subject: str | None = None) -> Problem:
        """A problem with this object, naming the files that need it."""
        paths, count = self._names.of(key)
        return Problem(
            kind=kind,
            subject=subject or shown(key[0]),
            what=what,
            paths=tuple(shown(path) for path in paths),
            path_count=count,
        )


class ObjectTally:
    """How many objects were found right, by how, and what is wrong with the others. Sizes are in bytes."""

    __slots__ = ("bytes_hashed", "hashed", "measured", "present", "problems")

    def __init__(self) -> None:
        self.measured = self.hashed = self.present = self.bytes_hashed = 0
        self.problems: list[Problem] = []


def needed_objects(root: Directory, algorithm: Algorithm) -> Needed:
    """The objects that the tree needs, whose digests are of *algorithm*."""
    names = Names(root)
    packed = native.needed_objects(root, KINDS, algorithm.digest_size)
    if packed is not None:
        return Needed(names, (), (packed[0], memoryview(packed[1]).cast("Q")))
    inodes = (entry for directory in iter_directories(root) for entry in directory.entries.values())
    found = (_key(inode) for inode in inodes if type(inode) is RegularFile)
    return Needed(names, list(dict.fromkeys(key for key in found if key is not None)))


def _key(inode: Directory | Leaf) -> Key | None:
    """What tells the object of a file from others; ``None`` for what has none."""
    if not isinstance(inode, RegularFile) or not isinstance(inode.content, External):
        return None
    payload, digest = inode.content.payload or b"", inode.content.digest
    # Leading slashes mean nothing; without a path the contents are wherever the digest says.
    if payload[:1] == b"/":
        payload = payload.lstrip(b"/")
    if not payload and digest:
        payload = object_path(digest)
    return (payload, digest, inode.size) if payload or inode.size else None


def _is_at_digest(path: bytes, digest: bytes | None) -> bool:
    """Whether the path is the one made of the digest."""
    return digest is not None and path == object_path(digest)


class ObjectCheck:
    """A check of each object in the first of *stores* that has it, as the kernel would find it.

    Deep: contents have the digest, by the kernel's measurement where fs-verity guards the file, else by hashing; where
    it does not guard the first object of a batch, none is measured. Otherwise objects only have to be there with the
    right size. ``progress`` is advanced in bytes.

    With several *threads* they begin at once. Leaving the ``with`` block stops what is not done.
    """

    def __init__(
        self,
        needed: Needed,
        stores: Sequence[Store],
        *,
        algorithm: Algorithm,
        deep: bool,
        threads: int,
        progress: Stage,
    ) -> None:
        if stores and isinstance(stores[0], DirectoryStore):
            _ = stores[0].prefix_fds  # opened here once, and not in several threads that wait for each other
        self._batches = _batches(needed, threads)
        self._check = _BatchCheck(
            needed, stores, Params(algorithm=algorithm), deep=deep, threads=threads, progress=progress
        )
        self._workers = Workers(min(threads, len(self._batches)), "verify") if threads > 1 and self._batches else None
        self._calls: list[Call[ObjectTally]] = []

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

    def tallies(self) -> Iterator[ObjectTally]:
        """What was found, batch after batch in the order of the objects; to be added up."""
        if self._workers is None:
            yield from map(self._check, self._batches)
        for call in self._calls:
            yield call.result()


def _batches(needed: Needed, threads: int) -> list[range]:
    """The objects in batches, large ones first, so that threads are left alone for long and yet end together."""
    ends, count = needed.ends, len(needed)
    batches = []
    start = before = 0
    while start < count:
        files = max(_LEAST_FILES, (count - start) // (2 * threads))
        size = min(_BATCH_BYTES, max(_LEAST_BYTES, (needed.size - before) // (2 * threads)))
        end = max(start + 1, min(start + files, bisect_right(ends, before + size, start)))
        batches.append(range(start, end))
        start, before = end, ends[end - 1]
    return batches


class _Wrong(Exception):
    """What is wrong with an object, to become a :class:`Problem`."""

    def __init__(self, kind: ProblemKind, what: str, subject: str | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.subject = subject


class _BatchCheck:
    """Checks batches of objects; may be called from several threads."""

    def __init__(
        self,
        needed: Needed,
        stores: Sequence[Store],
        params: Params,
        *,
        deep: bool,
        threads: int,
        progress: Stage,
    ) -> None:
        self._needed = needed
        self._problem = needed.problem
        self._stores = stores
        self._params = params
        self._deep = deep
        self._threads = threads
        self._progress = progress
        self._descriptor = descriptor(b"", 0, params)
        self._local = threading.local()
        self._busy = threading.Semaphore(0)

    def wait_until_busy(self, threads: int) -> None:
        """Wait a moment until so many threads are at work, as the caller may then keep the interpreter for long."""
        for _ in range(threads):
            self._busy.acquire(timeout=_MOMENT)

    def __call__(self, batch: range) -> ObjectTally:
        tally = ObjectTally()
        self._check(batch[:1], tally)
        rest: Sequence[int] = batch[1:]
        self._busy.release()
        if self._deep and not tally.measured:
            rest = self._pass_good(batch[1:], tally)
        for start in range(0, len(rest), _OPEN_FILES):
            self._check(rest[start : start + _OPEN_FILES], tally)
        return tally

    def _pass_good(self, batch: range, tally: ObjectTally) -> Sequence[int]:
        """Hash the small ones of *batch* in the first store together; returns those not found right this way."""
        first, needed = self._stores[0], self._needed
        if needed.packed is None or not batch or not isinstance(first, DirectoryStore):
            return batch
        params = self._params
        right = b""
        for start in range(batch.start, batch.stop, _STEP_FILES):
            give_up_if_stopped()
            right += native.check_objects(
                first.prefix_fds,
                *needed.packed,
                start,
                min(start + _STEP_FILES, batch.stop),
                self._arena(),
                params.algorithm.value,
                params.block_size,
                params.salt_prefix,
                self._descriptor,
            )
        left = [number for number, is_right in zip(batch, right, strict=True) if not is_right] if 0 in right else []
        good = needed.ends[batch.stop - 1] - needed.ends[batch.start - 1] - sum([needed.key(one)[2] for one in left])
        tally.hashed += len(batch) - len(left)
        tally.bytes_hashed += good
        self._progress.advance(good)
        return left

    def _arena(self) -> bytearray:
        arena: bytearray | None = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = bytearray(_ARENA_BYTES)
        return arena

    def _check(self, numbers: Sequence[int], tally: ObjectTally) -> None:
        """Check objects one by one, and say what is wrong with them."""
        queue: list[tuple[Key, int, Store]] = []
        try:
            for key in map(self._needed.key, numbers):
                try:
                    self._look(key, queue, tally)
                except _Wrong as wrong:
                    tally.problems.append(self._problem(key, wrong.kind, wrong.what, wrong.subject))
                    self._progress.advance(key[2])
            found = hash_files(
                [(fd, key[2]) for key, fd, _ in queue], self._params, self._progress, threads=self._threads
            )
        finally:
            for _, fd, _ in queue:
                close(fd)
        for (key, _, store), digest in zip(queue, found, strict=True):
            if isinstance(digest, InputError):
                tally.problems.append(self._problem(key, ProblemKind.UNREADABLE, str(digest), _place(key, store)))
            elif digest != key[1]:
                what = f"its fs-verity digest is {digest.hex()}"
                tally.problems.append(self._problem(key, ProblemKind.DAMAGED, what, _place(key, store)))
            else:
                tally.hashed += 1
                tally.bytes_hashed += key[2]

    def _look(self, key: Key, queue: list[tuple[Key, int, Store]], tally: ObjectTally) -> None:
        """Find the object and judge what needs no reading; else queue it, open. Raises _Wrong."""
        path, digest, expected = key
        if not path or (self._deep and digest is None):
            raise _Wrong(ProblemKind.UNVERIFIABLE, "the image has no digest for these contents")
        fd, store = self._open(path, digest)
        keep = False
        try:
            size = os.fstat(fd).st_size
            if size != expected:
                raise _Wrong(ProblemKind.SIZE, f"it has {size} bytes instead of {expected}", _place(key, store))
            if not self._deep:
                tally.present += 1
            elif _measured(fd) == (self._params.algorithm.number, digest):
                tally.measured += 1
            else:
                queue.append((key, fd, store))
                keep = True
                return
            self._progress.advance(expected)
        finally:
            if not keep:
                close(fd)

    def _open(self, path: bytes, digest: bytes | None) -> tuple[int, Store]:
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
                raise _Wrong(ProblemKind.UNREADABLE, error.what, error.subject) from None
        raise _Wrong(ProblemKind.MISSING, "it is in none of the stores")


def _place(key: Key, store: Store) -> str:
    """Where the object is in *store*, for messages."""
    path, digest, _ = key
    return store.describe(digest) if digest is not None and _is_at_digest(path, digest) else shown(path)


def _measured(fd: int) -> tuple[int, bytes] | None:
    try:
        return kernel_verity.measure(fd)
    except OSError:
        return None  # what cannot be measured is read


def hash_files(
    files: Sequence[tuple[int, int]], params: Params, progress: Stage, *, threads: int = 1
) -> list[bytes | InputError]:
    """The fs-verity digest of each open file, given with its size, or why it cannot be read."""
    found: list[bytes | InputError] = []
    for fd, size in files:
        try:
            if size <= _WHOLE:
                # One byte more than expected, so that a file that has grown gets another digest.
                found.append(digest_bytes(os.pread(fd, size + 1, 0), params))
                progress.advance(size)
            else:
                at_once = threads if size > _SPLIT else 1
                found.append(hash_fd(fd, params, threads=at_once, progress=progress)[0])
        except InputError as error:
            found.append(error)
        except OSError as error:
            raise_exhausted(error, "cannot read", None)
            found.append(InputError(f"cannot read: {error.strerror or error}"))
    return found
