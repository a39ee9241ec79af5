"""What a composefs image holds in numbers, and the objects it needs, from one walk over it that builds no tree."""

from __future__ import annotations

from cfstools.errors import ImageError
from cfstools.formats.composefs.reader import (
    NativeTree,
    parse_metacopy,
    parse_redirect,
    read_native,
    split_xattrs,
)
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.reader import REGULAR, TYPE_MASK, DiskInode, Image
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.facts import ImageInfo, Tally
from cfstools.tree import Entry, External, RegularFile
from cfstools.tree.objects import add_use


def facts_of(image: Image, tree: NativeTree | None) -> ImageInfo:
    """Facts about *image*, counted in its *tree* if there is one, else in a walk.

    Raises ImageError for what the strict reader refuses.
    """
    tally = Tally()
    if tree is not None:
        tally.hiding, tally.hard_links, tally.algorithm = tree.hiding, tree.hard_links, tree.algorithm
        tally.shared_xattrs, tally.xattr_references = tree.shared_xattrs, tree.xattr_references
        tally.add_tree(tree.root)
    else:
        _walk(image, tally)
    return tally.info(
        image.length,
        len(image.data) - image.length,
        version=image.header.composefs_version,
        has_acl=bool(image.header.flags & fmt.HEADER_FLAG_HAS_ACL),
    )


def objects_of(image: Image) -> dict[bytes, int]:
    """The digests of the objects that *image* needs, with their sizes in bytes; no tree stays in memory.

    Raises ImageError for what the strict reader refuses, so that no object is overlooked (section 10.2).
    """
    needed: dict[bytes, int] = {}

    def leave(entries: dict[bytes, Entry]) -> None:
        for entry in entries.values():
            if type(entry) is RegularFile and type(content := entry.content) is External:
                add_use(needed, content.payload, content.digest, entry.size)
        entries.clear()

    if read_native(image, leave) is None:
        needed.clear()
        _add_uses(image, needed)
    return needed


def _add_uses(image: Image, needed: dict[bytes, int]) -> None:
    """Add the objects of an image that the native reader declined."""
    walk = Walk(image)
    for step in walk:
        inode = step.inode
        if not step.first or inode.mode & TYPE_MASK != REGULAR or not inode.is_chunked:
            continue
        try:
            _, redirect, metacopy, _ = split_xattrs(inode, image.xattrs(inode))
            add_use(needed, parse_redirect(redirect, inode), parse_metacopy(metacopy or b"", inode)[1], inode.size)
        except ImageError as error:
            raise walk.located(error) from None


def _walk(image: Image, tally: Tally) -> None:
    """Count all inodes of an image that the native reader declined."""
    shared: set[int] = set()
    walk = Walk(image)
    for step in walk:
        if step.inode.is_masking:
            tally.hiding += step.first
        elif not step.first:
            tally.hard_links += 1
        else:
            try:
                _add(image, step.inode, tally, walk)
                identifiers = image.shared_ids(step.inode)
            except ImageError as error:
                raise walk.located(error) from None
            shared.update(identifiers)
            tally.xattr_references += len(identifiers)
    tally.shared_xattrs = len(shared)


def _add(image: Image, inode: DiskInode, tally: Tally, walk: Walk) -> None:
    """Count an inode met for the first time."""
    _, redirect, metacopy, whiteout = split_xattrs(inode, image.xattrs(inode))
    if whiteout or inode.kind != REGULAR:
        tally.add_other(inode.mode, whiteout=whiteout)
    elif not inode.is_chunked:
        tally.add_inline(inode.size)
    else:
        algorithm, digest = parse_metacopy(metacopy or b"", inode)
        tally.algorithm = tally.algorithm or algorithm
        tally.add_external(inode.size, digest, parse_redirect(redirect, inode), walk.path)
