"""Where images come from: what a user wrote, what a path holds, and the container opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from cfstools.errors import InputError, OciError, UsageError, naming, os_error
from cfstools.linux.contents import is_directory, open_file
from cfstools.linux.files import close, unnamed_file
from cfstools.oci.archive import ArchiveFiles, index_archive
from cfstools.oci.files import BlobFiles, DirectoryFiles
from cfstools.oci.images import DockerImages, ImageContainer, LayerTars, archive_images, layout_images
from cfstools.oci.recognise import Evidence, begins_a_tar
from cfstools.sources.oci_request import Form
from cfstools.streams.buffered import Read
from cfstools.streams.limits import DecompressionLimits
from cfstools.streams.spool import MakeFile, Replayable

_Files = TypeVar("_Files", bound=BlobFiles)
_STDIN = b"-"
_FURTHER = "a further layer goes over a layer tar"
_TEMPORARY_PREFIX = b".mkcfs-tmp-"
_TEMPORARY_DIRECTORIES = (b"/var/tmp", b"/tmp")


def holds_tar(fd: int, limits: DecompressionLimits | None = None) -> bool:
    """Whether the regular file *fd* begins as a tar archive does, compressed or not. It is read from where it stands.

    Raises :class:`InputError` for what cannot be read, :class:`CompressionError`, :class:`LimitExceeded`.
    """
    return begins_a_tar(_reader(fd), limits)


@contextmanager
def open_images(
    form: Form | None,
    paths: Sequence[bytes],
    *,
    first: int = -1,
    stdin: int | None = None,
    limits: DecompressionLimits | None = None,
    scratch: int | bytes | None = None,
) -> Iterator[ImageContainer]:
    """Open what *paths* hold (several only for layers); errors inside the block name the path.

    The first may be open as *first*, which is closed. ``b"-"`` is the descriptor *stdin*, which may be a pipe. Without
    a *form* the path holds a tar archive, and all of its members tell whether that is an image archive or a layer. What
    is compressed or comes from a pipe is kept, if it is large, in a temporary file of the directory *scratch*, a path
    or a descriptor.
    Raises :class:`InputError`, :class:`OciError`, :class:`TarError`, …
    """
    place = _Opening(stdin, limits, temporaries(scratch), first)
    try:
        with naming("standard input" if paths[0] == _STDIN else paths[0]):
            container = place.open(form, paths)
            try:
                yield container
            finally:
                container.close()
    finally:
        place.close()


def temporaries(scratch: int | bytes | None) -> MakeFile:
    """What makes files without names in *scratch*, a path or a descriptor; else where there is room for large ones."""

    def make() -> int:
        if isinstance(scratch, int):
            return unnamed_file(scratch, _TEMPORARY_PREFIX)
        directories = (scratch,) if scratch is not None else _TEMPORARY_DIRECTORIES
        for last, directory in enumerate(directories, 1 - len(directories)):
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return unnamed_file(fd, _TEMPORARY_PREFIX)
                finally:
                    close(fd)
            except OSError:
                if not last:
                    raise
        raise AssertionError("there are directories")  # pragma: no cover

    return make


class _Opening:
    """What the opening of one source needs."""

    def __init__(
        self, stdin: int | None, limits: DecompressionLimits | None, make_file: MakeFile, first: int = -1
    ) -> None:
        self._stdin = stdin
        self._limits = limits
        self._make_file = make_file
        self._first = first  # the first path opened, until it is read

    def close(self) -> None:
        """Close the first path if it was not read."""
        if self._first >= 0:
            close(self._first)
            self._first = -1

    def open(self, form: Form | None, paths: Sequence[bytes]) -> ImageContainer:
        """The container that *paths* hold."""
        if len(paths) > 1:
            self._check_layers(form, paths)
        if form is Form.LAYERS:
            return self._layers(paths)
        if form is Form.OCI:
            return _closing(DirectoryFiles(paths[0]), layout_images)
        if self._first < 0 and _is_directory(paths[0]):
            raise InputError(f"is a directory, not an image archive: use {Form.OCI.value}: for an OCI layout")
        return self._recognised(paths) if form is None else self._ordered(form, paths[0])

    def _check_layers(self, form: Form | None, paths: Sequence[bytes]) -> None:
        directory = self._first < 0 and _is_directory(paths[0])
        if form not in {Form.LAYERS, None} or directory:
            kind = "a directory" if directory else "an image"
            raise UsageError(f"{_FURTHER}, and the source is {kind}")
        if list(paths).count(_STDIN) > 1:
            raise UsageError("standard input can be one layer only")

    def _recognised(self, paths: Sequence[bytes]) -> ImageContainer:
        source = self._source(paths[0])
        try:
            files = index_archive(source, self._make_file, limits=self._limits, watch=Evidence())
        except BaseException:
            source.close()
            raise
        if files is None:
            return self._layers(paths, source)
        if len(paths) > 1:
            files.close()
            raise UsageError(f"{_FURTHER}, and the source is an image")
        return _closing(files, archive_images)

    def _layers(self, paths: Sequence[bytes], first: Replayable | None = None) -> ImageContainer:
        """Layer tars, of which the *first* may be open."""
        layers = [
            (os.fsdecode(path), self._layer_opener(path, ordered=not number)) for number, path in enumerate(paths)
        ]
        if first is None:
            return LayerTars(layers)

        def again() -> AbstractContextManager[Read]:
            first.rewind()
            first.forget()
            return nullcontext(first.read)

        return LayerTars([(layers[0][0], again), *layers[1:]], close=first.close)

    def _layer_opener(self, path: bytes, *, ordered: bool) -> Callable[[], AbstractContextManager[Read]]:
        """What opens a layer tar. One that is not *ordered* to be one must not be an image archive."""
        order = Form.LAYERS.value.encode() + b":"
        if path.startswith(order) and not ordered:
            path, ordered = path.removeprefix(order), True

        @contextmanager
        def opener() -> Iterator[Read]:
            with naming("standard input" if path == _STDIN else path):
                source = self._source(path)
                try:
                    if not ordered:
                        self._check_layer(source)
                    source.forget()
                    yield source.read
                finally:
                    source.close()

        return opener

    def _check_layer(self, source: Replayable) -> None:
        files = index_archive(source, self._make_file, limits=self._limits, watch=Evidence())
        if files is not None:
            files.close()
            raise UsageError(f"{_FURTHER}, and this is an image", hint="layers:FILE takes it as a layer")
        source.rewind()

    def _ordered(self, form: Form, path: bytes) -> ImageContainer:
        source = self._source(path)
        try:
            files = index_archive(source, self._make_file, limits=self._limits)
        except BaseException:
            source.close()
            raise
        assert files is not None  # nobody watches who could end the pass
        return _closing(files, _by_manifest if form is Form.DOCKER_ARCHIVE else _by_index)

    def _source(self, path: bytes) -> Replayable:
        fd, self._first = self._first, -1
        return Replayable(fd if fd >= 0 else _descriptor(path, self._stdin), self._make_file)


def _by_manifest(files: ArchiveFiles) -> ImageContainer:
    if "manifest.json" not in files and "index.json" in files:
        raise OciError("has an index.json and no manifest.json: use oci-archive:")
    return DockerImages(files)


def _by_index(files: ArchiveFiles) -> ImageContainer:
    if "index.json" not in files and "manifest.json" in files:
        raise OciError("has a manifest.json and no index.json: use docker-archive:")
    return layout_images(files, "oci-archive")


def _is_directory(path: bytes) -> bool:
    return path != _STDIN and is_directory(path)


def _closing(files: _Files, make: Callable[[_Files], ImageContainer]) -> ImageContainer:
    try:
        return make(files)
    except BaseException:
        files.close()
        raise


def _reader(fd: int) -> Read:
    def read(count: int) -> bytes:
        try:
            return os.read(fd, count)
        except OSError as error:
            raise os_error(error, "cannot read") from error

    return read


def _descriptor(path: bytes, stdin: int | None) -> int:
    if path != _STDIN:
        return open_file(path)
    try:
        return os.dup(_given(stdin))
    except OSError as error:
        raise os_error(error, "cannot open") from error


def _given(stdin: int | None) -> int:
    if stdin is None:
        raise UsageError("standard input cannot be used here")
    return stdin
