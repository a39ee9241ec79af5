"""Where good contents of damaged objects may be found: another store, or any directory tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from cfstools.errors import InputError, StoreError, os_error, raise_exhausted, shown_path
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.verity import Algorithm, Params, hash_fd


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
                fd = store.open(digest)
            except StoreError:
                continue
            with _closing(fd):
                for found, size in _digests(fd, [len(digest)]):
                    if found == digest:
                        yield Candidate(digest, size, fd, os.fsencode(store.describe(digest)))


def _as_tree(path: bytes, wanted: Mapping[bytes, int | None], progress: Progress) -> Iterator[Candidate]:
    files = list(_files(path))
    sizes = {size for size in wanted.values() if size is not None}
    # Contents of a known size first: with luck nothing else needs to be read. By path, so that runs are alike.
    files.sort(key=lambda item: (item[0] not in sizes, item[1]))
    lengths = sorted({len(digest) for digest in wanted})
    with running_stage(progress, "search", sum(size for size, _ in files), "B") as stage:
        for size, file in files:
            if not wanted:
                break
            try:
                fd = os.open(file, OBJECT_FLAGS)
            except OSError as error:
                raise_exhausted(error, "cannot open", os.fsdecode(file))
                continue
            with _closing(fd):
                for digest, there in _digests(fd, lengths):
                    if digest in wanted:
                        yield Candidate(digest, there, fd, file)
            stage.advance(size)


def _digests(fd: int, lengths: list[int]) -> Iterator[tuple[bytes, int]]:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        return
    for length in lengths:
        try:
            yield hash_fd(fd, Params(algorithm=Algorithm.from_digest_size(length)))
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


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        close(fd)


def check_donor(path: bytes) -> None:
    """Raise ``InputError`` unless *path* is a directory that can be read."""
    try:
        close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError as error:
        raise InputError("is not a directory", subject=shown_path(path)) from error
    except OSError as error:
        raise os_error(error, "cannot open", subject=shown_path(path)) from error
