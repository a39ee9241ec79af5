"""Whether everything in a store is what its name says."""

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
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.locking import in_turn
from cfstools.store.survey import Found, Kind, is_stale, survey, temporaries
from cfstools.store.waiting import PATIENT, Waiting
from cfstools.verity import Algorithm, ObjectId, Params, object_path
from cfstools.workers import map_ahead

OBJECT_MODE = 0o644
_TASKS_AHEAD = 8  # not all at once: a store may hold millions

# A file name that holds all of a digest but perhaps its first two digits, in whatever case: an object gone astray.
_ASTRAY = re.compile(rb"[0-9a-fA-F]{62,}")


class Fault(Enum):
    """What is wrong with something in a store."""

    DAMAGED = "damaged"  # the contents are not those of the name
    MISPLACED = "misplaced"  # the contents are those of another object, which is not in its place
    ODD = "not-a-file"  # something else than a regular file is in an object's place
    FOREIGN = "foreign"  # the name is not that of an object
    TEMPORARY = "temporary"  # left behind by a writer that was killed
    UNREADABLE = "unreadable"
    # These two are told but are no problems.
    MODE = "mode"
    IN_USE = "in-use"


_MODES_KEPT = 1000
NOTES = frozenset({Fault.MODE, Fault.IN_USE})


