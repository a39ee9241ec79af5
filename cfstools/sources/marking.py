"""Which objects of a store are needed: the images to keep are found, read, and compared with those kept before."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from cfstools.errors import InputError, Phrase, Remedy, SourceChanged, StoreError, UsageError, naming, os_error
from cfstools.progress import Progress, running_stage
from cfstools.sources.image_file import ImageNeeds, image_needs
from cfstools.sources.image_search import Doubt, FoundImage, Search, is_plain_image
from cfstools.store.care.kept import KeptImage, drop_unfinished, read_kept, write_kept
from cfstools.store.directory import DirectoryStore
from cfstools.text import shown_path
from cfstools.values import Value

_ATTEMPTS = 20  # at reading images while others replace them
_SHOWN_LOST = 20


class KeepOptions(Value):
    """Which images to keep, and which may be missing.

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
            hint = Phrase("name images with {} or {}", Remedy.KEEP, Remedy.KEEP_DIRS)
            raise UsageError("no image to keep: everything would be removed", hint=hint)


class Marking:
    """Finds and reads the images of one collection, under the lock."""

    def __init__(self, store: DirectoryStore, options: KeepOptions, progress: Progress) -> None:
        self._store = store
        self._options = options
        self._progress = progress
        self._marked: dict[bytes, int] = {}
        # What is known of the images that were read, by their paths without links.
        self._read: dict[bytes, tuple[FoundImage, ImageNeeds]] = {}
        self._known: list[KeptImage] = []
        self._kept: list[KeptImage] = []
        self._unwritten: StoreError | None = None
        self.paths: list[bytes] = []
        self.passed_over: list[bytes] = []
        self.forgotten: list[bytes] = []
        self.left_out: list[bytes] = []

    def mark(self) -> dict[bytes, int]:
        """The digests of all objects to keep, and their sizes in bytes."""
        self._known = self._remembered()
        for _ in range(_ATTEMPTS):
            search = self._search()
            all_read = self._read_all(search.images)
            # Whatever was moved or replaced meanwhile may have been missed in both places.
            if all_read and self._search().images == search.images:
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

    def _read_all(self, images: dict[bytes, FoundImage]) -> bool:
        """Mark what the images need; what was read before and is the same is not read again.

        Returns whether none of them was replaced or removed while it was read.
        """
        all_read = True
        with running_stage(self._progress, "read images", len(images), "image") as stage:
            for real, image in images.items():
                known = self._read.get(real)
                if known is None or known[0] != image:
                    all_read &= self._read_image(real, image)
                stage.advance(1)
        return all_read

    def _read_image(self, real: bytes, image: FoundImage) -> bool:
        """Mark what an image needs; ``False`` if it was replaced or removed meanwhile."""
        try:
            needs = image_needs(image.path)
        except SourceChanged:
            return False
        if self._marked:
            self._marked.update(needs.objects)
        else:
            self._marked = needs.objects
        self._read[real] = image, needs._replace(objects={})
        return True

    def _miss(self) -> None:
        """Raise Doubt for images that the last collection kept and that are gone, under whatever name."""
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
            first.hint = Phrase(
                "is everything mounted? If it is to go, say so with {}, or {} for all",
                Remedy.FORGET,
                Remedy.FORGET_MISSING,
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
