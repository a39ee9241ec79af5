"""An open image that is a tree in memory: what a simple format, that parses all at once, hands out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum

from cfstools.formats.base import Finding, Format, ObjectUse, Region
from cfstools.formats.facts import ImageInfo, Tally
from cfstools.tree import Directory, External, HardLink, RegularFile
from cfstools.tree.copying import copy_tree
from cfstools.tree.links import settle_links
from cfstools.tree.walk import iter_inodes, iter_names
from cfstools.verity import Algorithm


class TreeRegion(Enum):
    """What a range of bytes is, as far as such a format tells."""

    IMAGE = "image"
    APPENDED = "appended"


class TreeImage:
    """An :class:`~cfstools.formats.base.OpenImage` of *format* with the tree *root*, in *length* of *size* bytes.

    Its writer is taken to be the only one: what the format's own ``open`` accepts has nothing wrong with it.
    """

    canonical = False

    def __init__(
        self,
        format: Format,
        root: Directory,
        length: int,
        size: int,
        *,
        version: int = 0,
        algorithm: Algorithm | None = None,
    ) -> None:
        self.format = format
        self.length = length
        self.version = version
        self.algorithm = algorithm
        self._root = root
        self._size = size

    def word(self, algorithm: Algorithm) -> str:
        """Name, version and algorithm in one word."""
        return f"{self.format.name}{self.version}-{algorithm.value}"

    def tree(self, filters: Collection[bytes] | None = None, *, as_written: bool = False) -> Directory:
        """The tree; with *filters* a copy of the children of the root that have these names."""
        del as_written
        if filters is None:
            return self._root
        root = copy_tree(self._root)
        root.entries = {name: entry for name, entry in root.entries.items() if name in filters}
        settle_links(root)
        return root

    def facts(self) -> ImageInfo:
        """What is in the tree, in numbers."""
        tally = Tally()
        tally.algorithm = self.algorithm
        tally.hard_links = sum(isinstance(entry, HardLink) for _, _, entry in iter_names(self._root))
        tally.add_tree(self._root)
        return tally.info(self.length, self._size - self.length)

    def objects(self) -> Iterator[ObjectUse]:
        """The contents that are objects."""
        for inode in iter_inodes(self._root):
            if isinstance(inode, RegularFile) and isinstance(inode.content, External):
                yield ObjectUse(inode.content.payload, inode.content.digest, inode.size)

    def findings(self, *, strict: bool = False) -> list[Finding]:
        """Nothing."""
        del strict
        return []

    def regions(self) -> Iterator[Region]:
        """The image, and what is behind it."""
        yield Region(0, self.length, TreeRegion.IMAGE, self.format.name, None)
        if self._size > self.length:
            yield Region(self.length, self._size, TreeRegion.APPENDED, "behind the image", None)
