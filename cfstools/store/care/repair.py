"""Repair the problems that a check of a store found.

Files are only replaced by complete and durable ones: good contents are collected in a directory of temporaries, synced
in batches, then renamed over the damaged objects. Temporaries of misplaced objects are hard links to them, so a killed
repair leaves the objects where they were; the next repair searches its leftover temporaries before it removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from cfstools.errors import InputError, StoreError, raise_exhausted
from cfstools.lifetime import Closable
from cfstools.linux import verity as kernel_verity
from cfstools.progress import SILENT, Progress
from cfstools.store.base import Sync, split_digest, store_error
from cfstools.store.care.check import is_intact
from cfstools.store.care.donors import NoRoomError, check_donor, copy_contents, search
from cfstools.store.care.fsck import (
    OBJECT_MODE,
    EntryChecker,
    Fault,
    FsckProblem,
    FsckResult,
    classify,
    has_telling_contents,
    other_problem,
)
from cfstools.store.care.gc import remove_object
from cfstools.store.care.scan import EntryKind, is_stale, look_up, remove_temporary, temporaries
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, alone
from cfstools.store.open import StorePlace
from cfstools.store.write.durability import Durability
from cfstools.store.write.scratch import Temporary, Workbench
from cfstools.values import Value
from cfstools.verity import ObjectId
from cfstools.verity.files import hash_fd

_BATCH_FILES = 3000
_BATCH_BYTES = 256 << 20
_CONTENTS = frozenset({Fault.DAMAGED, Fault.MISPLACED, Fault.ODD})


class RepairOptions(Value):
    """What a repair may do to a store.

    ``replace``: replace damaged objects by good contents and move misplaced objects to their names; *donors* are
    directories to search for contents. ``remove_damaged``: remove damaged objects that were not replaced.
    ``remove_temporaries``: remove the temporaries of killed writers. ``sync`` says how new files are made durable.
    """

    replace: bool = False
    sync: Sync = "batch"
    donors: Sequence[StorePlace] = ()
    remove_damaged: bool = False
    remove_temporaries: bool = False


def repair(
    store: DirectoryStore,
    result: FsckResult,
    options: RepairOptions,
    *,
    now: float,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> None:
    """Repair the problems in *result* as *options* say: check each again, and record its outcome.

    Locks the store exclusively; *waiting* says how long to wait for other processes before ``StoreBusy`` is raised.
    Raises ``InputError`` for a donor that is not a directory, and ``StoreError``; every object stays complete then.
    """
    for donor in options.donors:
        check_donor(donor)
    with alone(store, waiting):
        contents = _look_again(store, result)
        if options.replace:
            with _Replacing(store, contents, options.sync, progress) as replacing:
                replacing.run(options.donors)
        if options.remove_damaged:
            _remove_damaged(store, contents)
        if options.remove_temporaries:
            _remove_temporaries(store, result, now)
    result.problems.sort(key=lambda problem: problem.path)


def _look_again(store: DirectoryStore, result: FsckResult) -> list[FsckProblem]:
    """Check the objects with problems again; drop problems that are gone."""
    check = EntryChecker(store)
    fresh: list[FsckProblem] = []
    for problem in filter(_is_about_object, result.problems):
        found = look_up(store, problem.path)
        if found is None:
            continue
        if has_telling_contents(found):
            fresh += [again for again in check([found]).problems if again.fault is not Fault.MODE]
        else:
            fresh.append(other_problem(found, 0, alone=True))
    classify(store, fresh)
    result.problems[:] = [problem for problem in result.problems if not _is_about_object(problem)] + fresh
    return list(filter(_is_about_object, fresh))


def _is_about_object(problem: FsckProblem) -> bool:
    """Whether the problem can be repaired here: it concerns an object's file, not a whole prefix directory."""
    return problem.fault in _CONTENTS and (problem.digest is not None or problem.actual is not None)


