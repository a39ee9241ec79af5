"""Files in which somebody wrote down the digests of images."""

from __future__ import annotations

import os

from cfstools.api.input import read_small
from cfstools.errors import InputError, UsageError, naming, shown_path
from cfstools.verity import ObjectId

MAX_DIGEST_FILE = 1 << 20


def read_digest_file(path: bytes, image: bytes) -> bytes:
    """The fs-verity digest of *image* that the text file *path* holds.

    Each line is a digest, with or without ``sha256:`` or ``sha512:`` before it and the name of a file behind it, as
    ``fsverity digest`` and ``mkcfs digest`` print it. Of several lines the one for a file named like *image* counts.
    Raises InputError if there is not exactly one.
    """
    with naming(path):
        data = read_small(path, MAX_DIGEST_FILE + 1)
        if len(data) > MAX_DIGEST_FILE:
            raise InputError(f"is too large for a file of digests: at most {MAX_DIGEST_FILE} bytes")
        lines = [line.strip() for line in data.splitlines() if line.strip()]
        if len(lines) > 1:
            wanted = os.path.basename(image)
            lines = [line for line in lines if _name(line) == wanted]
        if not lines:
            raise InputError(f"has no line for {shown_path(os.path.basename(image))}")
        found = {_digest(line) for line in lines}
        if len(found) > 1:
            raise InputError(f"has several digests for {shown_path(os.path.basename(image))}")
        return found.pop()


def _name(line: bytes) -> bytes:
    _, _, name = line.partition(b" ")
    return os.path.basename(name.strip().removeprefix(b"*"))


def _digest(line: bytes) -> bytes:
    try:
        return ObjectId.parse(line.partition(b" ")[0].decode("ascii", "replace")).digest
    except UsageError as error:
        raise InputError(error.what) from None
