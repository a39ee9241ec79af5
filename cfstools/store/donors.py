"""Where good contents of damaged objects may be found: another store, or any directory tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from cfstools.errors import InputError, StoreError, os_error, raise_exhausted, shown_path
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.store.base import FileObject
from cfstools.store.care.check import digest_object
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.verity import Algorithm, ObjectId, Params


class Candidate(NamedTuple):
    """A file that had the wanted contents when it was read: their digest and size, the open file, and its path."""

    digest: bytes
    size: int
    fd: int
    path: bytes


def search(path: bytes, wanted: Mapping[bytes, int | None], *, progress: Progress = SILENT) -> Iterator[Candidate]:
    """Look below the directory *path* for the contents of the *wanted* digests.

    What it yields is open until the next step, and has been hashed where it lies: nothing is copied to find out that it
    is something else. What is taken must be taken out of *wanted* by then; the contents may have changed, so the digest
    of the copy is to be computed as well. First looks in the places where a store has its objects, then at the digests
    of all files: those of a size that *wanted* gives for some digest first. Links are not followed, and what cannot be
    read is passed over.
    """
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


def _as_tree(path: bytes, wanted: Mapping[bytes, int | None], progress: Progress) -> Iterator[Candidate]:
    files = list(_files(path))
    sizes = {size for size in wanted.values() if size is not None}
    # Contents of a known size first: with luck nothing else needs to be read. By path, so that runs are alike.
    files.sort(key=lambda item: (item[0] not in sizes, item[1]))
    algorithms = sorted({ObjectId.of(digest).algorithm for digest in wanted}, key=lambda one: one.number)
    with running_stage(progress, "search", sum(size for size, _ in files), "B") as stage:
        for size, file in files:
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
    """Digest and length of the file with each of *algorithms*; nothing for what is no regular file or unreadable."""
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
    """Size and path of every regular file below *path*."""
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


def check_donor(path: bytes) -> None:
    """Raise ``InputError`` unless *path* is a directory that can be read."""
    try:
        close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError as error:
        raise InputError("is not a directory", subject=shown_path(path)) from error
    except OSError as error:
        raise os_error(error, "cannot open", subject=shown_path(path)) from error