class _Replacing(Closable):
    """Collects good contents and publishes them as objects; closing drops the unpublished ones."""

    def __init__(self, store: DirectoryStore, problems: list[FsckProblem], sync: Sync, progress: Progress) -> None:
        self._store = store
        self._durability = Durability(store, sync)
        self._problems = problems
        self._progress = progress
        self._exit = ExitStack()
        self._benches: dict[tuple[int, bool], Workbench] = {}
        self._sealed: set[bytes] = set()
        # Digests to find, with the probable size of their contents.
        self._wanted: dict[bytes, int | None] = {}
        self._waiting: dict[bytes, tuple[Workbench, Temporary]] = {}
        self._waiting_bytes = 0
        # The origin of each object that was published, by digest.
        self._placed: dict[bytes, str] = {}

    def close(self) -> None:
        """Drop unpublished temporaries."""
        for bench, temporary in self._waiting.values():
            bench.drop(temporary)
        self._exit.close()

    def run(self, donors: Sequence[StorePlace]) -> None:
        """Replace what can be replaced and record the outcomes."""
        self._want()
        # Listed before this repair makes its own directory of temporaries.
        left_behind = [found.path for found in temporaries(self._store) if found.kind is EntryKind.STAGE]
        self._take_misplaced()
        self._flush()
        inside = os.fsencode(self._store.path)
        for path in (*(os.path.join(inside, name) for name in left_behind), *donors):
            if self._wanted:
                self._take_from(path)
        self._flush()
        self._durability.names()
        self._settle()

    def _want(self) -> None:
        for problem in self._problems:
            if problem.digest is not None:
                self._wanted[problem.digest] = problem.size
                if problem.fault is not Fault.ODD and self._is_sealed(problem.digest):
                    self._sealed.add(problem.digest)
        for problem in self._problems:
            if problem.fault is Fault.MISPLACED:
                assert problem.actual is not None
                if problem.actual not in self._wanted and not is_intact(self._store, problem.actual):
                    self._wanted[problem.actual] = problem.size

    def _is_sealed(self, digest: bytes) -> bool:
        """Whether the object has fs-verity enabled; its replacement must have it too."""
        try:
            found = self._store.open(digest)
        except StoreError:
            return False
        try:
            return kernel_verity.measure(found.fileno()) is not None
        except OSError:
            return False
        finally:
            found.close()

    def _bench(self, digest: bytes) -> Workbench:
        key = (len(digest), digest in self._sealed)
        bench = self._benches.get(key)
        if bench is None:
            params = ObjectId.of(digest).params
            bench = Workbench(
                self._store, mode=OBJECT_MODE, fs_verity="auto" if digest in self._sealed else "off", params=params
            )
            self._exit.callback(bench.close)
            self._benches[key] = bench
        return bench

    def _take_misplaced(self) -> None:
        """Hard-link misplaced objects as temporaries."""
        for problem in self._problems:
            actual = problem.actual
            if problem.fault is not Fault.MISPLACED or actual not in self._wanted:
                continue
            bench = self._bench(actual)
            prefix, _, name = problem.path.rpartition(b"/")
            try:
                with self._directory(prefix) as directory:
                    temporary = bench.adopt(directory, name)
            except OSError as error:
                raise_exhausted(error, "cannot make a temporary file in the store", self._store.path)
                problem.what += f"; cannot link it there: {error.strerror or error}"
                continue
            with suppress(InputError):
                if hash_fd(temporary.fd, ObjectId.of(actual).params)[0] == actual:
                    with suppress(OSError):  # nothing was written through this descriptor
                        temporary.close()
                    self._put(actual, bench, temporary, "a misplaced file")
                    continue
            bench.drop(temporary)

    @contextmanager
    def _directory(self, prefix: bytes) -> Iterator[int]:
        if not prefix:
            yield self._store.fd
            return
        with self._store.prefix_fd(prefix) as fd:
            yield fd

    def _take_from(self, path: StorePlace) -> None:
        for found in search(path, self._wanted, progress=self._progress):
            bench = self._bench(found.digest)
            try:
                temporary = bench.create()
            except OSError as error:
                raise store_error(error, "cannot make a temporary file in the store", self._store.path) from error
            try:
                good = copy_contents(found, temporary, self._store)
                if good:
                    bench.seal(temporary)
            except NoRoomError as error:
                bench.drop(temporary)
                del self._wanted[found.digest]
                self._tell(found.digest, f"; cannot replace it: {error.what}")
                continue
            except BaseException:
                bench.drop(temporary)
                raise
            if not good:
                bench.drop(temporary)
                continue
            self._put(found.digest, bench, temporary, os.fsdecode(found.path))
            if len(self._waiting) >= _BATCH_FILES or self._waiting_bytes >= _BATCH_BYTES:
                self._flush()

    def _put(self, digest: bytes, bench: Workbench, temporary: Temporary, origin: str) -> None:
        del self._wanted[digest]
        self._waiting[digest] = (bench, temporary)
        self._waiting_bytes += temporary.size
        self._placed[digest] = origin

    def _flush(self) -> None:
        """Sync the queued temporaries and rename them to their object names."""
        if not self._waiting:
            return
        self._durability.contents(list(self._waiting.values()))
        self._durability.will_name({split_digest(digest)[0] for digest in self._waiting})
        for digest in sorted(self._waiting):
            bench, temporary = self._waiting.pop(digest)
            prefix, name = split_digest(digest)
            try:
                with suppress(FileNotFoundError, NotADirectoryError), self._store.prefix_fd(prefix) as directory:
                    # Removes only an empty directory; rename(2) replaces everything else.
                    os.rmdir(name, dir_fd=directory)
                bench.replace(temporary, prefix, name)
            except OSError as error:
                bench.drop(temporary)
                del self._placed[digest]
                raise_exhausted(error, "cannot replace the object", self._store.describe(digest))
                self._tell(digest, f"; cannot replace it: {error.strerror or error}")
        self._waiting_bytes = 0

    def _tell(self, digest: bytes, why: str) -> None:
        for problem in self._problems:
            if digest in (problem.digest, problem.actual):
                problem.what += why

    def _settle(self) -> None:
        """Record the outcomes, and remove the wrong names of objects that now have the right one."""
        for problem in self._problems:
            if problem.digest in self._placed:
                problem.outcome = f"replaced from {self._placed[problem.digest]}"
            elif problem.fault is Fault.MISPLACED:
                assert problem.actual is not None
                if problem.actual in self._placed:
                    self._remove_name(problem.path)
                    problem.outcome = "moved there"
                elif is_intact(self._store, problem.actual):
                    self._remove_name(problem.path)
                    problem.outcome = "removed: the object also exists under its own name"

    def _remove_name(self, path: bytes) -> None:
        prefix, _, name = path.rpartition(b"/")
        try:
            with self._directory(prefix) as directory:
                os.unlink(name, dir_fd=directory)
        except OSError as error:
            raise store_error(
                error, "cannot remove the wrong name", os.path.join(self._store.path, os.fsdecode(path))
            ) from error


def _remove_damaged(store: DirectoryStore, problems: list[FsckProblem]) -> None:
    for problem in problems:
        if problem.outcome is None and problem.digest is not None and problem.fault is not Fault.MISPLACED:
            try:
                remove_object(store, problem.digest)
            except StoreError as error:
                if not isinstance(error.__cause__, IsADirectoryError):
                    raise
            else:
                problem.outcome = "removed"


def _remove_temporaries(store: DirectoryStore, result: FsckResult, now: float) -> None:
    known = {problem.path: problem for problem in result.problems}
    for found in temporaries(store):
        if is_stale(found, now=now, alone=True):
            problem = known.get(found.path) or other_problem(found, now, alone=True)
            if found.path not in known:
                result.problems.append(problem)
            problem.fault = Fault.TEMPORARY
            if remove_temporary(store, found):
                problem.outcome = "removed"
