"""Check every object of a store against its digest, and report everything else found there."""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate

from cfstools.errors import InputError, StoreError, raise_exhausted
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.store.base import FileObject, split_digest
from cfstools.store.care.check import SmallFiles, digest_object, gather_batches, measured
from cfstools.store.care.scan import Entry, EntryKind, is_stale, scan, temporaries
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, in_turn
from cfstools.threadpool import map_ahead
from cfstools.verity import Algorithm, ObjectId, Params, object_path

OBJECT_MODE = 0o644
_TASKS_AHEAD = 8  # tasks queued for each thread: a store may hold millions of objects

# A file name that contains a digest, perhaps without its first two digits: a misplaced object.
_ASTRAY = re.compile(rb"[0-9a-fA-F]{62,}")


class Fault(Enum):
    """What is wrong with a file in a store."""

    DAMAGED = "damaged"  # the contents do not match the digest
    MISPLACED = "misplaced"  # the contents are those of another object, which is missing
    ODD = "not-a-file"  # not a regular file, but with an object's name
    FOREIGN = "foreign"  # not an object's name
    TEMPORARY = "temporary"  # left behind by a writer that was killed
    UNREADABLE = "unreadable"
    # Reported as notes; not counted as problems.
    MODE = "mode"
    IN_USE = "in-use"


_MODES_KEPT = 1000
NOTES = frozenset({Fault.MODE, Fault.IN_USE})


@dataclass(slots=True, eq=False, kw_only=True)
class FsckProblem:
    """One fault: ``path`` is below the store, ``digest`` from the name, ``actual`` the digest of the contents.

    ``size`` is the file's, in bytes. ``outcome`` says how it was repaired; without one the problem remains.
    """

    fault: Fault
    path: bytes
    what: str
    digest: bytes | None = None
    actual: bytes | None = None
    size: int | None = None
    outcome: str | None = None

    @property
    def remains(self) -> bool:
        """Whether this is a problem (not a note) that was not repaired."""
        return self.outcome is None and self.fault not in NOTES


@dataclass(slots=True)
class FsckResult:
    """Objects checked, their bytes, how many the kernel measured, and all problems sorted by path.

    ``modes`` counts objects with another mode than :data:`OBJECT_MODE`; the first 1000 are also listed as notes.
    """

    objects: int = 0
    bytes: int = 0
    measured: int = 0
    modes: int = 0
    problems: list[FsckProblem] = field(default_factory=list)

    def add(self, other: FsckResult) -> None:
        """Add the result of another part of the store."""
        self.objects += other.objects
        self.bytes += other.bytes
        self.measured += other.measured
        full = self.modes >= _MODES_KEPT
        self.modes += other.modes
        self.problems += [problem for problem in other.problems if not (full and problem.fault is Fault.MODE)]


