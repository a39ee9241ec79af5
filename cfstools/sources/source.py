"""The seam of sources: what everything that can be built has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from cfstools.progress import SILENT, Progress
from cfstools.sources.oci_request import DEFAULT_REQUEST, OciRequest
from cfstools.tree import Directory, RegularFile
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from cfstools.formats.base import OpenImage
    from cfstools.sources.oci import OciReport
    from cfstools.sources.oci_describe import ImageDescription
    from cfstools.store import Blobs, StoreWriter


class SourceKind(Enum):
    """What a source is. What only reading tells is UNKNOWN before: a pipe, a device, a file like no other."""

    DIRECTORY = "directory"
    DUMP = "dump"
    IMAGE = "image"
    CONTAINER = "container image"
    UNKNOWN = "unknown"


class FileReader(Protocol):
    """Takes files that are to be read, one after another; ``cfstools.store.ingest.Ingest`` is one."""

    def add(self, files: Sequence[RegularFile]) -> None:
        """Read *files* now or later."""

    def stop(self) -> None:
        """Read nothing more, and do not come back before nothing is being read."""


class WalkOptions(NamedTuple):
    """What of a directory becomes part of the tree.

    ``exclude`` has the patterns of :mod:`cfstools.tree.globs`; excluded names are not read and do not count as
    links. Without ``hardlinks`` every name becomes an inode of its own, as with the reference tool.
    """

    use_epoch: bool = False
    skip_devices: bool = False
    xattrs: XattrPolicy = XattrPolicy.ALL
    hardlinks: bool = True
    exclude: tuple[bytes, ...] = ()


class Reading(NamedTuple):
    """How a source is read, whatever its kind: what does not concern it is not looked at.

    ``walk`` says what of it becomes part of the tree, ``algorithm`` is that of all digests (``None``: the own one of an
    image, else SHA-256). ``strict`` refuses lenient dump texts. ``as_written`` reads an image as its writer had it, and
    keeps it open. Contents of a container image go to ``writer``, which should be deferred; ``reader`` is for the files
    of a directory, as in :func:`~cfstools.sources.directory.open_directory`.
    """

    walk: WalkOptions = WalkOptions()
    algorithm: Algorithm | None = Algorithm.SHA256
    strict: bool = False
    as_written: bool = False
    oci: OciRequest = DEFAULT_REQUEST
    writer: StoreWriter | None = None
    reader: Callable[[Blobs], FileReader] | None = None
    stdin: BinaryIO | None = None
    progress: Progress = SILENT


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

    def open(self, reading: Reading) -> AbstractContextManager[SourceTree]:
        """Its tree. Raises CfsError of all kinds, naming the path."""

    def close(self) -> None:
        """Give back what is held."""
