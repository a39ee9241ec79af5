"""What the last collection kept: a record in the store, so that an image that is lost is missed.

``STORE/.mkcfs-images`` is text: a first line with the version, then for each image a line of fs-verity digest, size and
path, hexadecimal, decimal and with ``%`` escapes. Whoever may write to the store can change it. It is only ever a
reason not to collect: no object is removed for what it says.
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
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cfstools.errors import StoreError
from cfstools.linux import files
from cfstools.store.base import KEPT_NAME, NEW_KEPT_NAME, store_error
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.sharing import share_with_writers

_HEADER = b"mkcfs images 1"
_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,20}) ([!-~]+)")
_MOST = 16 << 20
_PIECE = 1 << 20


class KeptImage(NamedTuple):
    """An image whose objects were kept: where it was, and the fs-verity digest (SHA-256) and size of its bytes."""

    path: bytes
    digest: bytes
    size: int


def read_kept(store: DirectoryStore) -> list[KeptImage]:
    """The images of the last collection; none without a record. Raises ``StoreError`` for one that cannot be read."""
    place = os.path.join(store.path, os.fsdecode(KEPT_NAME))
    try:
        fd = os.open(KEPT_NAME, OBJECT_FLAGS, dir_fd=store.fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _damaged("it is a symbolic link", place) from error
        raise store_error(error, "cannot read which images the last collection kept", place) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _damaged("it is no regular file", place)
        data = bytearray()
        while len(data) <= _MOST and (piece := os.read(fd, _PIECE)):
            data += piece
    except OSError as error:
        raise store_error(error, "cannot read which images the last collection kept", place) from error
    finally:
        files.close(fd)
    return parse_kept(bytes(data), place)


def parse_kept(data: bytes, place: str) -> list[KeptImage]:
    """The images in the bytes of a record that is at *place*. Raises ``StoreError``."""
    if len(data) > _MOST:
        raise _damaged(f"it has more than {_MOST} bytes", place)
    header, _, body = data.partition(b"\n")
    if header != _HEADER or (body and not body.endswith(b"\n")):
        raise _damaged("its start or its end is missing", place)
    found = []
    for number, line in enumerate(BytesIO(body), 2):
        match = _LINE.fullmatch(line, 0, len(line) - 1)
        if match is None:
            raise _damaged(f"line {number} is damaged", place)
        path = unquote_to_bytes(match[3])
        if not path.startswith(b"/") or b"\0" in path:
            raise _damaged(f"line {number} is damaged", place)
        found.append(KeptImage(path, bytes.fromhex(match[1].decode()), int(match[2])))
    return found


def _damaged(why: str, place: str) -> StoreError:
    return StoreError(
        f"is no record of the images that the last collection kept: {why}",
        subject=place,
        hint="look whether all images are there, then collect with --forget-missing",
    )


def kept_text(images: Iterable[KeptImage]) -> bytes:
    """The bytes of a record, which :func:`parse_kept` reads."""
    lines = [_HEADER]
    for path, digest, size in sorted(images):
        lines.append(f"{digest.hex()} {size} {quote_from_bytes(path)}".encode())
    return b"\n".join(lines) + b"\n"


def drop_unfinished(store: DirectoryStore) -> None:
    """Remove what a collection left behind that was killed while it wrote a record. The store must be locked alone."""
    with suppress(OSError):
        os.unlink(NEW_KEPT_NAME, dir_fd=store.fd)


def write_kept(store: DirectoryStore, images: Iterable[KeptImage]) -> None:
    """Replace the record, durably. The store must be locked alone. Raises ``StoreError``."""
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
