"""From a composefs image to the tree it was made from (composefs format, section 6.5).

This module undoes what composefs adds to an EROFS image: redirects, digests, escapes, whiteouts stored as files, names
that hide the object store. It refuses an image whose overlay xattrs are not clear about where a file's contents are:
the kernel could see another file than this reader.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cfstools import native
from cfstools.errors import ImageError
from cfstools.formats.composefs.overlay_xattrs import ESCAPED, METACOPY_HEADERS, METACOPY_KEY, OVERLAY, REDIRECT_KEY
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.layout import DataLayout
from cfstools.formats.erofs.reader import CHARACTER, DIRECTORY, REGULAR, SYMLINK, TYPE_MASK, DiskInode, Image, Xattr
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.escape import escape_text
from cfstools.tree import (
    NO_XATTRS,
    Content,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Inode,
    RegularFile,
    Socket,
    Symlink,
    Xattrs,
)
from cfstools.tree.model import KINDS, Leaf
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from cfstools.formats.erofs.xattrs import Pair
    from cfstools.tree.objects import PackedObjects

WHITEOUT_KEY = ESCAPED + b"whiteout"
_DROPPED = frozenset({ESCAPED + b"whiteouts", b"user.overlay.whiteout", b"user.overlay.whiteouts"})
_MARKED = (OVERLAY, b"user.overlay.whiteout")  # every key that is not simply kept starts with one of these
_ALGORITHMS = {header: algorithm for algorithm, header in METACOPY_HEADERS.items()}
_NUMBERED = {algorithm.number: algorithm for algorithm in Algorithm}
_SHARED_XATTRS_MAX = 1 << 16
_PERMISSIONS = 0o7777
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_SPECIAL: dict[int, type[Fifo | Socket]] = {stat.S_IFIFO: Fifo, stat.S_IFSOCK: Socket}
_UPWARD = frozenset({b".", b".."})

AnyInode = TypeVar("AnyInode", bound=Inode)


class NativeTree(NamedTuple):
    """A tree from the native reader, with counts: ``hiding`` devices, hard links, files whose link count is not 1
    (``linked``), shared xattrs and references to them."""

    root: Directory
    algorithm: Algorithm | None
    hiding: int
    hard_links: int
    linked: int
    shared_xattrs: int
    xattr_references: int


def read_native(image: Image, leave: Callable[[dict[bytes, Entry]], object] | None = None) -> NativeTree | None:
    """The whole tree of *image*, or ``None`` if anything in it is wrong or rare: then use :class:`TreeReader`.

    *leave* is called with the entries of each directory once all below it was read, and may remove them: so a whole
    image is looked at in the memory of one directory. What it was called with counts only if a tree is returned.
    """
    found = native.read_tree(*_words(image), *(() if leave is None else (leave,)))
    if found is None:
        return None
    root, number, *counts = found
    return NativeTree(root, _NUMBERED.get(number), *counts)


def read_objects(image: Image) -> PackedObjects | None:
    """The objects that *image* needs, in the order of its tree, which is not made. ``None`` where anything is rare.

    It is rare as well that an object is elsewhere than its digest says, has none, or has several sizes.
    """
    found = native.read_tree(*_words(image), None)
    return None if found is None else (found[0][0], memoryview(found[0][1]).cast("Q"))


def _words(image: Image) -> tuple[Any, ...]:
    superblock = image.superblock
    return (
        image.data[: image.length],
        image.root_nid,
        superblock.xattr_block * fmt.BLOCK_SIZE,
        superblock.build_time_sec,
        superblock.build_time_nsec,
        KINDS,
        NO_XATTRS,
        _freeze,
    )


def _freeze(pairs: tuple[Pair, ...]) -> Xattrs:
    return MappingProxyType(dict(pairs))


class TreeReader:
    """Builds the tree of one image by the rules; *mounted*: as the kernel shows it, with whiteouts as marked files."""

    def __init__(self, image: Image, *, filters: Collection[bytes] | None = None, mounted: bool = False) -> None:
        self._image = image
        self._mounted = mounted
        self._walk = Walk(image, filters=filters)
        self._algorithm: Algorithm | None = None
        self._known_xattrs: dict[tuple[tuple[bytes, bytes], ...], Xattrs] = {}

    @property
    def algorithm(self) -> Algorithm | None:
        """The algorithm of the digests of external files; ``None`` until the first one is read."""
        return self._algorithm

    def read(self) -> Directory:
        """The tree. Raises ImageError for anything the strict reader does not accept (section 10.2)."""
        top = Directory(mode=0)
        parents = [top]
        known: dict[int, Leaf] = {}
        entry: Entry
        for depth, name, inode, first in self._walk:
            if inode.union == 0 and inode.mode & TYPE_MASK == CHARACTER:
                continue
            if not first:
                entry = HardLink(known[inode.nid])
            else:
                try:
                    entry = self._entry(inode)
                except ImageError as error:
                    raise self._walk.located(error) from None
                if isinstance(entry, Directory):
                    del parents[depth + 1 :]
                    parents.append(entry)
                else:
                    known[inode.nid] = entry
            parents[depth].entries[name] = entry
        return parents[1]

    def _entry(self, inode: DiskInode) -> Directory | Leaf:
        kept, redirect, metacopy, whiteout = split_xattrs(inode, self._image.xattrs(inode), mounted=self._mounted)
        xattrs = self._shared(kept) if kept else NO_XATTRS
        if whiteout:
            mode = stat.S_IFCHR | inode.mode & _PERMISSIONS
            return _make(Device, inode, xattrs, mode=mode, rdev=0)
        kind = inode.mode & TYPE_MASK
        if kind == REGULAR:
            content = self._content(inode, redirect, metacopy)
            return _make(RegularFile, inode, xattrs, size=inode.size, content=content)
        if kind == DIRECTORY:
            return _make(Directory, inode, xattrs)
        if kind == SYMLINK:
            return _make(Symlink, inode, xattrs, target=self._image.symlink_target(inode))
        if kind in _DEVICES:
            return _make(Device, inode, xattrs, rdev=inode.union)
        return _make(_SPECIAL[kind], inode, xattrs)

    def _content(self, inode: DiskInode, redirect: bytes | None, metacopy: bytes | None) -> Content:
        if inode.layout == DataLayout.CHUNK:
            return External(self._digest(inode, metacopy), parse_redirect(redirect, inode))
        if redirect is not None or metacopy is not None:
            raise ImageError("a file with contents in the image also points to an object", where=inode.where)
        return self._image.file_data(inode)

    def _digest(self, inode: DiskInode, metacopy: bytes | None) -> bytes | None:
        if metacopy is None:
            raise ImageError("the contents are not in the image and no object is named", where=inode.where)
        algorithm, digest = parse_metacopy(metacopy, inode)
        if algorithm is not self._algorithm and algorithm is not None:
            if self._algorithm is not None:
                raise ImageError(
                    f"digest of {algorithm.value} in an image with digests of {self._algorithm.value}",
                    where=inode.where,
                )
            self._algorithm = algorithm
        return digest

    def _shared(self, kept: list[Pair]) -> Xattrs:
        """The xattrs; equal ones are one object, up to a number of different ones."""
        key = tuple(kept)
        mapping = self._known_xattrs.get(key)
        if mapping is None:
            mapping = MappingProxyType(dict(kept))
            if len(self._known_xattrs) < _SHARED_XATTRS_MAX:
                self._known_xattrs[key] = mapping
        return mapping


def split_xattrs(
    inode: DiskInode, xattrs: Sequence[Xattr], *, mounted: bool = False
) -> tuple[list[Pair], bytes | None, bytes | None, bool]:
    """Split the stored *xattrs* of *inode* into those of the tree, redirect, metacopy, and whether it is a whiteout.

    Redirect and metacopy are ``None`` if absent. On inodes other than regular files they have no meaning and are
    dropped, and the mark of a whiteout is an ordinary xattr (composefs format, section 6.5). *mounted*: the marks of
    whiteouts and their directories are ordinary xattrs everywhere, as they are to who looks at the mounted image.
    """
    kept: list[Pair] = []
    redirect = metacopy = None
    whiteout = False
    regular = inode.mode & TYPE_MASK == REGULAR
    for key, value, _ in xattrs:
        if not key.startswith(_MARKED):
            kept.append((key, value))
        elif key == METACOPY_KEY:
            metacopy = value if regular else None
        elif key == REDIRECT_KEY:
            redirect = value if regular else None
        elif key == WHITEOUT_KEY and regular and not mounted:
            whiteout = True
        elif key.startswith(ESCAPED):
            if mounted or key not in _DROPPED:
                kept.append((OVERLAY + key[len(ESCAPED) :], value))
        elif not key.startswith(OVERLAY) and (mounted or key not in _DROPPED):
            kept.append((key, value))
    return kept, redirect, metacopy, whiteout


def parse_metacopy(value: bytes, inode: DiskInode) -> tuple[Algorithm | None, bytes | None]:
    """Algorithm and digest in a metacopy xattr (section 4.5); both ``None`` if empty. Raises ImageError."""
    if not value:
        return None, None
    algorithm = _ALGORITHMS.get(value[:4])
    if algorithm is None or len(value) != 4 + algorithm.digest_size:
        raise ImageError(f"the metacopy xattr of {len(value)} bytes has no digest of a known form", where=inode.where)
    return algorithm, value[4:]


def parse_redirect(value: bytes | None, inode: DiskInode) -> bytes | None:
    """The payload in a ``trusted.overlay.redirect``: the path of an object below a store, without its first slash.

    Raises ImageError for a path that could leave the store. Repeated slashes are accepted, as the reference writes them
    (section 10.2).
    """
    if value is None:
        return None
    if len(value) < 2 or value[:1] != b"/" or len(value) > fmt.PAYLOAD_MAX + 1:
        raise ImageError("the redirect is not an absolute path of at most 4096 bytes", where=inode.where)
    if b"\0" in value or (b"/." in value and not _UPWARD.isdisjoint(value.split(b"/"))):
        raise ImageError(f"the redirect {escape_text(value)} could leave the object store", where=inode.where)
    return value[1:]


def _make(kind: type[AnyInode], inode: DiskInode, xattrs: Xattrs, *, mode: int | None = None, **own: Any) -> AnyInode:
    return kind(
        mode=inode.mode if mode is None else mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_sec=inode.mtime_sec,
        mtime_nsec=inode.mtime_nsec,
        xattrs=xattrs,
        nlink=inode.nlink,
        **own,
    )
