"""Verb ``store fsck``: whether a store is what it should be, and putting it right."""

from __future__ import annotations

from collections import Counter

from cfstools.formats.escape import escape_text
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.store.care.donors import check_donor
from cfstools.store.care.fsck import Fault, FsckProblem, FsckResult
from cfstools.store.care.fsck import fsck as check
from cfstools.store.care.repair import RepairOptions, repair
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.open import open_directory
from cfstools.text import shown_path

MAX_PROBLEMS = 10_000


class StoreProblem(Report):
    """One thing that is wrong: of what sort, where below the store (escaped), what it is, and what was done about it.

    ``remains`` is whether it is a problem that is still there.
    """

    fault: Fault
    path: str
    what: str
    outcome: str | None
    remains: bool

    def __str__(self) -> str:
        done = f"; {self.outcome}" if self.outcome else ""
        return f"{self.fault.value}: {self.path}: {self.what}{done}"


class StoreFsckReport(Report):
    """What was checked and found in a store. Sizes are in bytes; ``measured`` objects were checked by the kernel.

    ``faults`` counts what was found by sort, ``problems`` has the first ``MAX_PROBLEMS``, by path. ``settled`` ones
    were put right, ``remaining`` ones were not; notes are neither (modes, temporaries in use).
    """

    store: str
    objects: int
    bytes: int
    measured: int
    faults: dict[str, int]
    settled: int
    remaining: int
    problems: tuple[StoreProblem, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem remains."""
        return not self.remaining


def fsck(
    store: bytes,
    *,
    now: float,
    options: RepairOptions | None = None,
    measure: bool = False,
    threads: int | None = None,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> StoreFsckReport:
    """Compute the digest of every object in *store*, look at everything else, and do what *options* ask for.

    Builds go on meanwhile; they wait while something is changed. See ``cfstools.store.care.fsck`` and
    ``cfstools.store.care.repair`` for the details. Raises StoreError; InputError for a donor that is no directory.
    """
    for donor in options.donors if options else ():
        check_donor(donor)  # before the long work
    with open_directory(store) as opened:
        result = check(opened, now=now, measure=measure, threads=threads, waiting=waiting, progress=progress)
        if options is not None and result.problems:
            repair(opened, result, options, now=now, waiting=waiting, progress=progress)
    return _report(store, result)


def _report(store: bytes, result: FsckResult) -> StoreFsckReport:
    faults = Counter(problem.fault for problem in result.problems)
    if result.modes:
        faults[Fault.MODE] = result.modes
    remaining = sum(problem.remains for problem in result.problems)
    settled = sum(problem.outcome is not None for problem in result.problems)
    return StoreFsckReport(
        store=shown_path(store),
        objects=result.objects,
        bytes=result.bytes,
        measured=result.measured,
        faults={fault.value: faults[fault] for fault in Fault if faults[fault]},
        settled=settled,
        remaining=remaining,
        problems=tuple(map(_problem, result.problems[:MAX_PROBLEMS])),
    )


def _problem(problem: FsckProblem) -> StoreProblem:
    return StoreProblem(
        fault=problem.fault,
        path=escape_text(problem.path),
        what=problem.what,
        outcome=problem.outcome,
        remains=problem.remains,
    )
