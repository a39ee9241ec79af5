"""Facts about an image in numbers, for every format."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from heapq import heappush, heappushpop

from cfstools.formats.escape import show_path
from cfstools.report import Report
from cfstools.tree import Device, Directory, External, HardLink, Located, RegularFile, Unread
from cfstools.tree.walk import iter_entries
from cfstools.verity import Algorithm

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

    ``composefs_version`` is ``None`` for images of other formats. ``size`` is the image's own length, ``appended``
    counts bytes behind it. ``inodes`` counts by kind, without the ``hiding`` devices that keep object directories out
    of sight. External, inline and located sizes are of the contents of inodes; ``located`` ones are pieces of blobs.
    ``objects`` counts different objects (blobs among them), ``objects_shared`` those of several files,
    ``object_bytes`` their sizes. ``largest`` are the largest external files
    as (size, escaped path), the largest first. ``shared_xattrs`` were referred to ``xattr_references`` times.
    """

    composefs_version: int | None
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
    located_files: int
    located_bytes: int
    objects: int
    objects_shared: int
    object_bytes: int
    shared_xattrs: int
    xattr_references: int
    largest: tuple[tuple[int, str], ...]


class Tally:
    """Counts inodes and contents, and keeps the *largest* external files."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._count = largest
        self._largest: list[tuple[int, str]] = []
        self._kinds: Counter[str] = Counter()
        self._objects: dict[bytes, int] = {}  # path or digest to size
        self._uses: Counter[bytes] = Counter()
        self._sums: Counter[str] = Counter()
        self.algorithm: Algorithm | None = None
        self.hiding = 0
        self.hard_links = 0
        self.shared_xattrs = 0
        self.xattr_references = 0

    def add_tree(self, root: Directory) -> None:
        """Count all inodes of the tree."""
        for path, _, inode in iter_entries(root):
            if type(inode) is RegularFile:
                match inode.content:
                    case External(digest=digest, payload=payload):
                        self.add_external(inode.size, digest, payload, partial(_path_text, path))
                    case bytes():
                        self.add_inline(inode.size)
                    case Located() as located:
                        self.add_located(inode.size, located)
                    case Unread():
                        self.add_other(inode.mode)
            elif not isinstance(inode, HardLink):
                self.add_other(inode.mode, whiteout=isinstance(inode, Device) and inode.is_whiteout)

    def add_other(self, mode: int, *, whiteout: bool = False) -> None:
        """Count an inode without contents, or with contents that are not known."""
        self._kinds[WHITEOUT if whiteout else _KINDS[stat.S_IFMT(mode)]] += 1

    def add_inline(self, size: int) -> None:
        """Count a file with inline contents."""
        self._kinds["regular"] += 1
        self._sums["inline_files"] += size > 0
        self._sums["inline_bytes"] += size

    def add_located(self, size: int, located: Located) -> None:
        """Count a file with contents inside blobs. The blobs are objects."""
        self._kinds["regular"] += 1
        self._sums["located_files"] += 1
        self._sums["located_bytes"] += size
        for blob in located.blobs:
            if blob.number:
                self._add_object(blob.payload or blob.digest, blob.size)

    def add_external(self, size: int, digest: bytes | None, payload: bytes | None, path: Callable[[], str]) -> None:
        """Count a file whose contents are an object; *path* is called only if it is one of the largest."""
        self._kinds["regular"] += 1
        self._sums["external_files"] += 1
        self._sums["external_bytes"] += size
        self._sums["without_digest"] += digest is None
        self._add_object(payload or digest, size)
        if len(self._largest) < self._count:
            heappush(self._largest, (size, path()))
        elif self._largest and size > self._largest[0][0]:
            heappushpop(self._largest, (size, path()))

    def _add_object(self, name: bytes | None, size: int) -> None:
        if name:
            self._objects[name] = size
            self._uses[name] += 1

    def info(self, size: int, appended: int, *, version: int | None = None, has_acl: bool = False) -> ImageInfo:
        """The facts about an image of *size* bytes with *appended* ones after it, once all inodes were added."""
        return ImageInfo(
            composefs_version=version,
            algorithm=self.algorithm,
            has_acl=has_acl,
            size=size,
            appended=appended,
            inodes=dict(sorted(self._kinds.items())),
            hiding=self.hiding,
            hard_links=self.hard_links,
            external_files=self._sums["external_files"],
            external_bytes=self._sums["external_bytes"],
            without_digest=self._sums["without_digest"],
            inline_files=self._sums["inline_files"],
            inline_bytes=self._sums["inline_bytes"],
            located_files=self._sums["located_files"],
            located_bytes=self._sums["located_bytes"],
            objects=len(self._objects),
            objects_shared=sum(uses > 1 for uses in self._uses.values()),
            object_bytes=sum(self._objects.values()),
            shared_xattrs=self.shared_xattrs,
            xattr_references=self.xattr_references,
            largest=tuple(sorted(self._largest, key=lambda item: (-item[0], item[1]))),
        )


def _path_text(path: bytes) -> str:
    return show_path(reversed(path.split(b"/")))