def fsck(
    store: DirectoryStore,
    *,
    now: float,
    measure: bool = False,
    threads: int | None = None,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> FsckResult:
    """Compute the digest of every object and look at everything else in the store; change nothing.

    The length of the name tells the hash algorithm. With *measure*, trust the kernel's digest of files that have
    fs-verity enabled; by default read them too. Other processes may add objects meanwhile; *waiting* says how long to
    wait for one that removes objects before ``StoreBusy`` is raised. *now* (seconds since the epoch) determines the age
    of the C tools' temporaries. ``threads`` defaults to the number of usable processors; ``progress`` is in bytes.
    Raises ``StoreError``.
    """
    stale = _stale_stages(store)
    result = FsckResult()
    with in_turn(store, exclusive=False, waiting=waiting):
        # The total costs an extra walk, so compute it only when progress is shown.
        total = None if progress is SILENT else sum(found.status.st_size for found in scan(store))
        with running_stage(progress, "check", total, "B") as stage:
            check = EntryChecker(store, measure=measure, progress=stage)
            tasks = gather_batches(_to_hash(store, result.problems, now, stale), _size)
            threads = threads or len(os.sched_getaffinity(0))
            for part in map_ahead(check, tasks, threads=threads, ahead=_TASKS_AHEAD, name="fsck"):
                result.add(part)
        classify(store, result.problems)
    result.problems.sort(key=lambda problem: problem.path)
    return result


def _to_hash(
    store: DirectoryStore, problems: list[FsckProblem], now: float, stale: frozenset[bytes]
) -> Iterator[Entry]:
    """Yield the files to hash; add the problems of all other entries to *problems*."""
    for found in scan(store):
        if has_telling_contents(found):
            yield found
        else:
            problems.append(other_problem(found, now, alone=found.path in stale))


def has_telling_contents(found: Entry) -> bool:
    """Whether the entry must be hashed: an object, or a file that may be one under another name."""
    return found.kind is EntryKind.OBJECT or (found.kind is EntryKind.FOREIGN and _astray_params(found) is not None)


def _size(found: Entry) -> int:
    return found.status.st_size


def _stale_stages(store: DirectoryStore) -> frozenset[bytes]:
    """The stale directories of temporaries; none if the store cannot be locked exclusively right now."""
    try:
        with store.locked(exclusive=True, wait=False) as held:
            return frozenset(found.path for found in temporaries(store) if held and found.kind is EntryKind.STAGE)
    except StoreError:
        return frozenset()


def other_problem(found: Entry, now: float, *, alone: bool) -> FsckProblem:
    """The problem of an entry that is not an object."""
    if found.is_temporary:
        if is_stale(found, now=now, alone=alone):
            return FsckProblem(fault=Fault.TEMPORARY, path=found.path, what="left behind by a killed writer")
        return FsckProblem(fault=Fault.IN_USE, path=found.path, what="temporaries that may be in use")
    kind = _kind_name(found.status.st_mode)
    if found.kind is EntryKind.CLOSED:
        return FsckProblem(fault=Fault.UNREADABLE, path=found.path, what=f"cannot list the directory: {found.why}")
    if found.kind is EntryKind.FOREIGN:
        return FsckProblem(fault=Fault.FOREIGN, path=found.path, what=f"{kind} that is not an object")
    place = "an object" if found.digest else "a directory of objects"
    return FsckProblem(fault=Fault.ODD, path=found.path, digest=found.digest, what=f"{kind} instead of {place}")


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}


def _kind_name(mode: int) -> str:
    return _KINDS[stat.S_IFMT(mode)]


def _astray_params(found: Entry) -> Params | None:
    """How to hash a foreign file whose name suggests an object; ``None`` if it does not."""
    match = _ASTRAY.search(found.path.rpartition(b"/")[2])
    if match is None or not stat.S_ISREG(found.status.st_mode):
        return None
    fitting = [one for one in Algorithm if len(match[0]) >= 2 * one.digest_size - 2]
    return Params(algorithm=max(fitting, key=lambda one: one.digest_size))


def suggests(path: bytes, digest: bytes) -> bool:
    """Whether the file name in *path* contains the file name of the object *digest*."""
    return split_digest(digest)[1] in path.rpartition(b"/")[2].lower()


