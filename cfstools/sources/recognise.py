"""One door to everything that can be built: by option, by prefix, else by what the path holds.

A path is looked at once. A regular file is opened for that, and it is this open file that is read afterwards, whatever
its name leads to by then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from cfstools.errors import FormatError, Phrase, Remedy, UsageError, naming, os_error
from cfstools.formats.base import HEAD, Format
from cfstools.formats.registry import recognise as recognise_format
from cfstools.linux.contents import file_type, open_file, read_regular, read_stream, whole_file
from cfstools.linux.files import close
from cfstools.sources.oci_request import REGISTRY, Form, Reference, is_layout, parse_reference
from cfstools.sources.source import Reading, Source, SourceKind, SourceTree, WalkOptions
from cfstools.tree import Directory
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm, Params

if TYPE_CHECKING:
    from cfstools.oci.images import ImageContainer
    from cfstools.oci.select import Selector
    from cfstools.sources.oci_describe import ImageDescription
    from cfstools.sources.oci_memory import LayerMemory
    from cfstools.store import StoreWriter
    from cfstools.streams.limits import DecompressionLimits

_DUMP_START = b"/ "
_STDIN = b"-"


@contextmanager
def recognise(
    path: bytes,
    *,
    from_file: bool = False,
    layered: bool = False,
    limits: DecompressionLimits | None = None,
    accept: Callable[[SourceKind], object] | None = None,
) -> Iterator[Source]:
    """What *path* is: with *from_file* a dump text, with *layered* layer tars if it is no directory or image archive.

    ``-`` is standard input. *accept* is told the kind, and may raise; the error gets *path* as its subject. Raises
    UsageError for a malformed reference, InputError for what cannot be read, LimitExceeded for what unpacks beyond the
    *limits*.
    """
    source = _recognise(path, from_file=from_file, layered=layered, limits=limits)
    try:
        if accept is not None:
            with naming(path):
                accept(source.kind)
        yield source
    finally:
        source.close()


def _recognise(path: bytes, *, from_file: bool, layered: bool, limits: DecompressionLimits | None) -> Source:
    if from_file:
        return _DumpStdin() if path == _STDIN else _File(path, SourceKind.DUMP)
    named = _recognise_name(path)
    if named is not None:
        return named
    kind = file_type(path)
    if kind == stat.S_IFDIR:
        return _ContainerImage(Reference(Form.OCI, path)) if is_layout(path) else _DirectoryTree(path)
    if kind in (0, stat.S_IFREG):
        return _recognise_file(path, layered=layered, limits=limits)
    # Whoever writes to a pipe would lose its only reader, if it were looked into here.
    return _ContainerImage(Reference(Form.LAYERS, path)) if layered else _File(path, SourceKind.UNKNOWN)


def _recognise_name(path: bytes) -> Source | None:
    """What is written so that no file needs to be looked at: by a prefix, or as standard input."""
    if path.startswith(REGISTRY):
        return _RegistryImage(path)
    reference = parse_reference(path)
    if reference is not None:
        return _ContainerImage(reference)
    return _ContainerImage(Reference(None, path)) if path == _STDIN else None


def _recognise_file(path: bytes, *, layered: bool, limits: DecompressionLimits | None) -> Source:
    fd = open_file(path)
    try:
        with naming(path):
            head = _pread(fd)
            format = recognise_format(head)
            if format is None and _begins_a_tar(fd, limits):
                return _ContainerImage(Reference(None, path), fd)
        if layered:
            return _ContainerImage(Reference(Form.LAYERS, path), fd)
        return _File(path, _kind_of(head, format), fd=fd)
    except BaseException:
        close(fd)
        raise


def _kind_of(head: bytes, format: Format | None) -> SourceKind:
    if head.startswith(_DUMP_START):
        return SourceKind.DUMP
    return SourceKind.UNKNOWN if format is None else SourceKind.IMAGE


class _DirectoryTree:
    """A directory, which is walked."""

    kind = SourceKind.DIRECTORY

    def __init__(self, path: bytes) -> None:
        self._path = path

    def describe(self, reading: Reading) -> None:
        """Nothing."""

    def image(self) -> AbstractContextManager[memoryview]:
        """Fail: a directory is no file."""
        from cfstools.sources.image_file import image_view

        return image_view(self._path)

    @contextmanager
    def open(self, reading: Reading) -> Iterator[SourceTree]:
        """Its tree, whose contents come from the directory as long as it is open."""
        from cfstools.sources.directory import open_directory
        from cfstools.sources.lookalikes import image_like, targets_inside

        walk, progress = reading.walk, reading.progress
        with open_directory(self._path, options=walk, reader=reading.reader, progress=progress) as source:
            name = self.kind.value
            inside = targets_inside(self._path, reading.targets, walk.exclude)
            warnings = (*inside, *image_like(self._path))
            yield SourceTree(source.root, source, self.kind, name, warnings=warnings)

    def close(self) -> None:
        """Hold nothing."""


class _DumpStdin:
    """A dump text on standard input."""

    kind = SourceKind.DUMP

    def describe(self, reading: Reading) -> None:
        """Nothing."""

    def image(self) -> NoReturn:
        """Fail: the text is no image."""
        raise UsageError("standard input cannot be used here")

    @contextmanager
    def open(self, reading: Reading) -> Iterator[SourceTree]:
        """The tree that the text says."""
        if reading.stdin is None:
            raise UsageError("standard input cannot be used here")
        with naming("standard input"):
            tree = _from_bytes(memoryview(read_stream(reading.stdin.read)), reading, from_file=True)
        yield tree

    def close(self) -> None:
        """Hold nothing."""


class _File:
    """A dump text or an image in the file that is open as *fd*, or else at *path*, where a pipe is read to its end."""

    def __init__(self, path: bytes, kind: SourceKind, *, fd: int = -1) -> None:
        self.kind = kind
        self._path = path
        self._fd = fd

    def describe(self, reading: Reading) -> None:
        """Nothing."""

    @contextmanager
    def image(self) -> Iterator[memoryview]:
        """The bytes of the image, with a signature behind it."""
        from cfstools.sources.image_file import image_view, read_image

        if self._fd < 0:
            with image_view(self._path) as data:
                yield data
            return
        with naming(self._path):
            yield read_image(self._fd).data

    @contextmanager
    def open(self, reading: Reading) -> Iterator[SourceTree]:
        """The tree in it, which what the file is decides, except where it was to be a dump text."""
        with naming(self._path):
            if self._fd < 0:
                with whole_file(self._path) as data:
                    tree = _from_bytes(data, reading, from_file=self.kind is SourceKind.DUMP)
                    if reading.as_written:
                        yield tree
                        return
            else:
                tree = _from_bytes(read_regular(self._fd), reading)
        yield tree

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class _ContainerImage:
    """A container image, or layer tars; the archive at ``image.path`` may be open as *fd*."""

    kind = SourceKind.CONTAINER

    def __init__(self, image: Reference, fd: int = -1) -> None:
        self._image = image
        self._fd = fd

    def describe(self, reading: Reading) -> ImageDescription:
        """Its manifest, config and layers."""
        from cfstools.sources.oci_describe import describe

        told: list[str] = []
        with self._images(reading, told.append) as container:
            found = describe(container, selector=self._selector(reading), progress=reading.progress)
        return found._replace(warnings=(*found.warnings, *told)) if told else found

    def image(self) -> NoReturn:
        """Fail: there is a container image instead."""
        raise UsageError(
            "is a container image, and this needs a composefs image",
            hint=Phrase("{} makes one of a container image", Remedy.BUILD),
        )

    @contextmanager
    def open(self, reading: Reading) -> Iterator[SourceTree]:
        """The tree that its layers make. Their contents go to the writer, or are only digested."""
        from cfstools.sources.oci import read_oci

        told: list[str] = []
        with self._images(reading, told.append) as container, self._memory(reading) as memory:
            tree = read_oci(
                container,
                selector=self._selector(reading),
                options=reading.oci.options,
                writer=reading.writer,
                memory=memory,
                params=Params(algorithm=reading.algorithm or Algorithm.SHA256),
                progress=reading.progress,
            )
        apply_options(tree.root, reading.walk)
        yield SourceTree(tree.root, None, self.kind, tree.report.kind, image=tree.report, warnings=tuple(told))

    @contextmanager
    def _images(self, reading: Reading, warn: Callable[[str], None]) -> Iterator[ImageContainer]:
        """The images; *warn* receives warnings about the place itself."""
        del warn  # there are none about files
        from cfstools.sources.oci_containers import open_images

        fd, self._fd = self._fd, -1
        writer, request = reading.writer, reading.oci
        with open_images(
            self._image.form,
            [self._image.path, *request.layers],
            first=fd,
            stdin=None if reading.stdin is None else reading.stdin.fileno(),
            limits=request.options.decompression_limits,
            scratch=request.scratch if writer is None else _scratch_of(writer),
        ) as container:
            yield container

    def _memory(self, reading: Reading) -> AbstractContextManager[LayerMemory | None]:
        """Where layers are remembered. Those in files are read again, which costs no more than their digests."""
        del reading
        return nullcontext()

    def _selector(self, reading: Reading) -> Selector:
        from cfstools.oci.select import Selector

        return Selector(name=self._image.name, digest=self._image.digest, platform=reading.oci.platform)

    def close(self) -> None:
        """Close the archive if it was not read."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class _RegistryImage(_ContainerImage):
    """A container image in a registry."""

    def __init__(self, path: bytes) -> None:
        from cfstools.oci.registry.reference import parse_image_reference

        super().__init__(Reference(None, path))
        self._reference = parse_image_reference(os.fsdecode(path))

    @contextmanager
    def _images(self, reading: Reading, warn: Callable[[str], None]) -> Iterator[ImageContainer]:
        from cfstools.oci.images import OciImages
        from cfstools.oci.registry.reference import RegistryOptions
        from cfstools.oci.registry.remote import Registries

        if reading.oci.layers:
            raise UsageError("further layers go over layer tars, not over an image in a registry")
        with Registries(reading.oci.registries or RegistryOptions(), warn=warn) as registries:
            yield OciImages(registries.content(self._reference), "docker")

    def _memory(self, reading: Reading) -> AbstractContextManager[LayerMemory | None]:
        from cfstools.sources.oci_memory import LayerMemory

        if reading.writer is None or reading.cache is None:
            return nullcontext()
        return LayerMemory(reading.cache, reading.writer)

    def _selector(self, reading: Reading) -> Selector:
        from cfstools.oci.select import Selector

        return Selector(platform=reading.oci.platform)