@dataclass(slots=True, eq=False, kw_only=True)
class Problem:
    """One fault: ``path`` below the store, ``digest`` the one that the name says, ``actual`` that of the contents.

    ``size`` is that of the file there. ``outcome`` says what was done about it; without one the problem remains.
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
        """Whether this is a problem that is still there."""
        return self.outcome is None and self.fault not in NOTES


@dataclass(slots=True)
class FsckResult:
    """How many objects were checked, with how many bytes, how many of them by the kernel, and all problems by path.

    ``modes`` counts objects with another mode than :data:`OBJECT_MODE`; the first of them are among the problems.
    """

    objects: int = 0
    bytes: int = 0
    measured: int = 0
    modes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: FsckResult) -> None:
        """Take in the result of another part of the store."""
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
    """Compute the digest of every object and look at everything else; nothing is changed.

    The algorithm is told by the length of the name. With *measure* the kernel's word is taken for files that fs-verity
    guards; by default they are read as all others. Objects may be added meanwhile; *waiting* says how long to wait for
    someone who removes them before ``StoreBusy`` is raised. *now* tells how old the C tools' temporaries
    are. ``threads`` is by default the number of usable processors; ``progress`` is in bytes. Raises ``StoreError``.
    """
    stale = _stale_stages(store)
    result = FsckResult()
    with in_turn(store, exclusive=False, waiting=waiting):
        # The total costs an extra walk, so compute it only when progress is shown.
        total = None if progress is SILENT else sum(found.status.st_size for found in survey(store))
        with running_stage(progress, "check", total, "B") as stage:
            check = FoundCheck(store, measure=measure, progress=stage)
            tasks = gather_batches(_to_hash(store, result.problems, now, stale), _size)
            threads = threads or len(os.sched_getaffinity(0))
            for part in map_ahead(check, tasks, threads=threads, ahead=_TASKS_AHEAD, name="fsck"):
                result.add(part)
        classify(store, result.problems)
    result.problems.sort(key=lambda problem: problem.path)
    return result


def _to_hash(store: DirectoryStore, problems: list[Problem], now: float, stale: frozenset[bytes]) -> Iterator[Found]:
    """The files whose contents tell something; what is wrong with anything else is added to *problems*."""
    for found in survey(store):
        if has_telling_contents(found):
            yield found
        else:
            problems.append(other_problem(found, now, alone=found.path in stale))


def has_telling_contents(found: Found) -> bool:
    """Whether it takes a digest to judge this: an object, or a file that may be one under another name."""
    return found.kind is Kind.OBJECT or (found.kind is Kind.FOREIGN and _astray_params(found) is not None)


def _size(found: Found) -> int:
    return found.status.st_size


def _stale_stages(store: DirectoryStore) -> frozenset[bytes]:
    """The directories of temporaries that no writer uses; none when the store cannot be locked right now or by us."""
    try:
        with store.locked(exclusive=True, wait=False) as held:
            return frozenset(found.path for found in temporaries(store) if held and found.kind is Kind.STAGE)
    except StoreError:
        return frozenset()


def other_problem(found: Found, now: float, *, alone: bool) -> Problem:
    """The problem with something that is no object."""
    if found.is_temporary:
        if is_stale(found, now=now, alone=alone):
            return Problem(fault=Fault.TEMPORARY, path=found.path, what="left behind by a writer")
        return Problem(fault=Fault.IN_USE, path=found.path, what="temporaries that may be in use")
    kind = _kind_name(found.status.st_mode)
    if found.kind is Kind.CLOSED:
        return Problem(fault=Fault.UNREADABLE, path=found.path, what=f"cannot list the directory: {found.why}")
    if found.kind is Kind.FOREIGN:
        return Problem(fault=Fault.FOREIGN, path=found.path, what=f"{kind} that is no object")
    place = "an object" if found.digest else "a directory of objects"
    return Problem(fault=Fault.ODD, path=found.path, digest=found.digest, what=f"{kind} in the place of {place}")


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


def _astray_params(found: Found) -> Params | None:
    """The parameters to hash a foreign file with to see whether it is the object that its name suggests."""
    match = _ASTRAY.search(found.path.rpartition(b"/")[2])
    if match is None or not stat.S_ISREG(found.status.st_mode):
        return None
    long = len(match[0]) >= 2 * Algorithm.SHA512.digest_size - 2
    return Params(algorithm=Algorithm.SHA512 if long else Algorithm.SHA256)


def suggests(path: bytes, digest: bytes) -> bool:
    """Whether the file name in *path* holds what is the file name of the object *digest*."""
    return split_digest(digest)[1] in path.rpartition(b"/")[2].lower()


class FoundCheck:
    """Checks lists of what a survey found; may be called from several threads."""

    def __init__(self, store: DirectoryStore, *, measure: bool = False, progress: Stage = SILENT) -> None:
        self._store = store
        self._measure = measure
        self._progress = progress
        self._small = {algorithm: SmallFiles(store, Params(algorithm=algorithm)) for algorithm in Algorithm}

    def __call__(self, objects: Iterable[Found]) -> FsckResult:
        """Check *objects*."""
        result = FsckResult()
        for found in objects if self._measure else self._pass_good(objects, result):
            try:
                self._check(found, result)
            except FileNotFoundError:
                continue  # someone else's name was taken away meanwhile; objects are not, under the lock
            except (InputError, OSError) as error:
                result.problems.append(_unreadable(found, error))
        return result

    def _pass_good(self, objects: Iterable[Found], result: FsckResult) -> list[Found]:
        """Hash the small ones among *objects* at once; returns those that were not found right this way."""
        left: list[Found] = []
        named: dict[int, list[Found]] = {}
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
    def _count(found: Found, size: int, result: FsckResult) -> None:
        """An object was read; note its mode, which has nothing to do with its contents."""
        result.objects += 1
        result.bytes += size
        mode = stat.S_IMODE(found.status.st_mode)
        if mode != OBJECT_MODE:
            result.modes += 1
            what = f"mode {mode:04o} instead of {OBJECT_MODE:04o}"
            result.problems.append(Problem(fault=Fault.MODE, path=found.path, what=what))

    def _check(self, found: Found, result: FsckResult) -> None:
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
                Problem(
                    fault=Fault.DAMAGED,
                    path=found.path,
                    what=f"its digest is {actual.hex()}" if size else "it is empty",
                    digest=found.digest,
                    actual=actual,
                    size=size,
                )
            )

    def _digest(self, opened: FileObject, found: Found, result: FsckResult) -> tuple[bytes, int]:
        """Digest and size of the contents. Raises ``InputError`` and ``OSError``."""
        if found.digest is None:
            params = _astray_params(found)
            assert params is not None
        else:
            wanted = ObjectId.of(found.digest)
            params = wanted.params
            if self._measure and measured(opened.fileno(), wanted):
                # Another block size or salt gives another digest without anything being wrong: those are read.
                result.measured += 1
                self._progress.advance(opened.size)
                return found.digest, opened.size
        return digest_object(opened, opened.size, params, progress=self._progress)

    @staticmethod
    def _judge_foreign(found: Found, actual: bytes, result: FsckResult) -> None:
        problem = other_problem(found, 0, alone=False)
        if suggests(found.path, actual):
            problem.fault, problem.actual, problem.size = Fault.MISPLACED, actual, found.status.st_size
            problem.what = _belongs_to(actual)
        result.problems.append(problem)


def _unreadable(found: Found, error: InputError | OSError) -> Problem:
    if isinstance(error, OSError):
        raise_exhausted(error, "cannot open", os.fsdecode(found.path))
    why = str(error) if isinstance(error, InputError) else f"cannot open: {error.strerror or error}"
    # What may be read but gives errors is as good as damaged: fs-verity and failing disks answer so.
    fault = Fault.DAMAGED if isinstance(error, InputError) and found.digest else Fault.UNREADABLE
    return Problem(fault=fault, path=found.path, digest=found.digest, what=why, size=found.status.st_size)


def _belongs_to(digest: bytes) -> str:
    return f"belongs at {object_path(digest).decode()}"


def classify(store: DirectoryStore, problems: Iterable[Problem]) -> None:
    """Tell objects that are in the wrong place from damaged ones, by what other objects are."""
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
