"""The record of the images that the last collection kept, by which the next one notices a lost image.

``STORE/.mkcfs-images`` is text: a version line, then a line for each image with its fs-verity digest (hexadecimal),
size (decimal) and path (with ``%`` escapes). Every user with write access to the store can change it. It can only
prevent a collection: no object is removed because of it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from typing import NamedTuple

from cfstools.errors import Phrase, Remedy, StoreError
from cfstools.linux import files
from cfstools.store.base import KEPT_NAME, NEW_KEPT_NAME, store_error
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.sharing import share_with_writers

_HEADER = b"mkcfs images 1"
_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,20}) ([!-~]+)")
_MOST = 16 << 20
_PIECE = 1 << 20


class KeptImage(NamedTuple):
    """An image whose objects were kept: its path, fs-verity digest (SHA-256) and size in bytes."""

    path: bytes
    digest: bytes
    size: int


def read_kept(store: DirectoryStore) -> list[KeptImage]:
    """Read the record; an empty list if there is none. Raises ``StoreError`` if it cannot be read."""
    location = os.path.join(store.path, os.fsdecode(KEPT_NAME))
    try:
        fd = os.open(KEPT_NAME, OBJECT_FLAGS, dir_fd=store.fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _damaged("it is a symbolic link", location) from error
        raise store_error(error, "cannot read which images the last collection kept", location) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _damaged("it is not a regular file", location)
        data = bytearray()
        while len(data) <= _MOST and (piece := os.read(fd, _PIECE)):
            data += piece
    except OSError as error:
        raise store_error(error, "cannot read which images the last collection kept", location) from error
    finally:
        files.close(fd)
    return parse_kept(bytes(data), location)


def parse_kept(data: bytes, location: str) -> list[KeptImage]:
    """Parse the bytes of a record; *location* is its path for messages. Raises ``StoreError``."""
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - a store without a record needs none of it

    if len(data) > _MOST:
        raise _damaged(f"it has more than {_MOST} bytes", location)
    header, _, body = data.partition(b"\n")
    if header != _HEADER or (body and not body.endswith(b"\n")):
        raise _damaged("its start or its end is missing", location)
    found = []
    for number, line in enumerate(BytesIO(body), 2):
        match = _LINE.fullmatch(line, 0, len(line) - 1)
        if match is None:
            raise _damaged(f"line {number} is damaged", location)
        path = unquote_to_bytes(match[3])
        if not path.startswith(b"/") or b"\0" in path:
            raise _damaged(f"line {number} is damaged", location)
        found.append(KeptImage(path, bytes.fromhex(match[1].decode()), int(match[2])))
    return found


def _damaged(why: str, location: str) -> StoreError:
    return StoreError(
        f"is not a valid record of the images that the last collection kept: {why}",
        subject=location,
        hint=Phrase("look whether all images are there, then collect with {}", Remedy.FORGET_MISSING),
    )


def kept_text(images: Iterable[KeptImage]) -> bytes:
    """The bytes of the record of *images*; the inverse of :func:`parse_kept`."""
    from urllib.parse import quote_from_bytes  # noqa: PLC0415 - as above

    lines = [_HEADER]
    for path, digest, size in sorted(images):
        lines.append(f"{digest.hex()} {size} {quote_from_bytes(path)}".encode())
    return b"\n".join(lines) + b"\n"


def drop_unfinished(store: DirectoryStore) -> None:
    """Remove the unfinished record of a killed collection. The store must be locked exclusively."""
    with suppress(OSError):
        os.unlink(NEW_KEPT_NAME, dir_fd=store.fd)


def write_kept(store: DirectoryStore, images: Iterable[KeptImage]) -> None:
    """Replace the record, durably. The store must be locked exclusively. Raises ``StoreError``."""
    try:
        _write(store, kept_text(images))
    except OSError as error:
        drop_unfinished(store)
        raise store_error(error, "cannot record which images are kept", store.path) from error


def _write(store: DirectoryStore, data: bytes) -> None:
    drop_unfinished(store)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(NEW_KEPT_NAME, flags, 0o600, dir_fd=store.fd)
    try:
        share_with_writers(store.fd, fd)
        files.write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        files.close(fd)
        raise
    os.close(fd)
    try:
        os.replace(NEW_KEPT_NAME, KEPT_NAME, src_dir_fd=store.fd, dst_dir_fd=store.fd)
    except IsADirectoryError as error:
        raise OSError(errno.EISDIR, "a directory is in its place") from error
    os.fsync(store.fd)
