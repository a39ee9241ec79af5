"""Taking good contents from where they were found: no more than they were, and no more than there is room for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cfstools.errors import InputError, StoreError
from cfstools.linux import files
from cfstools.store.base import store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.donors import Candidate
from cfstools.store.scratch import Temporary
from cfstools.verity import ObjectId, hash_fd

_PIECE = 1 << 20


class NoRoomError(StoreError):
    """The file system of the store has not enough room for an object."""


def copy_contents(found: Candidate, temporary: Temporary, store: DirectoryStore) -> bool:
    """Fill the temporary with the contents that were *found*; whether it has their digest then.

    At most as many bytes are taken as were hashed, whatever the file has by now, and its holes stay holes. Where they
    cannot be cloned there must be room for all of them before the first is written: ``NoRoomError``. Raises
    ``StoreError``.
    """
    params = ObjectId.of(found.digest).params
    try:
        if not files.reflink(found.fd, temporary.fd):
            _check_room(found, store)
            for offset, data in _pieces(found):
                temporary.skip(offset - temporary.size)
                temporary.write(data)
            temporary.skip(found.size - temporary.size)
            temporary.complete()
        digest, temporary.size = hash_fd(temporary.fd, params)
    except InputError:
        return False  # the donor cannot be read any more
    except OSError as error:
        raise store_error(error, "cannot write an object", store.path) from error
    return digest == found.digest


def _pieces(found: Candidate) -> Iterator[tuple[int, bytes]]:
    """The data of the file with the offsets, without holes. Raises ``InputError``."""
    try:
        for start, end in files.data_ranges(found.fd, found.size):
            at = start
            while at < end:
                data = os.pread(found.fd, min(_PIECE, end - at), at)
                if not data:
                    return  # it was cut; the digest tells
                yield at, data
                at += len(data)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}") from error


def _check_room(found: Candidate, store: DirectoryStore) -> None:
    needed = sum(end - start for start, end in files.data_ranges(found.fd, found.size))
    status = os.fstatvfs(store.fd)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise NoRoomError(f"it takes {needed} bytes, and {free} are free", subject=store.path)
