"""Where good contents of damaged objects may be found: another store, or any directory tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, StoreError, os_error, raise_exhausted, shown_path
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.verity import Algorithm, Params, hash_fd

_Candidate = tuple[bytes, int, bytes]


def search(path: bytes, wanted: Mapping[bytes, int | None], *, progress: Progress = SILENT) -> Iterator[_Candidate]:
    """Look below the directory *path* for the contents of the *wanted* digests.

    Yields a digest, a descriptor of a file that has such contents, open until the next step, and the file's path. What
    is taken must be taken out of *wanted* by then; the contents may have changed, so their digest is to be computed
    once more while they are copied. First looks in the places where a store has its objects, then at the digests of
    all files: those of a size that *wanted* gives for some digest first. Links are not followed, and what cannot be
    read is passed over.
    """
    yield from _as_store(path, wanted)
    if wanted:
        yield from _as_tree(path, wanted, progress)


def _as_store(path: bytes, wanted: Mapping[bytes, int | None]) -> Iterator[_Candidate]:
    with suppress(StoreError), DirectoryStore(path) as store:
        for digest in list(wanted):
            try:
                fd = store.open(digest)
            except StoreError:
                continue
            with _closing(fd):
                yield digest, fd, os.fsencode(store.describe(digest))


def _as_tree(path: bytes, wanted: Mapping[bytes, int | None], progress: Progress) -> Iterator[_Candidate]:
    files = list(_files(path))
    sizes = {size for size in wanted.values() if size is not None}
    # Contents of a known size first: with luck nothing else needs to be read. By path, so that runs are alike.
    files.sort(key=lambda item: (item[0] not in sizes, item[1]))
    lengths = sorted({len(digest) for digest in wanted})
    progress.start("search", sum(size for size, _ in files), "B")
    for size, file in files:
        if not wanted:
            break
        try:
            fd = os.open(file, OBJECT_FLAGS)
        except OSError as error:
            raise_exhausted(error, "cannot open", os.fsdecode(file))
            continue
        with _closing(fd):
            for digest in _digests(fd, lengths):
                if digest in wanted:
                    yield digest, fd, file
        progress.advance(size)
    progress.finish()


def _digests(fd: int, lengths: list[int]) -> Iterator[bytes]:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        return
    for length in lengths:
        try:
            yield hash_fd(fd, Params(algorithm=Algorithm.from_digest_size(length)))[0]
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
