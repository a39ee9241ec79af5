"""One door to everything that can be built: by option, by prefix, else by what the path holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from cfstools.errors import FormatError, UsageError, naming
from cfstools.formats.registry import recognise
from cfstools.linux.contents import read_stream, whole_file
from cfstools.linux.lookup import is_directory
from cfstools.progress import SILENT, Progress
from cfstools.sources.directory import FileReader, WalkOptions, open_directory
from cfstools.sources.lookalikes import advice, image_like
from cfstools.sources.oci_request import ImagePlace, OciRequest
from cfstools.tree import Directory
from cfstools.tree.filters import drop_devices, exclude, keep_xattrs, split_hardlinks, use_epoch
from cfstools.tree.globs import GlobSet
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm, Params

if TYPE_CHECKING:
    from cfstools.oci.descriptor import Platform
    from cfstools.sources.oci import OciReport
    from cfstools.sources.oci_describe import ImageDescription
    from cfstools.store import Blobs, StoreWriter

_DUMP_START = b"/ "
_STDIN = b"-"


class SourceTree(NamedTuple):
    """A source opened: its tree, and where contents still unread come from (``None``: there are none)."""

    root: Directory
    blobs: Blobs | None
    kind: str  # "directory", "dump", "image", or what kind of container image it was
    image: OciReport | None = None
    warnings: tuple[str, ...] = ()


@contextmanager
def open_source(
    path: bytes,
    *,
    place: ImagePlace | None,
    options: WalkOptions,
    algorithm: Algorithm = Algorithm.SHA256,
    from_file: bool = False,
    strict: bool = False,
    oci: OciRequest | None = None,
    writer: StoreWriter | None = None,
    reader: Callable[[Blobs], FileReader] | None = None,
    stdin: BinaryIO | None = None,
    progress: Progress = SILENT,
) -> Iterator[SourceTree]:
    """Open *path* as a tree, with the *options* applied whatever kind of source it is.

    *place* is what :func:`find_image` says of it. *from_file* says that it is a dump text, which may be ``b"-"`` for
    *stdin*; else a directory is walked, and a container image (``b"-"``: a layer tar from *stdin*), a composefs image
    or a dump text is recognised. *strict* refuses lenient dump texts. *algorithm* is that of all digests.

    A container image is read while it is opened: contents go to *writer*, which should be deferred, as *oci*
    asks. *reader* is for the files of a directory, as in :func:`open_directory`.
    Raises CfsError of all kinds, naming the path.
    """
    oci = oci or OciRequest()
    if place is not None:
        tree = _read_image(place, oci, algorithm, writer=writer, stdin=stdin, progress=progress)
    elif not from_file and is_directory(path):
        with open_directory(path, options=options, reader=reader, progress=progress) as source:
            yield SourceTree(root=source.root, blobs=source, kind="directory", warnings=image_like(path))
        return
    elif path == _STDIN and stdin is not None:
        from cfstools.formats.dump import parse_dump

        with naming("standard input"):
            root = parse_dump(read_stream(stdin.read), algorithm=algorithm, strict=strict)
            tree = SourceTree(root=root, blobs=None, kind="dump")
    else:
        with whole_file(path) as data:
            tree = _from_bytes(data, algorithm=algorithm, from_file=from_file, strict=strict)
    _apply(tree.root, options)
    yield tree


def _read_image(
    place: ImagePlace,
    oci: OciRequest,
    algorithm: Algorithm,
    *,
    writer: StoreWriter | None,
    stdin: BinaryIO | None,
    progress: Progress,
) -> SourceTree:
    from cfstools.oci.select import Choice
    from cfstools.sources.oci import read_oci
    from cfstools.sources.oci_containers import open_images

    choice = Choice(name=place.name, digest=place.digest, platform=oci.platform)
    with open_images(
        place.form,
        [place.path, *oci.layers],
        stdin=None if stdin is None else stdin.fileno(),
        limits=oci.options.decompression_limits,
        scratch=oci.scratch if writer is None else writer.store.fd,
    ) as container:
        tree = read_oci(
            container,
            choice=choice,
            options=oci.options,
            writer=writer,
            params=Params(algorithm=algorithm),
            progress=progress,
        )
    return SourceTree(root=tree.root, blobs=None, kind=tree.report.kind, image=tree.report)


def describe_image(
    place: ImagePlace,
    *,
    platform: Platform | None = None,
    stdin: BinaryIO | None = None,
    scratch: bytes | None = None,
    progress: Progress = SILENT,
) -> ImageDescription:
    """What the container image at *place* is, without building it. Raises CfsError of all kinds, naming the path."""
    from cfstools.oci.select import Choice
    from cfstools.sources.oci_containers import open_images
    from cfstools.sources.oci_describe import describe

    choice = Choice(name=place.name, digest=place.digest, platform=platform)
    fd = None if stdin is None else stdin.fileno()
    with open_images(place.form, [place.path], stdin=fd, scratch=scratch) as container:
        return describe(container, choice=choice, progress=progress)


def _from_bytes(data: memoryview, *, algorithm: Algorithm, from_file: bool, strict: bool) -> SourceTree:
    from cfstools.formats.dump import parse_dump

    if from_file or data[: len(_DUMP_START)] == _DUMP_START:
        return SourceTree(root=parse_dump(data, algorithm=algorithm, strict=strict), blobs=None, kind="dump")
    format = recognise(data)
    if format is None:
        raise FormatError("unknown input: expected a directory, an image or a dump", hint=advice(data))
    image = format.open(data, allow_tail=True)
    root = image.tree()
    if image.algorithm not in {None, algorithm}:
        raise UsageError(
            f"the objects of the image are not named by {algorithm.value}",
            hint="the names of objects come from their contents: extract the image and build the directory",
        )
    return SourceTree(root=root, blobs=None, kind="image")


def _apply(root: Directory, options: WalkOptions) -> None:
    """What a walk leaves out or sets by itself, for sources that come as whole trees."""
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
