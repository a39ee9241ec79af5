"""Facts about a composefs image as a whole, from one walk over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.composefs_reader import (
    OrdinaryTree,
    parse_metacopy,
    parse_redirect,
    read_ordinary,
    split_xattrs,
)
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.reader import REGULAR, DiskInode, Image
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.facts import LARGEST, ImageInfo, Tally
from cfstools.lasting import keep

if TYPE_CHECKING:
    from typing_extensions import Buffer


def image_info(data: Buffer, *, allow_tail: bool = False, largest: int = LARGEST) -> ImageInfo:
    """Facts about an image, with its *largest* external files.

    Raises ImageError for anything the strict reader does not accept (composefs format, section 10.2).
    """
    image = Image(data, allow_tail=allow_tail)
    tree = read_ordinary(image)
    keep(tree)
    return info_of(image, tree, largest=largest)


def info_of(image: Image, tree: OrdinaryTree | None, *, largest: int = LARGEST) -> ImageInfo:
    """The same for an open image, whose *tree* may have been read."""
    tally = Tally(largest)
    if tree is not None:
        tally.hiding, tally.hard_links, tally.algorithm = tree.hiding, tree.further_names, tree.algorithm
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


def _walk(image: Image, tally: Tally) -> None:
    """Count all inodes of an image that is not read natively."""
    shared: set[int] = set()
    walk = Walk(image)
    for step in walk:
        if step.inode.is_hiding:
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
