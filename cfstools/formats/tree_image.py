"""An open image that is a tree in memory: for simple formats, which parse the whole image at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum

from cfstools.formats.base import Finding, Format, Region
from cfstools.formats.facts import ImageInfo, Tally
from cfstools.tree import Directory, HardLink
from cfstools.tree.copying import copy_tree, settle_links
from cfstools.tree.objects import PackedObjects, add_use, iter_objects, packed_objects
from cfstools.tree.walk import iter_names
from cfstools.verity import Algorithm


class TreeRegion(Enum):
    """The kinds of regions that such a format has."""

    IMAGE = "image"
    APPENDED = "appended"


class TreeImage:
    """An :class:`~cfstools.formats.base.OpenImage` of *format* with the tree *root*, in *length* of *size* bytes.

    The format's ``open`` is the only check: an image that it accepts has no findings.
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

    def mounted_tree(self) -> Directory:
        """The tree: nothing is known of a kernel that shows it otherwise."""
        return self._root

    def facts(self) -> ImageInfo:
        """What is in the tree, in numbers."""
        tally = Tally()
        tally.algorithm = self.algorithm
        tally.hard_links = sum(isinstance(entry, HardLink) for _, _, entry in iter_names(self._root))
        tally.add_tree(self._root)
        return tally.info(self.length, self._size - self.length)

    def objects(self) -> dict[bytes, int]:
        """The objects that contents are in."""
        needed: dict[bytes, int] = {}
        for payload, digest, size in iter_objects(self._root):
            add_use(needed, payload, digest, size)
        return needed

    def packed_objects(self) -> PackedObjects | None:
        """The same, if all are where their digests say."""
        return packed_objects(self._root)

    def findings(self) -> list[Finding]:
        """None: ``open`` checked the image."""
        return []

    def regions(self) -> Iterator[Region]:
        """The image, and what is appended to it."""
        yield Region(0, self.length, TreeRegion.IMAGE, self.format.name, None)
        if self._size > self.length:
            yield Region(self.length, self._size, TreeRegion.APPENDED, "behind the image", None)
