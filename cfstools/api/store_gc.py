"""Verb ``store gc``: remove the objects that no image needs."""

from __future__ import annotations

from collections.abc import Sequence

from cfstools.api.store_images import find_images, needed_digests
from cfstools.errors import InputError, UsageError, shown_path
from cfstools.progress import SILENT, Progress
from cfstools.store.directory import DirectoryStore
from cfstools.store.gc import DEFAULT_GRACE, GcReport
from cfstools.store.gc import gc as collect
from cfstools.store.waiting import PATIENT, Waiting


class StoreGcReport(GcReport):
    """What was removed from the store at the path ``store``, and the ``images`` whose objects were kept."""

    store: str
    images: tuple[str, ...]


def gc(
    store: bytes,
    *,
    keep: Sequence[bytes] = (),
    keep_dirs: Sequence[bytes] = (),
    keep_nothing: bool = False,
    now: float,
    grace: float = DEFAULT_GRACE,
    dry_run: bool = False,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> StoreGcReport:
    """Remove the objects of *store* that neither the images *keep* need nor any image below *keep_dirs*.

    Objects that got their name less than *grace* seconds before *now* stay as well. The images are read while nobody
    builds. Nothing is removed when one of them cannot be read or is broken, or when no image was found below one of
    *keep_dirs*, or none was given at all, unless *keep_nothing* says that this is meant. *waiting* says how long
    to wait for others before StoreBusy is raised. Raises UsageError, InputError, ImageError and StoreError.
    """
    if not (keep or keep_dirs or keep_nothing):
        raise UsageError("no image to keep: everything would be removed", hint="name images with --keep or --keep-dir")
    images: list[bytes] = []

    def mark() -> set[bytes]:
        images.extend(keep)
        for directory, found in find_images(keep_dirs):
            if not found and not keep_nothing:
                raise InputError("holds no composefs image", subject=shown_path(directory), hint="is it mounted?")
            images.extend(found)
        progress.start("read images", len(images), "image")
        marked: set[bytes] = set()
        for image in images:
            marked.update(needed_digests(image))
            progress.advance(1)
        progress.finish()
        return marked

    with DirectoryStore(store) as opened:
        report = collect(opened, mark, now=now, grace=grace, dry_run=dry_run, waiting=waiting, progress=progress)
    return StoreGcReport(
        store=shown_path(store),
        images=tuple(map(shown_path, images)),
        **{name: getattr(report, name) for name in report._fields},
    )
