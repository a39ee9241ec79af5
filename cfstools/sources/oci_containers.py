"""Where images come from: what a user wrote, what a path holds, and the container opened."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from cfstools.errors import FormatError, InputError, LimitExceeded, UsageError, naming, os_error
from cfstools.linux.files import close
from cfstools.linux.lookup import file_type, is_directory
from cfstools.oci.archive import ArchiveFiles, member_path
from cfstools.oci.bytesource import Read
from cfstools.oci.choices import DecompressionLimits
from cfstools.oci.compression import open_compressed
from cfstools.oci.files import BlobFiles, DirectoryFiles
from cfstools.oci.images import DockerImages, ImageContainer, LayerTars, OciImages
from cfstools.oci.tar import TarReader
from cfstools.sources.oci_request import Form, is_layout

_STDIN = b"-"
_PEEK = 1 << 16
# What the members at the top of an image archive are called; a layer hardly begins with one of these.
_ARCHIVE_TOPS = frozenset({"blobs", "oci-layout", "index.json", "manifest.json", "repositories", "VERSION"})


def recognise(path: bytes, limits: DecompressionLimits | None = None) -> Form | None:
    """What form of image *path* holds, ``None`` when none; layers are told from archives by their first member.

    Raises :class:`InputError` for what cannot be read, :class:`LimitExceeded`. A compressed file that holds no tar
    archive is ``None`` too.
    """
    kind = file_type(path)
    if kind == stat.S_IFDIR:
        return Form.OCI if is_layout(path) else None
    if kind not in (0, stat.S_IFREG):
        return None  # whoever writes to a pipe would lose its only reader
    fd = _open_file(path)
    try:
        with naming(path):
            return _recognise_file(_reader(fd), limits)
    finally:
        close(fd)


def _recognise_file(read: Read, limits: DecompressionLimits | None) -> Form | None:
    try:
        reader = TarReader(open_compressed(read, limits=limits).read)
        for member in reader:
            path = member_path(member.name)
            if path is None:
                continue
            top = path.partition("/")[0]
            if top in _ARCHIVE_TOPS or (path == top and top.endswith(".json")) or _is_id(top):
                return Form.OCI_ARCHIVE
            return Form.LAYERS
    except LimitExceeded:
        raise
    except FormatError:
        return None
    return None


def _is_id(top: str) -> bool:
    """Whether this is how docker names an image's or layer's part of an archive."""
    stem = top.removesuffix(".tar")
    return len(stem) == 64 and set(stem) <= set("0123456789abcdef")


@contextmanager
def open_images(
    form: Form | None,
    paths: Sequence[bytes],
    *,
    stdin: int | None = None,
    limits: DecompressionLimits | None = None,
) -> Iterator[ImageContainer]:
    """Open what *paths* hold (several only for layers); errors inside the block name the path.

    ``b"-"`` is the descriptor *stdin*: one layer tar may come from a pipe, an archive only from a file that can be
    read in several places. Without a *form* standard input is opened as what its first bytes say it is.
    Raises :class:`InputError`, :class:`OciError`, :class:`TarError`, …
    """
    with naming("standard input" if paths[0] == _STDIN else paths[0]):
        container = _open_stdin(stdin, limits) if form is None else _open(form, paths, stdin, limits)
        try:
            yield container
        finally:
            container.close()


def _open_stdin(stdin: int | None, limits: DecompressionLimits | None) -> ImageContainer:
    head, read = _peek(_given(stdin))
    form = _recognise_file(io.BytesIO(head).read, limits)
    if form is Form.OCI_ARCHIVE:
        return _open(form, [_STDIN], stdin, limits)
    return LayerTars([("-", lambda: nullcontext(read))])


def _peek(fd: int) -> tuple[bytes, Read]:
    """The first bytes of what *fd* holds, and how to read all of it."""
    read = _reader(fd)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.pread(fd, _PEEK, os.lseek(fd, 0, os.SEEK_CUR)), read
    except OSError as error:
        raise os_error(error, "cannot read") from error
    head = b""
    while len(head) < _PEEK and (part := read(_PEEK - len(head))):
        head += part
    replayed = io.BytesIO(head)
    return head, lambda count: replayed.read(count) or read(count)


def _open(form: Form, paths: Sequence[bytes], stdin: int | None, limits: DecompressionLimits | None) -> ImageContainer:
    if len(paths) > 1 and (form is not Form.LAYERS or _is_directory(paths[0])):
        kind = "an image" if form is not Form.LAYERS else "a directory"
        raise UsageError(f"--layer goes over a layer tar, and the source is {kind}")
    if form is Form.LAYERS:
        if list(paths).count(_STDIN) > 1:
            raise UsageError("standard input can be one layer only")
        return LayerTars([(os.fsdecode(path), _layer_opener(path, stdin)) for path in paths])
    if form is Form.OCI:
        return _closing(DirectoryFiles(paths[0]), OciImages)
    if _is_directory(paths[0]):
        raise InputError(f"is a directory, not an image archive: use {Form.OCI.value}: for an OCI layout")
    archive = ArchiveFiles(_descriptor(paths[0], stdin), limits=limits)
    # Newer docker writes both forms into one archive; the index says more.
    if "index.json" not in archive and ("manifest.json" in archive or form is Form.DOCKER_ARCHIVE):
        return _closing(archive, DockerImages)
    return _closing(archive, lambda files: OciImages(files, "oci-archive"))


def _is_directory(path: bytes) -> bool:
    return path != _STDIN and is_directory(path)


def _closing(files: BlobFiles, make: Callable[[BlobFiles], ImageContainer]) -> ImageContainer:
    try:
        return make(files)
    except BaseException:
        files.close()
        raise


def _layer_opener(path: bytes, stdin: int | None) -> Callable[[], AbstractContextManager[Read]]:
    @contextmanager
    def opener() -> Iterator[Read]:
        with naming("standard input" if path == _STDIN else path):
            fd = _descriptor(path, stdin)
            try:
                yield _reader(fd)
            finally:
                close(fd)

    return opener


def _reader(fd: int) -> Read:
    def read(count: int) -> bytes:
        try:
            return os.read(fd, count)
        except OSError as error:
            raise os_error(error, "cannot read") from error

    return read


def _descriptor(path: bytes, stdin: int | None) -> int:
    if path != _STDIN:
        return _open_file(path)
    try:
        return os.dup(_given(stdin))
    except OSError as error:
        raise os_error(error, "cannot open") from error


def _given(stdin: int | None) -> int:
    if stdin is None:
        raise UsageError("standard input is not at hand here")
    return stdin


def _open_file(path: bytes) -> int:
    try:
        # A FIFO nobody writes to must not hang; reading from one that is a source after all waits as usual.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(fd, True)
        except BaseException:
            close(fd)
            raise
        return fd
    except OSError as error:
        raise os_error(error, "cannot open", subject=os.fsdecode(path)) from error
