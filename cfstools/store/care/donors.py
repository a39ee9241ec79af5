"""Find good contents for damaged objects in other stores or directory trees, and copy them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from cfstools.errors import InputError, ObjectMissing, RemoteObjectWrong, StoreError, os_error, raise_exhausted
from cfstools.linux import files
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.store.base import FileObject, store_error
from cfstools.store.care.check import digest_object
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.open import StorePlace, open_store
from cfstools.store.place import is_remote
from cfstools.store.write.scratch import Temporary
from cfstools.text import shown_path
from cfstools.verity import Algorithm, ObjectId, Params
from cfstools.verity.files import hash_fd

_PIECE = 1 << 20


class Candidate(NamedTuple):
    """An open file that had wanted contents when it was hashed: their digest and size, descriptor, path."""

    digest: bytes
    size: int
    fd: int
    path: bytes


def search(path: StorePlace, wanted: Mapping[bytes, int | None], *, progress: Progress = SILENT) -> Iterator[Candidate]:
    """Search the directory or URL *path* for contents with the *wanted* digests; *wanted* has sizes where known.

    Yields files that were hashed in place; each stays open until the next step. The caller removes digests that it has
    copied from *wanted*, and hashes the copy again, because the file may have changed. *path* is first searched as a
    store, by object names; then all files are hashed, those of a known size first. Links are not followed, and
    unreadable files are skipped.
    """
    if not isinstance(path, bytes) or is_remote(path):
        yield from _as_remote(path, wanted)
        return
    yield from _as_store(path, wanted)
    if wanted:
        yield from _as_tree(path, wanted, progress)


def _as_store(path: bytes, wanted: Mapping[bytes, int | None]) -> Iterator[Candidate]:
    with suppress(StoreError), DirectoryStore(path) as store:
        for digest in list(wanted):
            try:
                found = store.open(digest)
            except StoreError:
                continue
            with closing(found):
                for met, size in _digests(found, [ObjectId.of(digest).algorithm]):
                    if met == digest:
                        yield Candidate(digest, size, found.fileno(), os.fsencode(store.describe(digest)))


def _as_remote(place: StorePlace, wanted: Mapping[bytes, int | None]) -> Iterator[Candidate]:
    """What a store over a network has. Raises ``RemoteStoreError`` when it cannot be asked."""
    with open_store(place) as store:
        for digest in list(wanted):
            try:
                found = store.open(digest)
            except (ObjectMissing, RemoteObjectWrong):
                continue
            with closing(found):
                fd = found.fileno()
                if fd is not None:
                    yield Candidate(digest, found.size, fd, os.fsencode(store.describe(digest)))
                    continue
                with closing(FileObject(os.memfd_create("object", os.MFD_CLOEXEC), found.size)) as copy:
                    files.write_all(copy.fileno(), found.read(0, found.size))
                    yield Candidate(digest, found.size, copy.fileno(), os.fsencode(store.describe(digest)))


def _as_tree(path: bytes, wanted: Mapping[bytes, int | None], progress: Progress) -> Iterator[Candidate]:
    donors = list(_files(path))
    sizes = {size for size in wanted.values() if size is not None}
    # Files of a known size first: often no others need to be read. Then by path, for reproducible runs.
    donors.sort(key=lambda item: (item[0] not in sizes, item[1]))
    algorithms = sorted({ObjectId.of(digest).algorithm for digest in wanted}, key=lambda one: one.number)
    with running_stage(progress, "search", sum(size for size, _ in donors), "B") as stage:
        for size, file in donors:
            if not wanted:
                break
            try:
                fd = os.open(file, OBJECT_FLAGS)
            except OSError as error:
                raise_exhausted(error, "cannot open", os.fsdecode(file))
                continue
            with closing(FileObject(fd, size)) as found:
                for digest, there in _digests(found, algorithms):
                    if digest in wanted:
                        yield Candidate(digest, there, fd, file)
            stage.advance(size)


def _digests(found: FileObject, algorithms: Sequence[Algorithm]) -> Iterator[tuple[bytes, int]]:
    """Yield digest and length of the file for each of *algorithms*; nothing if it is not a readable regular file."""
    try:
        status = os.fstat(found.fileno())
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        return
    for algorithm in algorithms:
        try:
            yield digest_object(found, status.st_size, Params(algorithm=algorithm))
        except InputError:
            return


def _files(path: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield size and path of every regular file below *path*."""
    pending = [path]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False).st_size, entry.path
        except OSError as error:
            raise_exhausted(error, "cannot list directory", os.fsdecode(directory))
            continue


def check_donor(path: StorePlace) -> None:
    """Raise ``InputError`` unless *path* is a readable directory or the URL of a store over a network."""
    if not isinstance(path, bytes) or is_remote(path):
        return
    try:
        files.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError as error:
        raise InputError("is not a directory", subject=shown_path(path)) from error
    except OSError as error:
        raise os_error(error, "cannot open", subject=shown_path(path)) from error


class NoRoomError(StoreError):
    """The file system of the store has not enough room for an object."""


def copy_contents(found: Candidate, temporary: Temporary, store: DirectoryStore) -> bool:
    """Copy the contents of *found* to the temporary; return whether the copy has the expected digest.

    Copies at most as many bytes as were hashed, even if the file has grown, and keeps holes. If the contents cannot be
    reflinked, raises ``NoRoomError`` before writing if there is not enough room for them. Also raises ``StoreError``.
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
        return False  # the donor became unreadable
    except OSError as error:
        raise store_error(error, "cannot write an object", store.path) from error
    return digest == found.digest


def _pieces(found: Candidate) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the file's data, without holes. Raises ``InputError``."""
    try:
        for start, end in files.data_ranges(found.fd, found.size):
            at = start
            while at < end:
                data = os.pread(found.fd, min(_PIECE, end - at), at)
                if not data:
                    return  # truncated meanwhile; the digest will not match
                yield at, data
                at += len(data)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}") from error


def _check_room(found: Candidate, store: DirectoryStore) -> None:
    needed = sum(end - start for start, end in files.data_ranges(found.fd, found.size))
    status = os.fstatvfs(store.fd)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise NoRoomError(f"it needs {needed} bytes, but only {free} are free", subject=store.path)
