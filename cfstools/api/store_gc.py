"""Verb ``store gc``: remove the objects that no image needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from cfstools.progress import SILENT, Progress
from cfstools.sources.marking import KeepOptions, Marking
from cfstools.store.care.gc import DEFAULT_GRACE, GcReport
from cfstools.store.care.gc import gc as collect
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.open import open_directory
from cfstools.text import shown_path


class StoreGcReport(GcReport):
    """What was removed from the store at the path ``store``, and the ``images`` whose objects were kept.

    ``passed_over`` are the files below the directories that are no images. ``forgotten`` are images that the last
    collection kept and this one did not, because they are gone or are images no more, and that was said to be right;
    ``left_out`` are those that are still images where they were.
    """

    store: str
    images: tuple[str, ...]
    passed_over: tuple[str, ...]
    forgotten: tuple[str, ...]
    left_out: tuple[str, ...]


def gc(
    store: bytes,
    *,
    keep: Sequence[bytes] = (),
    keep_dirs: Sequence[bytes] = (),
    keep_nothing: bool = False,
    no_images: Collection[bytes] = (),
    forget: Collection[bytes] = (),
    forget_missing: bool = False,
    now: float,
    grace: float = DEFAULT_GRACE,
    dry_run: bool = False,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> StoreGcReport:
    """Remove the objects of *store* that neither the images *keep* need nor any image below *keep_dirs*.

    Objects that got their name less than *grace* seconds before *now* stay as well. The images are read while nobody
    builds. Nothing is removed when one of them cannot be read or is broken, when a file below *keep_dirs* might be one
    (unless it is among *no_images*), when no image was found below one of *keep_dirs* or none was given at all (unless
    *keep_nothing*), or when one that the last collection kept is gone or is no image any more (unless it is among
    *forget*, or *forget_missing*). *waiting* says how long to wait for others before StoreBusy is raised. Raises
    UsageError, InputError, ImageError and StoreError.
    """
    options = KeepOptions(
        images=keep,
        directories=keep_dirs,
        no_images=no_images,
        forget={name for path in forget for name in _names_of(path)},
        forget_missing=forget_missing,
        nothing=keep_nothing,
    )
    with open_directory(store) as opened:
        marking = Marking(opened, options, progress)

        def mark() -> dict[bytes, int]:
            marked = marking.mark()
            if not dry_run:
                marking.record()
            return marked

        report = collect(
            opened,
            mark,
            marking.record_late,
            now=now,
            grace=grace,
            dry_run=dry_run,
            waiting=waiting,
            progress=progress,
        )
    return StoreGcReport(
        store=shown_path(store),
        images=tuple(map(shown_path, marking.paths)),
        passed_over=tuple(map(shown_path, marking.passed_over)),
        forgotten=tuple(map(shown_path, marking.forgotten)),
        left_out=tuple(map(shown_path, marking.left_out)),
        **{name: getattr(report, name) for name in report._fields},
    )


def _names_of(path: bytes) -> tuple[bytes, bytes]:
    """What an image at *path* may have been remembered as: it may be a link by now that was none."""
    directory, name = os.path.split(os.path.abspath(path))
    return os.path.realpath(path), os.path.join(os.path.realpath(directory), name)
