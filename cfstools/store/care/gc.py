"""Garbage collection: remove the objects that no image needs any more.

The store is locked exclusively from before the images are read until the last object is removed. A build holds a shared
lock until its image is in place, so either the image is read here, or the build starts later and finds the remaining
objects. The age of an object counts from its ctime, which is not before it got its name: programs that add objects
without the lock have the grace period to put their image in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cfstools.errors import StoreError
from cfstools.linux.files import close, open_beneath
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.store.base import split_digest, store_error
from cfstools.store.care.scan import Entry, EntryKind, Listing, is_stale, listings, location, remove_temporary
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, alone, in_turn
from cfstools.verity.object_id import LARGE, leaves_name

DEFAULT_GRACE = 3600.0


class GcReport(Report):
    """What was removed from a store, or with ``dry_run`` would be, and what was left. Sizes are in bytes.

    ``kept`` objects are needed, and their sizes are those that the images state; ``missing`` ones are needed but not in
    the store; ``young`` ones are not needed, but not older than the grace period either. ``removed`` has the digests in
    byte order.
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
    """Do nothing after the removal."""


def gc(
    store: DirectoryStore,
    mark: Callable[[], Mapping[bytes, int]],
    settle: Callable[[], None] = _nothing,
    *,
    now: float,
    grace: float = DEFAULT_GRACE,
    dry_run: bool = False,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> GcReport:
    """Remove the objects whose digests *mark* does not return and that are older than *grace* seconds at *now*.

    *mark* returns the objects to keep with their sizes in bytes, as the images state them. It is called once, under
    the lock; if it raises, nothing is removed. *settle* is called after the removal, still under the lock. Stale
    temporaries are removed too. With a *grace* of 0 age does not matter. ``dry_run`` takes a shared lock and removes
    nothing. *waiting* says how long to wait for other users of the store before ``StoreBusy`` is raised. Also raises
    ``StoreError``, after which everything removed so far was garbage. Empty prefix directories stay, because readers
    may have them open.
    """
    turn = in_turn(store, exclusive=False, waiting=waiting) if dry_run else alone(store, waiting)
    with turn:
        sweep = _Sweep(store, mark(), now, grace, dry_run=dry_run)
        with running_stage(progress, "sweep", None, "object") as stage:
            for listing in listings(store, sweep.keep):
                sweep.keep_objects(listing.known)
                sweep.take_objects(listing)
                for found in listing.others:
                    sweep.take(found)
                stage.advance(len(listing.known) + len(listing.digests))
        settle()
    return sweep.report()


class _Sums:
    __slots__ = ("count", "size")

    def __init__(self) -> None:
        self.count = self.size = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size


class _Sweep:
    def __init__(
        self, store: DirectoryStore, keep: Mapping[bytes, int], now: float, grace: float, *, dry_run: bool
    ) -> None:
        self.store = store
        self.keep = keep
        self.now = now
        self.grace = grace
        self.dry_run = dry_run
        self.kept, self.young = _Sums(), _Sums()
        self.removed: list[bytes] = []
        self.bytes_removed = self.temporaries = 0

    def keep_objects(self, digests: Sequence[bytes]) -> None:
        """Count objects of one directory that are needed."""
        self.kept.count += len(digests)
        self.kept.size += sum(map(self.keep.__getitem__, digests))

    def take_objects(self, listing: Listing) -> None:
        """Keep or remove the objects of one directory."""
        self.keep_objects([digest for digest in listing.digests if digest in self.keep])
        for digest, size, ctime in zip(listing.digests, listing.sizes, listing.ctimes, strict=True):
            if digest in self.keep:
                continue
            if self.grace > 0 and self.now - ctime / 1e9 <= self.grace:
                self.young.add(size)
            else:
                if not self.dry_run:
                    remove_object(self.store, digest)
                    if size > LARGE:
                        _remove_leaves(self.store, digest)
                self.removed.append(digest)
                self.bytes_removed += size

    def take(self, found: Entry) -> None:
        """Remove a stale temporary. Raises ``StoreError`` for a directory whose objects cannot be known."""
        if found.kind is EntryKind.CLOSED:
            raise StoreError(f"cannot list the objects: {found.why}", subject=location(self.store, found.path))
        if found.is_temporary and is_stale(found, now=self.now, alone=not self.dry_run):
            # A dry run has no exclusive lock and cannot tell whether a directory of temporaries is in use.
            self.temporaries += self.dry_run or remove_temporary(self.store, found)

    def report(self) -> GcReport:
        """The totals."""
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
    """Unlink the object; the store must be locked exclusively. Raises ``StoreError``, also for a directory."""
    prefix, name = split_digest(digest)
    try:
        with store.prefix_fd(prefix) as directory:
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise store_error(error, "cannot remove the object", store.describe(digest)) from error


def _remove_leaves(store: DirectoryStore, digest: bytes) -> None:
    """Unlink what lies beside a large object. Only its removal matters: leaves alone are of no use and no harm."""
    directory, _, name = os.fsencode(leaves_name(digest)).rpartition(b"/")
    with suppress(OSError):
        parent = open_beneath(store.fd, directory, os.O_PATH | os.O_DIRECTORY)
        try:
            os.unlink(name, dir_fd=parent)
        finally:
            close(parent)
