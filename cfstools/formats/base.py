"""The seam of image formats: what the rooms above ask of one, and the values they get.

A format is an object of a subclass of :class:`Format`. It says which files are its images, opens one, and plans the
image of a tree. :class:`OpenImage` is one image that was opened. Formats are listed in
:mod:`cfstools.formats.registry`; a simple one opens its images as :class:`cfstools.formats.tree_image.TreeImage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from cfstools.errors import ImageError, InputError
from cfstools.report import Report
from cfstools.verity import Algorithm, MerkleHasher, Params

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.formats.facts import ImageInfo
    from cfstools.tree import Directory

HEAD = 4096
"""How many bytes of a file's start are enough to recognise an image."""


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"  # the image breaks a rule of the format
    WARNING = "warning"  # allowed by the format, but not what a careful writer makes


class Finding(Report):
    """One thing that is wrong: ``where`` names the inode, its offset and path, ``what`` says what is wrong."""

    severity: Severity
    what: str
    where: str | None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    @property
    def error(self) -> ImageError:
        """The finding as an exception."""
        return ImageError(self.what, where=self.where)


class Region(NamedTuple):
    """Bytes ``start`` to ``end`` of an image; ``kind.value`` is what they are in reports.

    ``label`` says more in words, ``nid`` is the number of the inode they belong to.
    """

    start: int
    end: int
    kind: Enum
    label: str
    nid: int | None


class ObjectUse(NamedTuple):
    """One inode's contents outside of the image: where they are below a store, their digest, their size in bytes."""

    payload: bytes | None
    digest: bytes | None
    size: int


class PlanOptions(NamedTuple):
    """What decides the bytes of an image besides its tree: the algorithm of all digests, and the versions allowed."""

    algorithm: Algorithm = Algorithm.SHA256
    min_version: int = 0
    max_version: int = 1


class ImagePlan(NamedTuple):
    """An image whose every byte is decided.

    ``word`` is its format in one word (``v1-sha256-12``), ``inode_count`` leaves out what the format itself adds.
    ``chunks`` gives the bytes from front to back, in pieces of about 1 MiB.
    """

    word: str
    version: int
    size: int
    inode_count: int
    chunks: Callable[[], Iterator[bytes | memoryview]]

    def digest(self, params: Params) -> bytes:
        """The fs-verity digest of the image."""
        hasher = MerkleHasher(params)
        for chunk in self.chunks():
            hasher.update(chunk)
        return hasher.digest()


class KernelMount(NamedTuple):
    """How the kernel mounts an image: as which file system, with which flags among its options."""

    file_system: bytes
    flags: tuple[bytes, ...] = ()


class OpenImage(Protocol):
    """An image that was opened; ``length`` is its own, without what follows it.

    ``algorithm`` is that of the digests of its objects, ``None`` where it has none; it is known once the tree was read.
    ``canonical`` is true once :meth:`findings` has seen that the bytes are exactly what our writer makes of the tree.
    """

    @property
    def format(self) -> Format:
        """The format it is of."""

    @property
    def version(self) -> int:
        """Which version of the format."""

    @property
    def length(self) -> int:
        """Its size in bytes."""

    @property
    def algorithm(self) -> Algorithm | None:
        """The algorithm of its objects."""

    @property
    def canonical(self) -> bool:
        """Whether it is known to be what our writer makes."""

    def word(self, algorithm: Algorithm) -> str:
        """Its format in one word, where its digests are of *algorithm*."""

    def tree(self, filters: Collection[bytes] | None = None, *, as_written: bool = False) -> Directory:
        """Its tree; with *filters* only these children of the root, each with all below it.

        The first name of an inode, depth-first in byte order, is its primary one. *as_written* gives the tree that the
        writer had, as far as the image tells: other primary names, without what the writer added. Raises ImageError.
        """

    def facts(self) -> ImageInfo:
        """What is in it, in numbers. Raises ImageError."""

    def objects(self) -> Iterator[ObjectUse]:
        """The contents its inodes have outside of it; the same may come several times. Raises ImageError."""

    def findings(self, *, strict: bool = False) -> list[Finding]:
        """Everything that is wrong with it. The tree it gave must not have been changed."""

    def regions(self) -> Iterator[Region]:
        """Every byte range of the file, named, from front to back. Raises ImageError."""


class Format(ABC):
    """One image format: its ``name``, how to recognise, open and write its images.

    What is asked about a *head*, the first :data:`HEAD` bytes of a file or all of a shorter one, is answered at once
    and loads nothing.
    """

    name: ClassVar[str]
    unit: ClassVar[int] = 1
    """Its images are multiples of so many bytes."""

    @abstractmethod
    def recognises(self, head: bytes) -> bool:
        """Whether a file that starts with *head* is of this format, in whatever version."""

    @abstractmethod
    def open(self, data: Buffer, *, allow_tail: bool = False) -> OpenImage:
        """The image in *data*, which with *allow_tail* may be followed by other bytes. Raises ImageError."""

    @abstractmethod
    def plan(self, root: Directory, options: PlanOptions) -> ImagePlan:
        """Decide every byte of the image of *root*, which is not changed.

        Raises UsageError for *options* that the format does not have, TreeError for what it cannot hold.
        """

    def doubt(self, head: bytes) -> str:
        """Why a file that is not recognised may still have been an image of this format; empty if it cannot."""
        del head
        return ""

    def length(self, head: bytes, size: int | None = None) -> int | None:
        """How many bytes the image has whose file starts with *head*; ``None`` if that does not say.

        With the *size* of the file, raises ImageError where *head* shows that it is no whole image.
        """
        del head, size
        return None

    def kernel_mount(self, head: bytes) -> KernelMount:
        """How the kernel mounts the image whose file starts with *head*. Raises InputError where it cannot."""
        del head
        raise InputError(f"is an image of the format {self.name}, which the kernel cannot mount")
