"""Collecting garbage: objects that nothing needs any more are removed.

The store is locked alone from before the images are read until the last object is gone. A build holds the lock
shared until its image is in place, so an image is either read here, or its build starts later and finds what is
left. The age of an object is that of its inode's last change, which is when it got its name or later: whatever else
puts objects into a store without locking has the grace period to put its image in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cfstools.errors import StoreError
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.store.base import split_digest, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import alone, in_turn
from cfstools.store.survey import Found, Kind, is_stale, place, remove_temporary, survey
from cfstools.store.waiting import PATIENT, Waiting

DEFAULT_GRACE = 3600.0


class GcReport(Report):
    """What was removed from a store, or with ``dry_run`` would be, and what was left. Sizes are in bytes.

    ``kept`` objects are needed, ``missing`` ones are needed and not there, ``young`` ones are neither needed nor older
    than the grace period. ``removed`` are digests in order.
    """

    dry_run: bool
    kept: int
    bytes_kept: int
    missing: int
    young: int
    bytes_young: int
    removed: tuple[bytes, ...]
    bytes_removed: int
    temporaries_removed: int


def _nothing() -> None:
    """There is nothing to settle."""


def gc(
    store: DirectoryStore,
    mark: Callable[[], Collection[bytes]],
    settle: Callable[[], None] = _nothing,
    *,
    now: float,
    grace: float = DEFAULT_GRACE,
    dry_run: bool = False,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> GcReport:
    """Remove the objects that are not among those *mark* returns and older than *grace* seconds at *now*.

    *mark* is called once, under the lock, for the digests to keep; what it raises stops everything before anything is
    removed. *settle* is called when all is removed, still under the lock. Stale temporaries go as well. A *grace* of 0
    takes no account of age. ``dry_run`` only locks out other collections and removes nothing. While others use the
    store, *waiting* says how long to wait before ``StoreBusy`` is raised. Also raises ``StoreError``: after a failure
    in the middle what was removed until then was garbage. Empty directories are left, for readers may have them open.
    """
    turn = in_turn(store, exclusive=False, waiting=waiting) if dry_run else alone(store, waiting)
    with turn:
        sweep = _Sweep(store, mark(), now, grace, dry_run=dry_run)
        with running_stage(progress, "sweep", None, "object") as stage:
            for found in survey(store):
                sweep.take(found)
                stage.advance(1)
        settle()
    return sweep.report()


@dataclass(slots=True)
class _Sums:
    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size


@dataclass(slots=True)
class _Sweep:
    store: DirectoryStore
    keep: Collection[bytes]
    now: float
    grace: float
    dry_run: bool = field(kw_only=True)
    kept: _Sums = field(default_factory=_Sums)
    young: _Sums = field(default_factory=_Sums)
    removed: list[bytes] = field(default_factory=list)
    bytes_removed: int = 0
    temporaries: int = 0

    def take(self, found: Found) -> None:
        """Decide about one name and act."""
        if found.kind is Kind.OBJECT:
            self._take_object(found)
        elif found.kind is Kind.CLOSED:
            raise StoreError(f"cannot list the objects: {found.why}", subject=place(self.store, found.path))
        elif found.is_temporary and is_stale(found, now=self.now, alone=not self.dry_run):
            # A trial does not lock alone and cannot tell whether a directory of temporaries is in use.
            self.temporaries += self.dry_run or remove_temporary(self.store, found)

    def _take_object(self, found: Found) -> None:
        digest, size = found.digest, found.status.st_size
        assert digest is not None
        if digest in self.keep:
            self.kept.add(size)
        elif self.grace > 0 and self.now - found.status.st_ctime <= self.grace:
            self.young.add(size)
        else:
            if not self.dry_run:
                remove_object(self.store, digest)
            self.removed.append(digest)
            self.bytes_removed += size

    def report(self) -> GcReport:
        """What was done."""
        return GcReport(
            dry_run=self.dry_run,
            kept=self.kept.count,
            bytes_kept=self.kept.size,
            missing=len(self.keep) - self.kept.count,
            young=self.young.count,
            bytes_young=self.young.size,
            removed=tuple(self.removed),
            bytes_removed=self.bytes_removed,
            temporaries_removed=self.temporaries,
        )


def remove_object(store: DirectoryStore, digest: bytes) -> None:
    """Take away the object's name, whatever has it but a directory. Raises ``StoreError``; the store must be locked."""
    prefix, name = split_digest(digest)
    try:
        with store.prefix_fd(prefix) as directory:
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise store_error(error, "cannot remove the object", store.describe(digest)) from error
