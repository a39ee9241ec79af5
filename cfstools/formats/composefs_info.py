"""Facts about a composefs image as a whole, from one walk over it."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from heapq import heappush, heappushpop
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
from cfstools.formats.erofs.reader import DiskInode, Image
from cfstools.formats.erofs.walk import Walk, show_path
from cfstools.lasting import keep
from cfstools.report import Json, Report
from cfstools.tree import Device, External, HardLink, RegularFile
from cfstools.tree.walk import iter_entries
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from typing_extensions import Buffer

LARGEST = 10
_KINDS = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
WHITEOUT = "whiteout"


class ImageInfo(Report):
    """What an image is and what is in it.

    ``version_word`` has format version, digest algorithm and block bits (``v0-sha256-12``; ``none`` for an image
    without digests). ``size`` is the image's own length, ``appended`` counts bytes behind it. ``inodes`` counts by
    kind, without the ``hiding`` devices that keep object directories out of sight. External and inline sizes are
    of the contents of inodes; ``objects`` counts different objects,
    ``objects_shared`` those of several files, ``object_bytes`` their sizes. ``largest`` are
    the largest external files as (size, escaped path), the largest first. ``shared_xattrs`` were referred to
    ``xattr_references`` times.
    """

    composefs_version: int
    algorithm: Algorithm | None
    has_acl: bool
    size: int
    appended: int
    inodes: dict[str, int]
    hiding: int
    hard_links: int
    external_files: int
    external_bytes: int
    without_digest: int
    inline_files: int
    inline_bytes: int
    objects: int
    objects_shared: int
    object_bytes: int
    shared_xattrs: int
    xattr_references: int
    largest: tuple[tuple[int, str], ...]

    @property
    def version_word(self) -> str:
        """The choices that decide the bytes, as one word."""
        algorithm = self.algorithm.value if self.algorithm else "none"
        return f"v{self.composefs_version}-{algorithm}-{fmt.BLOCK_BITS}"

    def to_dict(self) -> dict[str, Json]:
        """The facts for a JSON report, with ``version`` for :attr:`version_word`."""
        return {**super().to_dict(), "version": self.version_word}


def image_info(data: Buffer, *, allow_tail: bool = False, largest: int = LARGEST) -> ImageInfo:
    """Facts about an image, with its *largest* external files.

    Raises ImageError for anything the strict reader does not accept (composefs format, section 10.2).
    """
    image = Image(data, allow_tail=allow_tail)
    tally = _Tally(image, largest)
    tree = read_ordinary(image)
    keep(tree)
    if tree is not None:
        tally.add_tree(tree)
        return tally.info(len(image.data))
    walk = Walk(image)
    for step in walk:
        if step.inode.is_hiding:
            tally.hiding += step.first
        elif not step.first:
            tally.hard_links += 1
        else:
            try:
                tally.add(step.inode, walk)
            except ImageError as error:
                raise walk.located(error) from None
    return tally.info(len(image.data))


class _Tally:
    def __init__(self, image: Image, largest: int) -> None:
        self._image = image
        self._count = largest
        self._largest: list[tuple[int, str]] = []
        self._kinds: Counter[str] = Counter()
        self._objects: dict[bytes, int] = {}  # path or digest to size
        self._uses: Counter[bytes] = Counter()
        self._shared: set[int] = set()
        self._shared_count = 0
        self._references = 0
        self._algorithm: Algorithm | None = None
        self._sums: Counter[str] = Counter()
        self.hiding = 0
        self.hard_links = 0

    def add(self, inode: DiskInode, walk: Walk) -> None:
        """Count an inode met for the first time."""
        _, redirect, metacopy, whiteout = split_xattrs(inode, self._image.xattrs(inode))
        identifiers = self._image.shared_ids(inode)
        self._shared.update(identifiers)
        self._shared_count = len(self._shared)
        self._references += len(identifiers)
        kind = WHITEOUT if whiteout else _KINDS[inode.kind]
        self._kinds[kind] += 1
        if kind != "regular":
            return
        if not inode.is_chunked:
            self._add_inline(inode.size)
            return
        algorithm, digest = parse_metacopy(metacopy or b"", inode)
        payload = parse_redirect(redirect, inode)
        self._algorithm = self._algorithm or algorithm
        self._add_external(inode.size, digest, payload, walk.path)

    def add_tree(self, tree: OrdinaryTree) -> None:
        """Count all inodes of the image, read as a tree."""
        self.hiding = tree.hiding
        self.hard_links = tree.further_names
        self._algorithm = tree.algorithm
        self._references = tree.xattr_references
        self._shared_count = tree.shared_xattrs
        for path, _, inode in iter_entries(tree.root):
            if type(inode) is RegularFile:
                self._kinds["regular"] += 1
                content = inode.content
                if isinstance(content, External):
                    self._add_external(inode.size, content.digest, content.payload, partial(_path_text, path))
                else:
                    self._add_inline(inode.size)
            elif not isinstance(inode, HardLink):
                whiteout = isinstance(inode, Device) and inode.is_whiteout
                self._kinds[WHITEOUT if whiteout else _KINDS[stat.S_IFMT(inode.mode)]] += 1

    def _add_inline(self, size: int) -> None:
        self._sums["inline_files"] += size > 0
        self._sums["inline_bytes"] += size

    def _add_external(self, size: int, digest: bytes | None, payload: bytes | None, path: Callable[[], str]) -> None:
        self._sums["external_files"] += 1
        self._sums["external_bytes"] += size
        self._sums["without_digest"] += digest is None
        name = payload or digest
        if name:
            self._objects[name] = size
            self._uses[name] += 1
        if len(self._largest) < self._count:
            heappush(self._largest, (size, path()))
        elif self._largest and size > self._largest[0][0]:
            heappushpop(self._largest, (size, path()))

    def info(self, length: int) -> ImageInfo:
        """The facts, once all inodes are counted."""
        header = self._image.header
        return ImageInfo(
            composefs_version=header.composefs_version,
            algorithm=self._algorithm,
            has_acl=bool(header.flags & fmt.HEADER_FLAG_HAS_ACL),
            size=self._image.length,
            appended=length - self._image.length,
            inodes=dict(sorted(self._kinds.items())),
            hiding=self.hiding,
            hard_links=self.hard_links,
            external_files=self._sums["external_files"],
            external_bytes=self._sums["external_bytes"],
            without_digest=self._sums["without_digest"],
            inline_files=self._sums["inline_files"],
            inline_bytes=self._sums["inline_bytes"],
            objects=len(self._objects),
            objects_shared=sum(uses > 1 for uses in self._uses.values()),
            object_bytes=sum(self._objects.values()),
            shared_xattrs=self._shared_count,
            xattr_references=self._references,
            largest=tuple(sorted(self._largest, key=lambda item: (-item[0], item[1]))),
        )


def _path_text(path: bytes) -> str:
    return show_path(reversed(path.split(b"/")))
