"""Which objects of a store images need (part of the verbs that care for stores)."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence

from cfstools.api.input import read_image_file
from cfstools.errors import InputError, naming, os_error, shown_path
from cfstools.formats.composefs_objects import object_uses
from cfstools.formats.erofs.layout import COMPOSEFS_MAGIC
from cfstools.store.base import digest_of

_MAGIC = struct.pack("<I", COMPOSEFS_MAGIC)
# What an image is called while it is written: it belongs to a build that has not ended.
_UNFINISHED = re.compile(rb"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)


def needed_digests(path: bytes) -> dict[bytes, int]:
    """The digests of the objects that the image at *path* needs, with their sizes. Raises InputError and ImageError.

    Both the place that the image names for contents and the digest it gives count.
    """
    needed: dict[bytes, int] = {}
    with naming(path):
        for use in object_uses(read_image_file(path), allow_tail=True):
            if use.digest is not None:
                needed[use.digest] = use.size
            digest = _digest_at(use.payload)
            if digest is not None:
                needed[digest] = use.size
    return needed


def _digest_at(payload: bytes | None) -> bytes | None:
    """The object that is at a place below a store; ``None`` for places that are no object's."""
    parts = [part for part in (payload or b"").split(b"/") if part]
    return digest_of(parts[0], parts[1]) if len(parts) == 2 else None


def find_images(directories: Sequence[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    """For each of *directories* the composefs images below it, told by their first bytes, whatever they are called.

    Links are followed, also to directories. Files being written by a build are left out, and so is what vanishes
    meanwhile. Raises InputError for what cannot be read: it might be an image.
    """
    for directory in directories:
        yield directory, list(_images(directory))


def _images(top: bytes) -> Iterator[bytes]:
    met: set[tuple[int, int]] = set()
    pending = [top]
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in met:
                continue
            met.add((status.st_dev, status.st_ino))
            if stat.S_ISDIR(status.st_mode):
                # Taken from the end: in byte order.
                pending += (os.path.join(path, name) for name in sorted(os.listdir(path), reverse=True))
            elif path == top:
                raise InputError("is not a directory", subject=shown_path(path), hint="an image is given with --keep")
            elif stat.S_ISREG(status.st_mode) and _is_image(path):
                yield path
        except FileNotFoundError as error:
            if path == top or os.path.islink(path):
                raise os_error(error, "cannot open", subject=shown_path(path)) from error
        except OSError as error:
            raise os_error(error, "cannot open", subject=shown_path(path)) from error


def _is_image(path: bytes) -> bool:
    if _UNFINISHED.fullmatch(os.path.basename(path)):
        return False
    with open(path, "rb", buffering=0) as file:
        return file.read(len(_MAGIC)) == _MAGIC
