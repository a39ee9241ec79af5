"""The objects a composefs image needs, without building its tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.base import ObjectUse
from cfstools.formats.composefs_reader import parse_metacopy, parse_redirect, split_xattrs
from cfstools.formats.erofs.reader import REGULAR, TYPE_MASK, Image
from cfstools.formats.erofs.walk import Walk

if TYPE_CHECKING:
    from typing_extensions import Buffer


def object_uses(data: Buffer, *, allow_tail: bool = False) -> Iterator[ObjectUse]:
    """The contents that the inodes of an image have outside of it; the same may come several times.

    Raises ImageError for what the strict reader does not accept (composefs format, section 10.2), so that nothing an
    image needs is overlooked.
    """
    return uses_of(Image(data, allow_tail=allow_tail))


def uses_of(image: Image) -> Iterator[ObjectUse]:
    """The same for an open image."""
    walk = Walk(image)
    for step in walk:
        inode = step.inode
        if not step.first or inode.mode & TYPE_MASK != REGULAR or not inode.is_chunked:
            continue
        try:
            _, redirect, metacopy, _ = split_xattrs(inode, image.xattrs(inode))
            yield ObjectUse(parse_redirect(redirect, inode), parse_metacopy(metacopy or b"", inode)[1], inode.size)
        except ImageError as error:
            raise walk.located(error) from None
