"""Search directories for images: which files are images, which surely are not, and which might be.

An image that is not recognised loses its objects. So only files that cannot have been images are passed over; one that
may be a damaged image stops the search.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cfstools.errors import InputError, Phrase, Remedy, os_error
from cfstools.formats.base import HEAD
from cfstools.formats.registry import recognise, why_in_doubt
from cfstools.linux.files import close
from cfstools.output.temporaries import is_temporary
from cfstools.signing import MAX_TRAILER
from cfstools.signing.attach import has_trailer_marks
from cfstools.store.base import KEPT_NAME, LOCK_NAME, digest_of
from cfstools.text import shown_path

# What images are called: by this project and the C tools, by ostree, by mkfs.erofs, and by containers/storage.
_CUSTOMARY = re.compile(rb".*\.(?:cfs|composefs|erofs)|composefs\.blob", re.DOTALL | re.IGNORECASE)
_SIGNATURE = b".sig"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_SHOWN_DOUBTS = 20


class Doubt(InputError):
    """Something might be an image, or have been one, and cannot be read as one."""


class FoundImage(NamedTuple):
    """An image: the path it was met at, and what changes when it is written to or replaced."""

    path: bytes
    identity: tuple[int, ...]

    @classmethod
    def at(cls, path: bytes) -> FoundImage:
        """The image that is to be at *path*. Raises OSError."""
        return cls(path, _identity(os.stat(path)))


class Search:
    """What is below directories: ``images`` by their paths without symbolic links; ``passed_over`` is none.

    Directories without any image are ``empty``. Raises InputError for what cannot be read, Doubt.
    """

    def __init__(self, directories: Sequence[bytes], *, no_images: Collection[bytes] = ()) -> None:
        self._no_images = {os.path.realpath(path) for path in no_images}
        self.images: dict[bytes, FoundImage] = {}
        self.passed_over: dict[bytes, bytes] = {}
        self.empty: list[bytes] = []
        self._doubts: dict[bytes, Doubt] = {}
        for directory in directories:
            if not self._walk(directory):
                self.empty.append(directory)
        if self._doubts:
            self._stop(list(self._doubts.values()))

    @staticmethod
    def _stop(doubts: list[Doubt]) -> None:
        first, others = doubts[0], [str(doubt) for doubt in doubts[1:_SHOWN_DOUBTS]]
        if others:
            more = f"{'; '.join(others)}{'; …' if len(doubts) > _SHOWN_DOUBTS else ''}"
            first.what += f" (and {len(doubts) - 1} more in doubt: {more})"
        raise first

    def _walk(self, top: bytes) -> int:
        """Look at everything below *top*; how many images there are."""
        # Not told by inode numbers: there are file systems on which different files share them.
        met: set[bytes] = set()
        pending = [(top, os.path.realpath(top))]
        while pending:
            path, real = pending.pop()
            try:
                status = os.lstat(real)
                if stat.S_ISLNK(status.st_mode):
                    real = os.path.realpath(real, strict=True)
                    status = os.stat(real)
                if real in met:
                    continue
                if stat.S_ISREG(status.st_mode) and _is_of_a_store(path):
                    # Under another name it may be met again, as an image that somebody wants.
                    self._take_object(path, real, status)
                    continue
                met.add(real)
                if stat.S_ISDIR(status.st_mode):
                    pending += self._names(path, real)
                elif path == top:
                    hint = Phrase("an image is given with {}", Remedy.KEEP)
                    raise InputError("is not a directory", subject=shown_path(path), hint=hint)
                else:
                    self._judge(path, real, status)
            except FileNotFoundError as error:
                if path == top or os.path.islink(path):
                    raise os_error(error, "cannot open", subject=shown_path(path)) from error
            except OSError as error:
                raise os_error(error, "cannot open", subject=shown_path(path)) from error
        return len(met & self.images.keys())

    def _names(self, path: bytes, real: bytes) -> list[tuple[bytes, bytes]]:
        """What is in a directory: each path, and the same without symbolic links but for the last name."""
        names = sorted(os.listdir(real), reverse=True)  # taken from the end: in byte order
        if not names and _CUSTOMARY.fullmatch(os.path.basename(real)):
            # As a container's mount of a file that is not there makes it.
            self._doubt(path, real, "is an empty directory with the name of an image")
        there = set(names)
        for name in names:
            of = name.removesuffix(_SIGNATURE)
            if of != name and of not in there and _CUSTOMARY.fullmatch(of):
                missing = "is the signature of an image that is not there"
                self._doubt(os.path.join(path, name), os.path.join(real, name), missing)
        return [(os.path.join(path, name), os.path.join(real, name)) for name in names]

    def _take_object(self, path: bytes, real: bytes, status: os.stat_result) -> None:
        """Files of a store are objects; only whole images among them count."""
        if _why_in_doubt(real, status, briefly=True) is None:
            self.images[real] = FoundImage(path, _identity(status))

    def _judge(self, path: bytes, real: bytes, status: os.stat_result) -> None:
        name = os.path.basename(path)
        if real in self._no_images or (stat.S_ISREG(status.st_mode) and is_temporary(name)):
            self.passed_over[real] = path
            return
        why = _why_in_doubt(real, status)
        if why is None:
            self.images[real] = FoundImage(path, _identity(status))
        elif why:
            self._doubt(path, real, why)
        elif _CUSTOMARY.fullmatch(name) or _CUSTOMARY.fullmatch(os.path.basename(real)):
            self._doubt(path, real, "has the name of an image and is none")
        elif os.path.lexists(path + _SIGNATURE) or os.path.lexists(real + _SIGNATURE):
            self._doubt(path, real, "has a signature beside it and is no image")
        else:
            self.passed_over[real] = path

    def _doubt(self, path: bytes, real: bytes, what: str) -> None:
        if real not in self._no_images:
            hint = Phrase("look at it; if it is no image, remove it, or say so with {}", Remedy.NO_IMAGES)
            self._doubts.setdefault(real, Doubt(what, subject=shown_path(path), hint=hint))


def _is_of_a_store(path: bytes) -> bool:
    """Whether this has the name of an object, or of what the care of a store leaves there."""
    directory, name = os.path.split(path)
    return name in (LOCK_NAME, KEPT_NAME) or digest_of(os.path.basename(directory), name) is not None


def _why_in_doubt(path: bytes, status: os.stat_result, *, briefly: bool = False) -> str | None:
    """Why this might be or have been an image, empty if nothing suggests so; ``None`` for an image.

    *briefly* only tells whether it is one.
    """
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return ""
    fd = os.open(path, _FLAGS)
    try:
        head = os.pread(fd, HEAD, 0)
        if recognise(head) is not None:
            return None
        if briefly:
            return ""
        size = os.lseek(fd, 0, os.SEEK_END)
        tail = os.pread(fd, MAX_TRAILER, max(0, size - MAX_TRAILER))
        signed = "has a signature behind it and is no image" if has_trailer_marks(tail, size) else ""
        return why_in_doubt(head) or signed
    finally:
        close(fd)


def is_plain_image(path: bytes) -> bool:
    """Whether a regular file is at *path*, and starts as images do. Raises OSError."""
    status = os.stat(path, follow_symlinks=False)
    return stat.S_ISREG(status.st_mode) and _why_in_doubt(path, status) is None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_rdev, *times)
