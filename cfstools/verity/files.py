"""Digests of files, and the names digests give to objects."""

from __future__ import annotations

import os
import re

from cfstools.errors import UsageError, naming, os_error
from cfstools.progress import SILENT, Progress
from cfstools.verity.algorithm import DEFAULT, Params
from cfstools.verity.merkle import MerkleHasher

READ_SIZE = 1 << 20

_DIGEST_TEXT = re.compile(r"(?:(sha256|sha512):)?([0-9A-Fa-f]*)")
_TEXT_SIZES = {64: "sha256", 128: "sha512"}


def hash_fd(fd: int, params: Params = DEFAULT, *, progress: Progress = SILENT) -> tuple[bytes, int]:
    """The fs-verity digest of what *fd* holds, from its start to its end, and how many bytes that was.

    A pipe is read from where it stands; elsewhere the file offset is neither used nor moved. ``progress`` is only
    advanced, in bytes: the stage belongs to the caller. Raises ``InputError`` when reading fails.
    """
    hasher = MerkleHasher(params)
    buffer = bytearray(READ_SIZE)
    view = memoryview(buffer)
    try:
        seekable = _is_seekable(fd)
        while True:
            got = os.preadv(fd, [buffer], hasher.size) if seekable else os.readv(fd, [buffer])
            if not got:
                return hasher.digest(), hasher.size
            hasher.update(view[:got])
            progress.advance(got)
    except OSError as error:
        raise os_error(error, "cannot read") from error


def digest_fd(fd: int, params: Params = DEFAULT, *, progress: Progress = SILENT) -> bytes:
    """The digest alone, as :func:`hash_fd` computes it."""
    return hash_fd(fd, params, progress=progress)[0]


def _is_seekable(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def digest_file(path: bytes | str, params: Params = DEFAULT, *, progress: Progress = SILENT) -> bytes:
    """The fs-verity digest of the file at *path* (as :func:`digest_fd`); ``InputError`` names the path."""
    with naming(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            return digest_fd(fd, params, progress=progress)
        finally:
            os.close(fd)


def object_path(digest: bytes) -> bytes:
    """Path of an object below its store: ``b"ab/cdef…"``, lower case (composefs format, section 5.2)."""
    text = digest.hex().encode()
    return b"%b/%b" % (text[:2], text[2:])


def parse_digest(text: str) -> bytes:
    """The digest written as *text*: 64 or 128 hexadecimal digits, with or without ``sha256:`` or ``sha512:``.

    Raises ``UsageError`` for anything else.
    """
    match = _DIGEST_TEXT.fullmatch(text)
    if not match:
        raise UsageError("not a digest: hexadecimal digits expected")
    name, digits = match.groups()
    fitting = _TEXT_SIZES.get(len(digits))
    if fitting is None:
        raise UsageError(f"not a digest: {len(digits)} hexadecimal digits instead of 64 or 128")
    if name not in (None, fitting):
        raise UsageError(f"not a digest: {len(digits)} hexadecimal digits do not fit {name}")
    return bytes.fromhex(digits)