def _scratch_of(writer: StoreWriter) -> int:
    return writer.store.fd


def _from_bytes(data: memoryview, reading: Reading, *, from_file: bool = False) -> SourceTree:
    """The tree in *data*, with the options applied."""
    if from_file or data[: len(_DUMP_START)] == _DUMP_START:
        from cfstools.formats.dump.parse import parse_dump

        root = parse_dump(data, algorithm=reading.algorithm or Algorithm.SHA256, strict=reading.strict)
        tree = SourceTree(root, None, SourceKind.DUMP, SourceKind.DUMP.value)
    else:
        format = recognise_format(data)
        if format is None:
            from cfstools.sources.lookalikes import advice

            raise FormatError("unknown input: expected a directory, an image or a dump", hint=advice(data))
        tree = _from_image(format, data, reading)
    apply_options(tree.root, reading.walk)
    return tree


def _from_image(format: Format, data: memoryview, reading: Reading) -> SourceTree:
    image = format.open(data, allow_tail=True)
    root = image.tree(as_written=reading.as_written)
    if reading.algorithm is not None and image.algorithm not in {None, reading.algorithm}:
        raise UsageError(
            f"the objects of the image are not named by {reading.algorithm.value}",
            hint="the names of objects come from their contents: extract the image and build the directory",
        )
    tree = SourceTree(root, None, SourceKind.IMAGE, SourceKind.IMAGE.value)
    return tree._replace(opened=image, data=data[: image.length]) if reading.as_written else tree


def apply_options(root: Directory, options: WalkOptions) -> None:
    """What a walk leaves out or sets by itself, for sources that come as whole trees."""
    if options == WalkOptions():
        return
    from cfstools.tree.filters import drop_devices, exclude, keep_xattrs, split_hardlinks, use_epoch
    from cfstools.tree.globs import GlobSet

    if options.exclude:
        exclude(root, GlobSet(options.exclude))
    if options.skip_devices:
        drop_devices(root)
    if options.xattrs is not XattrPolicy.ALL:
        keep_xattrs(root, options.xattrs)
    if not options.hardlinks:
        split_hardlinks(root)
    if options.use_epoch:
        use_epoch(root)


def _begins_a_tar(fd: int, limits: DecompressionLimits | None) -> bool:
    from cfstools.sources.oci_containers import holds_tar

    found = holds_tar(fd, limits)
    os.lseek(fd, 0, os.SEEK_SET)  # for whoever reads it as a stream
    return found


def _pread(fd: int) -> bytes:
    try:
        return os.pread(fd, HEAD, 0)
    except OSError as error:
        raise os_error(error, "cannot read") from error
