"""The seam of sources: the protocol of everything that can be built, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from cfstools.progress import SILENT, Progress
from cfstools.sources.oci_request import DEFAULT_REQUEST, OciRequest
from cfstools.tree import Directory, RegularFile
from cfstools.tree.xattrs import XattrPolicy
from cfstools.values import Value
from cfstools.verity import Algorithm, Params

if TYPE_CHECKING:
    from cfstools.formats.base import OpenImage
    from cfstools.sources.oci import OciReport
    from cfstools.sources.oci_describe import ImageDescription
    from cfstools.store import Blobs, StoreWriter
    from cfstools.store.cache.recall import Recall


class SourceKind(Enum):
    """What a source is. UNKNOWN until it was read: a pipe, a device, a file of no known kind."""

    DIRECTORY = "directory"
    DUMP = "dump"
    IMAGE = "image"
    CONTAINER = "container image"
    UNKNOWN = "unknown"


class FileReader(Protocol):
    """Takes files that are to be read, one after another; ``cfstools.store.write.ingest.Ingest`` is one.

    ``recall`` are the files that need not be read as long as they are as they were, if any are known.
    """

    recall: Recall | None

    def add(self, files: Sequence[RegularFile]) -> None:
        """Read *files* now or later."""

    def add_recalled(self, prefix: bytes, names: Sequence[bytes], files: Sequence[RegularFile]) -> None:
        """Take *files* that :attr:`recall` gave their contents; their paths are *prefix* and *names*."""

    def close(self) -> None:
        """Stop reading; returns once no file is being read."""


class WalkOptions(Value):
    """What of a directory becomes part of the tree.

    ``exclude`` has the patterns of :mod:`cfstools.tree.globs`; excluded names are not read and do not count as
    links. Without ``hardlinks`` every name becomes an inode of its own, as with the reference tool.
    """

    use_epoch: bool = False
    skip_devices: bool = False
    xattrs: XattrPolicy = XattrPolicy.ALL
    hardlinks: bool = True
    exclude: tuple[bytes, ...] = ()


class Reading(Value):
    """How a source is read, whatever its kind: what does not concern it is not looked at.

    ``walk`` says what of it becomes part of the tree, ``algorithm`` is that of all digests (``None``: the own one of an
    image, else SHA-256). ``strict`` refuses lenient dump texts. ``as_written`` reads an image as its writer had it, and
    keeps it open. Contents of a container image go to ``writer``, which should be deferred; ``reader`` is for the files
    of a directory, as in :func:`~cfstools.sources.directory.open_directory`; a warning names each of ``targets``, the
    paths that are written to, that lies inside it. ``cache`` is the user's cache directory, where layers of images in
    registries are remembered.
    """

    walk: WalkOptions = WalkOptions()
    algorithm: Algorithm | None = Algorithm.SHA256
    strict: bool = False
    as_written: bool = False
    oci: OciRequest = DEFAULT_REQUEST
    writer: StoreWriter | None = None
    reader: Callable[[Blobs], FileReader] | None = None
    stdin: BinaryIO | None = None
    targets: tuple[bytes, ...] = ()
    progress: Progress = SILENT
    cache: bytes | None = None


class SourceTree(NamedTuple):
    """A source opened: its tree, and where contents still unread come from (``None``: there are none).

    ``kind`` is that of the source, ``name`` says it more exactly: what kind of container image it was. ``opened`` is
    the image that was read ``as_written``, and ``data`` its bytes; both are good while the source is open.
    """

    root: Directory
    blobs: Blobs | None
    kind: SourceKind
    name: str
    image: OciReport | None = None
    opened: OpenImage | None = None
    data: memoryview | None = None
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """Something that can be built, looked at once: when it was recognised."""

    @property
    def kind(self) -> SourceKind:
        """What it is."""

    def describe(self, reading: Reading) -> ImageDescription | None:
        """What a container image holds, without building it; ``None`` for other sources. Raises CfsError."""

    def image(self) -> AbstractContextManager[memoryview]:
        """The bytes of a file with an image and what is behind it, good inside the block. Raises InputError."""

    def open(self, reading: Reading) -> AbstractContextManager[SourceTree]:
        """Its tree. Raises CfsError of all kinds, naming the path."""

    def close(self) -> None:
        """Give back what is held."""


def load(source: Source, reading: Reading, *, threads: int) -> SourceTree:
    """The whole tree of *source*; files of a directory are digested. Raises CfsError of all kinds, naming the path."""
    from cfstools.store.write.ingest import ingest

    params = Params(algorithm=reading.algorithm or Algorithm.SHA256)
    with source.open(reading) as tree:
        if tree.blobs is not None:
            ingest(tree.root, tree.blobs, None, params=params, threads=threads, progress=reading.progress)
    return tree