class EntryChecker:
    """Checks lists of store entries; thread-safe."""

    def __init__(self, store: DirectoryStore, *, measure: bool = False, progress: Stage = SILENT) -> None:
        self._store = store
        self._measure = measure
        self._progress = progress
        self._small = {algorithm: SmallFiles(store, Params(algorithm=algorithm)) for algorithm in Algorithm}

    def __call__(self, objects: Iterable[Entry]) -> FsckResult:
        """Check the entries *objects*."""
        result = FsckResult()
        for found in objects if self._measure else self._pass_good(objects, result):
            try:
                self._check(found, result)
            except FileNotFoundError:
                continue  # a foreign file was removed meanwhile; the lock keeps objects from being removed
            except (InputError, OSError) as error:
                result.problems.append(_unreadable(found, error))
        return result

    def _pass_good(self, objects: Iterable[Entry], result: FsckResult) -> list[Entry]:
        """Hash small objects in batches; return the entries that still need a check."""
        left: list[Entry] = []
        named: dict[int, list[Entry]] = {}
        for found in objects:
            if found.digest is None:
                left.append(found)
            else:
                named.setdefault(len(found.digest), []).append(found)
        for chosen in named.values():
            digests = [found.digest for found in chosen if found.digest is not None]
            ends = memoryview(array("Q", accumulate(map(_size, chosen))))
            small = self._small[ObjectId.of(digests[0]).algorithm]
            for found, right in zip(chosen, small.right((b"".join(digests), ends), range(len(chosen))), strict=True):
                if right:
                    self._count(found, _size(found), result)
                    self._progress.advance(_size(found))
                else:
                    left.append(found)
        return left

    @staticmethod
    def _count(found: Entry, size: int, result: FsckResult) -> None:
        """Count an object that was read, and note an unusual mode."""
        result.objects += 1
        result.bytes += size
        mode = stat.S_IMODE(found.status.st_mode)
        if mode != OBJECT_MODE:
            result.modes += 1
            what = f"mode {mode:04o} instead of {OBJECT_MODE:04o}"
            result.problems.append(FsckProblem(fault=Fault.MODE, path=found.path, what=what))

    def _check(self, found: Entry, result: FsckResult) -> None:
        prefix, _, name = found.path.rpartition(b"/")
        if prefix:
            with self._store.prefix_fd(prefix) as directory:
                fd = os.open(name, OBJECT_FLAGS, dir_fd=directory)
        else:
            fd = os.open(name, OBJECT_FLAGS, dir_fd=self._store.fd)
        opened = FileObject(fd, _size(found))
        try:
            actual, size = self._digest(opened, found, result)
        finally:
            opened.close()
        if found.digest is None:
            self._judge_foreign(found, actual, result)
            return
        self._count(found, size, result)
        if actual != found.digest:
            result.problems.append(
                FsckProblem(
                    fault=Fault.DAMAGED,
                    path=found.path,
                    what=f"its digest is {actual.hex()}" if size else "it is empty",
                    digest=found.digest,
                    actual=actual,
                    size=size,
                )
            )

    def _digest(self, opened: FileObject, found: Entry, result: FsckResult) -> tuple[bytes, int]:
        """Digest and size of an entry's contents. Raises ``InputError`` and ``OSError``."""
        if found.digest is None:
            params = _astray_params(found)
            assert params is not None
        else:
            wanted = ObjectId.of(found.digest)
            params = wanted.params
            if self._measure and measured(opened.fileno(), wanted):
                # Files sealed with another block size or salt have another digest but may be intact: they are read.
                result.measured += 1
                self._progress.advance(opened.size)
                return found.digest, opened.size
        return digest_object(opened, opened.size, params, progress=self._progress)

    @staticmethod
    def _judge_foreign(found: Entry, actual: bytes, result: FsckResult) -> None:
        problem = other_problem(found, 0, alone=False)
        if suggests(found.path, actual):
            problem.fault, problem.actual, problem.size = Fault.MISPLACED, actual, found.status.st_size
            problem.what = _belongs_to(actual)
        result.problems.append(problem)


def _unreadable(found: Entry, error: InputError | OSError) -> FsckProblem:
    if isinstance(error, OSError):
        raise_exhausted(error, "cannot open", os.fsdecode(found.path))
    why = str(error) if isinstance(error, InputError) else f"cannot open: {error.strerror or error}"
    # A read error means damage: fs-verity and failing disks report it that way.
    fault = Fault.DAMAGED if isinstance(error, InputError) and found.digest else Fault.UNREADABLE
    return FsckProblem(fault=fault, path=found.path, digest=found.digest, what=why, size=found.status.st_size)


def _belongs_to(digest: bytes) -> str:
    return f"belongs at {object_path(digest).decode()}"


def classify(store: DirectoryStore, problems: Iterable[FsckProblem]) -> None:
    """Tell misplaced objects from damaged ones, by comparing with all other objects."""
    mismatched = [problem for problem in problems if problem.fault is Fault.DAMAGED]
    broken = {problem.digest for problem in problems if problem.fault in (Fault.DAMAGED, Fault.ODD)}
    for problem in mismatched:
        actual = problem.actual
        if actual is None:
            continue
        if actual in broken or suggests(problem.path, actual):
            problem.fault, problem.what = Fault.MISPLACED, _belongs_to(actual)
        elif _is_there(store, actual):
            problem.what = f"it holds the contents of {object_path(actual).decode()}"


def _is_there(store: DirectoryStore, digest: bytes) -> bool:
    try:
        return store.size(digest) is not None
    except StoreError:
        return False
