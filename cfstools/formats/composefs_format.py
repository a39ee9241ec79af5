"""The composefs format behind the seam: EROFS with the attributes of overlayfs (composefs format, sections 1 to 10)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cfstools.errors import InputError
from cfstools.formats.base import (
    Finding,
    Format,
    ImagePlan,
    KernelMount,
    ObjectUse,
    OpenImage,
    PlanOptions,
    Region,
)
from cfstools.formats.erofs import layout as fmt

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.formats.composefs_reader import OrdinaryTree
    from cfstools.formats.facts import ImageInfo
    from cfstools.tree import Directory
    from cfstools.verity import Algorithm

_MAGIC = fmt.COMPOSEFS_MAGIC.to_bytes(4, "little")
_EROFS_MAGIC = fmt.EROFS_MAGIC.to_bytes(4, "little")
# So many wrong bits of 32 are damage and no chance: one file in 100,000 comes as near.
_WRONG_BITS = 4


class ComposefsFormat(Format):
    """Images as the reference tools write them."""

    name = "composefs"
    unit = fmt.BLOCK_SIZE

    def recognises(self, head: bytes) -> bool:
        """Whether the magic number is there."""
        return head.startswith(_MAGIC)

    def open(self, data: Buffer, *, allow_tail: bool = False) -> OpenImage:
        """The image in *data*. Raises ImageError."""
        return ComposefsImage(self, data, allow_tail=allow_tail)

    def plan(self, root: Directory, options: PlanOptions) -> ImagePlan:
        """Decide every byte of the image of *root*. Raises UsageError and TreeError."""
        from cfstools.formats.composefs import automatic_whiteouts, plan_image
        from cfstools.formats.overlay import format_word

        algorithm, minimum, maximum = options
        plan = plan_image(root, min_version=minimum, max_version=maximum, algorithm=algorithm)
        version = plan.header.composefs_version
        inodes = plan.inode_count - automatic_whiteouts(root)
        return ImagePlan(format_word(version, algorithm), version, plan.size, inodes, plan.chunks)

    def doubt(self, head: bytes) -> str:
        """Why a file may have been an image: it is cut within the magic number, or has some of its marks."""
        if head and len(head) < len(_MAGIC) and _MAGIC.startswith(head):
            return "is cut, and may have been an image"
        erofs = head[fmt.SUPERBLOCK_OFFSET : fmt.SUPERBLOCK_OFFSET + len(_EROFS_MAGIC)]
        if _nearly(head[: len(_MAGIC)], _MAGIC) or _nearly(erofs, _EROFS_MAGIC):
            return "has the marks of an image, and not all of them"
        return ""

    def length(self, head: bytes, size: int | None = None) -> int | None:
        """How many bytes an image has, by its superblock: also one whose magic number is damaged.

        With *size*, raises ImageError for a head that shows that a file of so many bytes is no whole image.
        """
        from cfstools.formats.erofs.reader import check_head, declared_length

        if size is not None:
            check_head(head, size)
        return declared_length(head)

    def kernel_mount(self, head: bytes) -> KernelMount:
        """As EROFS; without ACLs in the image the kernel is told not to look for them."""
        if len(head) < fmt.COMPOSEFS_HEADER.size:
            raise InputError("is too short for a composefs image")
        header = fmt.ComposefsHeader._make(fmt.COMPOSEFS_HEADER.unpack_from(head))
        if header.magic != fmt.COMPOSEFS_MAGIC:
            raise InputError("is no composefs image")
        return KernelMount(b"erofs", () if header.flags & fmt.HEADER_FLAG_HAS_ACL else (b"noacl",))


class ComposefsImage:
    """An open composefs image. What is ordinary is read natively, and only once."""

    def __init__(self, format: Format, data: Buffer, *, allow_tail: bool) -> None:
        from cfstools.formats.erofs.reader import Image

        self.format = format
        self._data = data
        self._allow_tail = allow_tail
        self._image = Image(data, allow_tail=allow_tail)
        self.version = self._image.header.composefs_version
        self.length = self._image.length
        self.algorithm: Algorithm | None = None
        self.canonical = False
        self._ordinary: OrdinaryTree | None = None
        self._is_read = False

    def word(self, algorithm: Algorithm) -> str:
        """Version, algorithm and block size in one word: ``v1-sha256-12``."""
        from cfstools.formats.overlay import format_word

        return format_word(self.version, algorithm)

    def tree(self, filters: Collection[bytes] | None = None, *, as_written: bool = False) -> Directory:
        """The tree. *as_written* has other primary names of hard links, and no marks of the version."""
        from cfstools.formats.composefs_reader import TreeReader

        whole = filters is None and not as_written
        ordinary = self._read() if whole else None
        if ordinary is not None:
            return ordinary.root
        reader = TreeReader(self._image, filters=filters)
        root = reader.read(try_native=not whole)
        self.algorithm = reader.algorithm
        if as_written:
            from cfstools.formats.explain import drop_version_marks
            from cfstools.formats.primary_names import restore_primary_names

            restore_primary_names(self._image, root)
            if self.version:
                drop_version_marks(root)
        return root

    def facts(self) -> ImageInfo:
        """What is in the image, in numbers."""
        from cfstools.formats.composefs_info import info_of

        return info_of(self._image, self._read())

    def objects(self) -> Iterator[ObjectUse]:
        """The contents of external files, without building the tree."""
        from cfstools.formats.composefs_objects import uses_of

        return uses_of(self._image)

    def findings(self, *, strict: bool = False) -> list[Finding]:
        """All problems: none in what is byte for byte what our writer makes, else what every rule finds."""
        from cfstools.formats.composefs_check import check_every_rule, is_written_anew

        ordinary = self._read()
        self.canonical = ordinary is not None and is_written_anew(self._image, ordinary)
        return [] if self.canonical else check_every_rule(self._data, allow_tail=self._allow_tail, strict=strict)

    def regions(self) -> Iterator[Region]:
        """Every byte range of the file, named."""
        from cfstools.formats.erofs.regions import regions

        return regions(self._data, allow_tail=self._allow_tail)

    def _read(self) -> OrdinaryTree | None:
        """The tree if it is ordinary: nothing in it is wrong or rare."""
        if not self._is_read:
            from cfstools.formats.composefs_reader import read_ordinary

            self._is_read = True
            self._ordinary = read_ordinary(self._image)
            if self._ordinary is not None:
                self.algorithm = self._ordinary.algorithm
        return self._ordinary


def _nearly(data: bytes, magic: bytes) -> bool:
    """Whether it is the number, with a byte or a few bits of it changed."""
    if len(data) != len(magic):
        return False
    wrong = [one ^ other for one, other in zip(data, magic, strict=True)]
    return sum(map(bool, wrong)) <= 1 or sum(one.bit_count() for one in wrong) <= _WRONG_BITS
