"""The seam of image formats: what the rooms above call, and the values they get.

A format is an object of a subclass of :class:`Format`. It says which files are its images, opens one, and plans the
image of a tree. :class:`OpenImage` is one image that was opened. Formats are listed in
:mod:`cfstools.formats.registry`; a simple one opens its images as :class:`cfstools.formats.tree_image.TreeImage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from cfstools.errors import FormatError, ImageError, InputError
from cfstools.report import Report
from cfstools.values import Value
from cfstools.verity import Algorithm, MerkleHasher, Params

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.formats.explain import Reason
    from cfstools.formats.facts import ImageInfo
    from cfstools.tree import Directory
    from cfstools.tree.objects import PackedObjects

HEAD = 4096
"""How many bytes of a file's start are enough to recognise an image."""


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"  # the image breaks a rule of the format
    WARNING = "warning"  # allowed by the format, but not what a careful writer makes


class Finding(Report):
    """One problem of an image: ``what`` is wrong, and ``where`` (inode, offset and path)."""

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


class PlanOptions(Value):
    """What decides the bytes of an image besides its tree: the digest algorithm and the range of versions."""

    algorithm: Algorithm = Algorithm.SHA256
    min_version: int = 0
    max_version: int = 1


class ImagePlan(Value):
    """An image that is planned: every byte is decided, none is written.

    ``word`` is its format in one word (``v1-sha256-12``), ``inode_count`` excludes inodes that the format itself adds.
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


class KernelMount(Value):
    """How the kernel mounts an image: the file system type, and flags for the mount options."""

    file_system: bytes
    flags: tuple[bytes, ...] = ()


class OpenImage(Protocol):
    """An open image; ``length`` excludes bytes appended to it.

    ``algorithm`` is that of its objects' digests, known once the tree was read; ``None`` if it has no objects.
    ``canonical`` becomes true when :meth:`findings` finds exactly the bytes that our writer makes of the tree.
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
        """Whether its bytes are known to be those that our writer makes."""

    def word(self, algorithm: Algorithm) -> str:
        """Its format in one word, where its digests are of *algorithm*."""

    def tree(self, filters: Collection[bytes] | None = None, *, as_written: bool = False) -> Directory:
        """Its tree; with *filters* only these children of the root, each with all below it.

        The first name of an inode, depth-first in byte order, is its primary one. *as_written* gives the tree as the
        writer had it, as far as the image shows: its primary names, without what the writer added. Raises ImageError.
        """

    def mounted_tree(self) -> Directory:
        """Its tree as a mount by the kernel shows it, where that is another: whiteouts may be files with attributes.

        Raises ImageError.
        """

    def facts(self) -> ImageInfo:
        """Counts and sizes of what it holds. Raises ImageError."""

    def objects(self) -> dict[bytes, int]:
        """The digests of the objects it needs, with their sizes in bytes. Raises ImageError.

        Both the digest of contents and the place that the image names for them count.
        """

    def packed_objects(self) -> PackedObjects | None:
        """The same as native functions take them; ``None`` in doubt, and if not all are where their digests say."""

    def findings(self) -> list[Finding]:
        """Everything wrong with it. Do not change the tree it returned before this is called."""

    def regions(self) -> Iterator[Region]:
        """Every byte range of the file, named, from front to back. Raises ImageError."""


def errors_of(image: OpenImage) -> list[Finding]:
    """What makes it no valid image: its findings but the warnings."""
    return [finding for finding in image.findings() if finding.severity is Severity.ERROR]


class Format(ABC):
    """One image format: its ``name``, how to recognise, open and write its images.

    Methods that take a *head*, the first :data:`HEAD` bytes of a file or all of a shorter one, import nothing: every
    command calls them.
    """

    name: ClassVar[str]
    unit: ClassVar[int] = 1
    """Sizes of its images are multiples of this, in bytes."""

    @abstractmethod
    def recognises(self, head: bytes) -> bool:
        """Whether a file that starts with *head* is of this format, in any version."""

    @abstractmethod
    def open(self, data: Buffer, *, allow_tail: bool = False) -> OpenImage:
        """Open the image in *data*; with *allow_tail* other bytes may follow it. Raises ImageError."""

    @abstractmethod
    def plan(self, root: Directory, options: PlanOptions) -> ImagePlan:
        """Plan the image of *root*, which is not changed.

        Raises UsageError for *options* that the format does not support, TreeError for a tree that it cannot hold.
        """

    def explain(self, name: str, image: memoryview, canonical: memoryview) -> Iterable[Reason]:
        """Reasons why *image*, called *name*, differs from *canonical*, the bytes a writer makes of the same tree.

        The caller adds the :meth:`role_at` of the first difference, unless a reason is about padding and so names it.
        """
        del name, image, canonical
        return ()

    def role_at(self, image: Buffer, offset: int) -> str:
        """The *offset* as text for people, with the region of *image* that it is in, if the image can be read."""
        try:
            regions = self.open(image).regions()
            region = next((one for one in regions if one.start <= offset < one.end), None)
        except FormatError:
            region = None
        if region is None:
            return f"{offset:#x}"
        return f"{offset:#x} in the {region.kind.value}" + (f" ({region.label})" if region.label else "")

    def doubt(self, head: bytes) -> str:
        """Why a file that is not recognised may be a damaged image of this format; empty if it cannot be one."""
        del head
        return ""

    def length(self, head: bytes, size: int | None = None) -> int | None:
        """The length of the image whose file starts with *head*; ``None`` if *head* does not state it.

        With the *size* of the file, raises ImageError if *head* shows that the image is not whole.
        """
        del head, size
        return None

    def kernel_mount(self, head: bytes) -> KernelMount:
        """How the kernel mounts the image whose file starts with *head*. Raises InputError if it cannot."""
        del head
        raise InputError(f"is an image of the format {self.name}, which the kernel cannot mount")
