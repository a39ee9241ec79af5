"""Verb ``store gc``: remove the objects that no image needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from cfstools.api.image_search import Doubt, FoundImage, Search, is_plain_image
from cfstools.api.store_images import ImageNeeds, image_needs
from cfstools.errors import InputError, StoreError, UsageError, naming, os_error, shown_path
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.store.directory import DirectoryStore
from cfstools.store.gc import DEFAULT_GRACE, GcReport
from cfstools.store.gc import gc as collect
from cfstools.store.kept import KeptImage, drop_unfinished, read_kept, write_kept
from cfstools.store.open import open_directory
from cfstools.store.waiting import PATIENT, Waiting
from cfstools.values import Value

_ATTEMPTS = 20  # at reading images while others replace them
_SHOWN_LOST = 20


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


class KeepOptions(Value):
    """Which images to keep, and what is known of them.

    ``images`` by path, and all below ``directories``; there, ``no_images`` are files that look like images and are
    none. Of the images that the last collection kept, ``forget`` ones may be gone, with ``forget_missing`` all of them.
    With ``nothing`` there may be none at all.
    """

    images: Sequence[bytes] = ()
    directories: Sequence[bytes] = ()
    no_images: Collection[bytes] = ()
    forget: Collection[bytes] = ()
    forget_missing: bool = False
    nothing: bool = False

    def _check(self) -> None:
        if not (self.images or self.directories or self.nothing):
            hint = "name images with --keep or --keep-dir"
            raise UsageError("no image to keep: everything would be removed", hint=hint)


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
        marking = _Marking(opened, options, progress)

        def mark() -> set[bytes]:
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


class _Marking:
    """Finds and reads the images of one collection, under the lock."""

    def __init__(self, store: DirectoryStore, options: KeepOptions, progress: Progress) -> None:
        self._store = store
        self._options = options
        self._progress = progress
        self._marked: set[bytes] = set()
        # What is known of the images that were read, by their paths without links.
        self._read: dict[bytes, tuple[FoundImage, ImageNeeds]] = {}
        self._known: list[KeptImage] = []
        self._kept: list[KeptImage] = []
        self._unwritten: StoreError | None = None
        self.paths: list[bytes] = []
        self.passed_over: list[bytes] = []
        self.forgotten: list[bytes] = []
        self.left_out: list[bytes] = []

    def mark(self) -> set[bytes]:
        """The digests of all objects to keep."""
        self._known = self._remembered()
        for _ in range(_ATTEMPTS):
            search = self._search()
            self._read_all(search.images)
            # Whatever was moved or replaced meanwhile may have been missed in both places.
            if self._search().images == search.images:
                break
        else:
            places = ", ".join(map(shown_path, self._options.directories))
            raise InputError(
                "images change while they are read", subject=places, hint="collect when nothing writes there"
            )
        self.paths = [image.path for image in search.images.values()]
        self.passed_over = sorted(search.passed_over.values())
        self._kept = [KeptImage(real, self._read[real][1].digest, self._read[real][1].size) for real in search.images]
        self._miss()
        return self._marked

    def _remembered(self) -> list[KeptImage]:
        try:
            return read_kept(self._store)
        except StoreError:
            if not self._options.forget_missing:
                raise
            return []

    def _search(self) -> Search:
        """The images to keep by now: those that were named first."""
        options = self._options
        search = Search(options.directories, no_images=options.no_images)
        if search.empty and not options.nothing:
            raise InputError("holds no composefs image", subject=shown_path(search.empty[0]), hint="is it mounted?")
        named: dict[bytes, FoundImage] = {}
        for path in options.images:
            with naming(path):
                try:
                    real = os.path.realpath(path, strict=True)
                    named.setdefault(real, FoundImage.at(path))
                except OSError as error:
                    raise os_error(error, "cannot read") from error
        search.images = {**named, **{real: image for real, image in search.images.items() if real not in named}}
        return search

    def _read_all(self, images: dict[bytes, FoundImage]) -> None:
        """Mark what the images need; what was read before and is the same is not read again."""
        with running_stage(self._progress, "read images", len(images), "image") as stage:
            for real, image in images.items():
                known = self._read.get(real)
                if known is None or known[0] != image:
                    needs = image_needs(image.path)
                    self._marked.update(needs.objects)
                    self._read[real] = image, needs._replace(objects={})
                stage.advance(1)

    def _miss(self) -> None:
        """Stop for images that the last collection kept and that are not there any more, under whatever name."""
        paths = {image.path for image in self._kept}
        contents = {image.digest for image in self._kept}
        lost: list[Doubt] = []
        for image in self._known:
            if image.path in paths or image.digest in contents:
                continue
            why = _why_lost(image.path)
            if not why:
                self.left_out.append(image.path)
            elif self._options.forget_missing or image.path in self._options.forget:
                self.forgotten.append(image.path)
            else:
                lost.append(Doubt(f"was kept by the last collection, and {why}", subject=shown_path(image.path)))
        if lost:
            first, others = lost[0], [shown_path(doubt.subject or "") for doubt in lost[1:_SHOWN_LOST]]
            if others:
                first.what += f" (and so {len(lost) - 1} more: {', '.join(others)})"
            first.hint = (
                "is everything mounted? If it is to go, say so with --forget IMAGE, or --forget-missing for all"
            )
            raise first

    def record(self) -> None:
        """Remember what is kept, before anything is removed; on a full disk that has to wait."""
        if sorted(self._kept) == sorted(self._known):
            drop_unfinished(self._store)
            return
        try:
            write_kept(self._store, self._kept)
        except StoreError as error:
            self._unwritten = error

    def record_late(self) -> None:
        """Remember what is kept if that was not possible before. Raises StoreError."""
        if self._unwritten is not None:
            write_kept(self._store, self._kept)


def _names_of(path: bytes) -> tuple[bytes, bytes]:
    """What an image at *path* may have been remembered as: it may be a link by now that was none."""
    directory, name = os.path.split(os.path.abspath(path))
    return os.path.realpath(path), os.path.join(os.path.realpath(directory), name)


def _why_lost(path: bytes) -> str:
    """Why there is no image at *path* any more, empty if there is one.

    The path is what a record in the store says, which others may have written: nothing but a plain file is opened.
    """
    try:
        if is_plain_image(path):
            return ""
    except (FileNotFoundError, NotADirectoryError):
        return "is gone"
    except OSError as error:
        return f"cannot be looked at: {error.strerror or error}"
    return "is no image any more"
