"""The objects an image needs, and whether stores have them intact (part of ``verify``)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cfstools import native
from cfstools.api.problems import Problem, ProblemKind, shown
from cfstools.errors import InputError, ObjectMissing, StoreError
from cfstools.linux import verity as kernel_verity
from cfstools.linux.files import close
from cfstools.progress import Progress
from cfstools.store import DirectoryStore, Store
from cfstools.tree import Directory, External, Leaf, RegularFile
from cfstools.tree.walk import inode_of, iter_directories, iter_entries
from cfstools.verity import DEFAULT, Algorithm, Params, descriptor, digest_bytes, hash_fd, object_path
from cfstools.workers import map_ahead

SHOWN_PATHS = 3
_BATCH_FILES = 256
_BATCH_BYTES = 1 << 20
_BATCHES_AHEAD = 8
_OPEN_FILES = 16  # how many objects a thread holds open
_WHOLE = 1 << 20  # files up to this size are read with one call
_SMALL = 1 << 18  # files up to this size are hashed in batches
# What a batch of small files takes in memory: blocks are not shared, and the last file may go over the limit.
_ARENA_BYTES = _BATCH_BYTES + _SMALL + (_BATCH_FILES + 1) * DEFAULT.block_size


Key = tuple[bytes, bytes | None, int]  # path below a store, digest, size


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


class NeededObject(NamedTuple):
    """An object as an image names it.

    ``payload`` is the path below a store at which the kernel looks, ``digest`` what must be found there.
    """

    payload: bytes
    digest: bytes | None
    size: int
    names: Names

    @property
    def at_digest(self) -> bool:
        """Whether the path is the one made of the digest."""
        return self.digest is not None and self.payload == object_path(self.digest)

    def place_in(self, store: Store) -> str:
        """Where the object is in *store*, for messages."""
        return store.describe(self.digest) if self.digest and self.at_digest else shown(self.payload)

    def problem(self, kind: ProblemKind, what: str, subject: str | None = None) -> Problem:
        """A problem with this object, naming the files that need it."""
        paths, count = self.names.of((self.payload, self.digest, self.size))
        return Problem(
            kind=kind,
            subject=subject or shown(self.payload),
            what=what,
            paths=tuple(shown(path) for path in paths),
            path_count=count,
        )


@dataclass(slots=True)
class ObjectTally:
    """How many objects were found right, by how, and what is wrong with the others. Sizes are in bytes."""

    measured: int = 0
    hashed: int = 0
    present: int = 0
    bytes_hashed: int = 0
    problems: list[Problem] = field(default_factory=list)


def needed_objects(root: Directory) -> list[NeededObject]:
    """Every object of the tree once, in the order in which directories are met."""
    names = Names(root)
    inodes = (entry for directory in iter_directories(root) for entry in directory.entries.values())
    found = dict.fromkeys(key for inode in inodes if type(inode) is RegularFile and (key := _key(inode)) is not None)
    return [NeededObject(*key, names) for key in found]


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


def check_objects(
    needed: Sequence[NeededObject],
    stores: Sequence[Store],
    *,
    algorithm: Algorithm,
    deep: bool,
    threads: int,
    progress: Progress,
) -> Iterator[ObjectTally]:
    """Check each object in the first of *stores* that has it, as the kernel would find it; tallies are to be added up.

    Deep: contents have the digest, by the kernel's measurement where fs-verity guards the file, else by hashing; where
    it does not guard the first object of a batch, none is measured. Otherwise objects only have to be there with the
    right size. ``progress`` is advanced in bytes.
    """
    check = _ObjectCheck(stores, Params(algorithm=algorithm), deep=deep, progress=progress)
    yield from map_ahead(check, _batches(needed), threads=threads, ahead=_BATCHES_AHEAD, name="verify")


def _batches(needed: Iterable[NeededObject]) -> Iterator[list[NeededObject]]:
    batch: list[NeededObject] = []
    size = 0
    for item in needed:
        batch.append(item)
        size += item.size
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Wrong(Exception):
    """What is wrong with an object, to become a :class:`Problem`."""

    def __init__(self, kind: ProblemKind, what: str, subject: str | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.subject = subject


class _ObjectCheck:
    """Checks batches of objects; may be called from several threads."""

    def __init__(self, stores: Sequence[Store], params: Params, *, deep: bool, progress: Progress) -> None:
        self._stores = stores
        self._params = params
        self._deep = deep
        self._progress = progress
        self._descriptor = descriptor(b"", 0, params)
        self._local = threading.local()

    def __call__(self, batch: Sequence[NeededObject]) -> ObjectTally:
        tally = ObjectTally()
        self._check(batch[:1], tally)
        rest = batch[1:]
        if self._deep and not tally.measured:
            rest = self._pass_good(rest, tally)
        for start in range(0, len(rest), _OPEN_FILES):
            self._check(rest[start : start + _OPEN_FILES], tally)
        return tally

    def _pass_good(self, items: Sequence[NeededObject], tally: ObjectTally) -> list[NeededObject]:
        """Hash the small ones among *items* in the first store at once; returns those not found right this way."""
        first = self._stores[0]
        if not isinstance(first, DirectoryStore):
            return list(items)
        left = [item for item in items if item.size > _SMALL]
        small = [item for item in items if item.size <= _SMALL]
        params = self._params
        found = native.digest_files(
            first.fd,
            [(item.payload, None) for item in small],
            self._arena(),
            params.algorithm.value,
            params.block_size,
            params.salt_prefix,
            self._descriptor,
            0,
            -1,
            b"",
        )
        good = 0
        for item, result in zip(small, found, strict=True):
            if isinstance(result, tuple) and result[:2] == (item.digest, item.size):
                tally.hashed += 1
                good += item.size
            else:
                left.append(item)
        tally.bytes_hashed += good
        self._progress.advance(good)
        return left

    def _arena(self) -> bytearray:
        arena: bytearray | None = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = bytearray(_ARENA_BYTES)
        return arena

    def _check(self, batch: Sequence[NeededObject], tally: ObjectTally) -> None:
        """Check objects one by one, and say what is wrong with them."""
        queue: list[tuple[NeededObject, int, Store]] = []
        try:
            for item in batch:
                try:
                    self._look(item, queue, tally)
                except _Wrong as wrong:
                    tally.problems.append(item.problem(wrong.kind, wrong.what, wrong.subject))
                    self._progress.advance(item.size)
            found = hash_files([(fd, item.size) for item, fd, _ in queue], self._params, self._progress)
        finally:
            for _, fd, _ in queue:
                close(fd)
        for (item, _, store), digest in zip(queue, found, strict=True):
            if isinstance(digest, InputError):
                tally.problems.append(item.problem(ProblemKind.UNREADABLE, digest.what, item.place_in(store)))
            elif digest != item.digest:
                what = f"its fs-verity digest is {digest.hex()}"
                tally.problems.append(item.problem(ProblemKind.DAMAGED, what, item.place_in(store)))
            else:
                tally.hashed += 1
                tally.bytes_hashed += item.size

    def _look(self, item: NeededObject, queue: list[tuple[NeededObject, int, Store]], tally: ObjectTally) -> None:
        """Find the object and judge what needs no reading; else queue it, open. Raises _Wrong."""
        if not item.payload or (self._deep and item.digest is None):
            raise _Wrong(ProblemKind.UNVERIFIABLE, "the image has no digest for these contents")
        fd, store = self._open(item)
        keep = False
        try:
            size = os.fstat(fd).st_size
            if size != item.size:
                raise _Wrong(ProblemKind.SIZE, f"it has {size} bytes instead of {item.size}", item.place_in(store))
            if not self._deep:
                tally.present += 1
            elif _measured(fd) == (self._params.algorithm.number, item.digest):
                tally.measured += 1
            else:
                queue.append((item, fd, store))
                keep = True
                return
            self._progress.advance(item.size)
        finally:
            if not keep:
                close(fd)

    def _open(self, item: NeededObject) -> tuple[int, Store]:
        """The object in the first store that has it, and that store."""
        for store in self._stores:
            try:
                if item.digest is not None and item.at_digest:
                    return store.open(item.digest), store
                return store.open_path(item.payload), store
            except ObjectMissing:
                continue
            except StoreError as error:
                raise _Wrong(ProblemKind.UNREADABLE, error.what, error.subject) from None
        raise _Wrong(ProblemKind.MISSING, "it is in none of the stores")


def _measured(fd: int) -> tuple[int, bytes] | None:
    try:
        return kernel_verity.measure(fd)
    except OSError:
        return None  # what cannot be measured is read


def hash_files(files: Sequence[tuple[int, int]], params: Params, progress: Progress) -> list[bytes | InputError]:
    """The fs-verity digest of each open file, given with its size, or why it cannot be read."""
    found: list[bytes | InputError] = []
    for fd, size in files:
        try:
            if size <= _WHOLE:
                # One byte more than expected, so that a file that has grown gets another digest.
                found.append(digest_bytes(os.pread(fd, size + 1, 0), params))
                progress.advance(size)
            else:
                found.append(hash_fd(fd, params, progress=progress)[0])
        except InputError as error:
            found.append(error)
        except OSError as error:
            found.append(InputError(f"cannot read: {error.strerror or error}"))
    return found
