"""The composefs format behind the seam: EROFS with the attributes of overlayfs (composefs format, sections 1 to 10)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cfstools.errors import InputError
from cfstools.formats.base import (
    Finding,
    Format,
    ImagePlan,
    KernelMount,
    OpenImage,
    PlanOptions,
    Region,
)
from cfstools.formats.erofs import layout as fmt

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.formats.composefs.reader import NativeTree
    from cfstools.formats.explain import Reason
    from cfstools.formats.facts import ImageInfo
    from cfstools.tree import Directory
    from cfstools.tree.objects import PackedObjects
    from cfstools.verity import Algorithm

_MAGIC = fmt.COMPOSEFS_MAGIC.to_bytes(4, "little")
_EROFS_MAGIC = fmt.EROFS_MAGIC.to_bytes(4, "little")
# With up to so many wrong bits of 32 a magic number counts as damaged; one of 100,000 random files comes that near.
_WRONG_BITS = 4
# How the names of all attributes that mark whiteouts end.
_WHITEOUT_MARK = re.compile(b"overlay.whiteout", re.DOTALL)


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
        from cfstools.formats.composefs.overlay_xattrs import format_word
        from cfstools.formats.composefs.writer import automatic_whiteouts, plan_image

        plan = plan_image(
            root, min_version=options.min_version, max_version=options.max_version, algorithm=options.algorithm
        )
        version = plan.header.composefs_version
        inodes = plan.inode_count - automatic_whiteouts(root)
        return ImagePlan(
            word=format_word(version, options.algorithm),
            version=version,
            size=plan.size,
            inode_count=inodes,
            chunks=plan.chunks,
        )

    def explain(self, name: str, image: memoryview, canonical: memoryview) -> Iterator[Reason]:
        """Reasons in how attributes are stored and what is in the padding."""
        from cfstools.formats.composefs.explain import explain_bytes

        return explain_bytes(name, image, canonical)

    def role_at(self, image: Buffer, offset: int) -> str:
        """The *offset* with the field or range that it is in, and what that is for."""
        from cfstools.formats.erofs.byte_roles import role_of

        return role_of(image, offset).text

    def doubt(self, head: bytes) -> str:
        """Why a file may have been an image: truncated within the magic number, or only part of the marks is there."""
        if head and len(head) < len(_MAGIC) and _MAGIC.startswith(head):
            return "is truncated, and may have been an image"
        erofs = head[fmt.SUPERBLOCK_OFFSET : fmt.SUPERBLOCK_OFFSET + len(_EROFS_MAGIC)]
        if _nearly(head[: len(_MAGIC)], _MAGIC) or _nearly(erofs, _EROFS_MAGIC):
            return "has the marks of an image, and not all of them"
        return ""

    def length(self, head: bytes, size: int | None = None) -> int | None:
        """The length that the superblock states, also where the magic number is damaged.

        With *size*, raises ImageError if *head* shows that a file of that size is not a whole image.
        """
        from cfstools.formats.erofs.superblock import check_head, declared_length

        if size is not None:
            check_head(head, size)
        return declared_length(head)

    def kernel_mount(self, head: bytes) -> KernelMount:
        """Mount as EROFS; if the image has no ACLs, tell the kernel not to look for them."""
        if len(head) < fmt.COMPOSEFS_HEADER.size:
            raise InputError("is too short for a composefs image")
        header = fmt.ComposefsHeader._make(fmt.COMPOSEFS_HEADER.unpack_from(head))
        if header.magic != fmt.COMPOSEFS_MAGIC:
            raise InputError("is no composefs image")
        return KernelMount(file_system=b"erofs", flags=() if header.flags & fmt.HEADER_FLAG_HAS_ACL else (b"noacl",))


class ComposefsImage:
    """An open composefs image. The native reader gets it first, once; what it declines is read by the rules."""

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
        self._native: NativeTree | None = None
        self._is_read = False

    def word(self, algorithm: Algorithm) -> str:
        """Version, algorithm and block size in one word: ``v1-sha256-12``."""
        from cfstools.formats.composefs.overlay_xattrs import format_word

        return format_word(self.version, algorithm)

    def tree(self, filters: Collection[bytes] | None = None, *, as_written: bool = False) -> Directory:
        """The tree; *as_written* with the writer's primary names of hard links and without the marks of its version."""
        native = None
        if filters is None:
            # Primary names are restored in a tree of its own: that of facts and findings must stay as it is.
            native = self._read_native() if as_written else self._native_tree()
        root = native.root if native is not None else self._read_by_rules(filters)
        if as_written:
            from cfstools.formats.composefs.as_written import drop_version_marks, restore_primary_names

            restore_primary_names(self._image, root)
            if self.version:
                drop_version_marks(root)
        return root

    def mounted_tree(self) -> Directory:
        """The tree as the kernel shows it. Raises ImageError."""
        # Bytes of no attribute may look the same: then the rules give what the native reader would have given.
        if _WHITEOUT_MARK.search(self._image.data) is None:
            return self.tree()
        from cfstools.formats.composefs.reader import TreeReader

        return TreeReader(self._image, mounted=True).read()

    def facts(self) -> ImageInfo:
        """What is in the image, in numbers."""
        from cfstools.formats.composefs.facts import facts_of

        return facts_of(self._image, self._native_tree())

    def objects(self) -> dict[bytes, int]:
        """The objects of external files; the tree is not kept."""
        from cfstools.formats.composefs.facts import objects_of

        return objects_of(self._image)

    def packed_objects(self) -> PackedObjects | None:
        """The objects of external files without a tree, where there is a native function."""
        from cfstools.formats.composefs.reader import read_objects

        return read_objects(self._image)

    def findings(self) -> list[Finding]:
        """Everything wrong with it. An image that equals what our writer makes of its tree needs no further check."""
        from cfstools.formats.composefs.check import check_every_rule, matches_canonical

        native = self._native_tree()
        self.canonical = native is not None and matches_canonical(self._image, native)
        return [] if self.canonical else check_every_rule(self._data, allow_tail=self._allow_tail)

    def regions(self) -> Iterator[Region]:
        """Every byte range of the file, named."""
        from cfstools.formats.erofs.regions import regions

        return regions(self._data, allow_tail=self._allow_tail)

    def _native_tree(self) -> NativeTree | None:
        """The tree of the native reader, which is asked once; ``None`` if it declines."""
        if not self._is_read:
            self._is_read = True
            self._native = self._read_native()
        return self._native

    def _read_native(self) -> NativeTree | None:
        from cfstools.formats.composefs.reader import read_native

        native = read_native(self._image)
        if native is not None:
            self.algorithm = native.algorithm
        return native

    def _read_by_rules(self, filters: Collection[bytes] | None) -> Directory:
        from cfstools.formats.composefs.reader import TreeReader

        reader = TreeReader(self._image, filters=filters)
        root = reader.read()
        self.algorithm = reader.algorithm
        return root


def _nearly(data: bytes, magic: bytes) -> bool:
    """Whether *data* is *magic* with one byte or a few bits changed."""
    if len(data) != len(magic):
        return False
    wrong = [one ^ other for one, other in zip(data, magic, strict=True)]
    return sum(map(bool, wrong)) <= 1 or sum(one.bit_count() for one in wrong) <= _WRONG_BITS
