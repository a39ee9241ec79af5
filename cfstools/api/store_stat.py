"""Verb ``store stat``: what a store holds and how images share it."""

from __future__ import annotations

from collections.abc import Sequence

from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.image_file import image_needs
from cfstools.store.care.usage import StoreUsage, usage
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.open import open_directory
from cfstools.text import shown_path


class StoreStatReport(Report):
    """What the store at the path ``store`` holds; ``images`` are the paths of those in ``usage``, in the same order."""

    store: str
    images: tuple[str, ...]
    usage: StoreUsage


def stat(
    store: bytes,
    images: Sequence[bytes] = (),
    *,
    waiting: Waiting = PATIENT,
    progress: Progress = SILENT,
) -> StoreStatReport:
    """Count the objects of *store*, and what each of *images* has of them.

    Raises InputError, ImageError and StoreError.
    """
    with open_directory(store) as opened:
        # One object for each digest, however many images name it.
        known: dict[bytes, bytes] = {}
        needed = [
            {known.setdefault(digest, digest): size for digest, size in image_needs(image).objects.items()}
            for image in images
        ]
        counted = usage(opened, needed, waiting=waiting, progress=progress)
    return StoreStatReport(store=shown_path(store), images=tuple(map(shown_path, images)), usage=counted)
