"""A composefs image back to the tree it was made from (composefs format, section 6.5).

What composefs adds to an EROFS image (redirects, digests, escapes, whiteouts in disguise, names that hide the
object store) is undone here. An image whose overlay xattrs do not say plainly where a file's contents are is
refused, because the kernel and this reader could then see different files.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cfstools import native
from cfstools.errors import ImageError, UsageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.layout import DataLayout
from cfstools.formats.erofs.reader import CHARACTER, DIRECTORY, REGULAR, SYMLINK, TYPE_MASK, DiskInode, Image, Xattr
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.escape import escape_text
from cfstools.formats.overlay import ESCAPED, METACOPY_HEADERS, METACOPY_KEY, OVERLAY, REDIRECT_KEY
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
    from typing_extensions import Buffer

WHITEOUT_KEY = ESCAPED + b"whiteout"
_DROPPED = frozenset({ESCAPED + b"whiteouts", b"user.overlay.whiteout", b"user.overlay.whiteouts"})
_MARKED = (OVERLAY, b"user.overlay.whiteout")  # every key that is not simply kept starts with one of these
_ALGORITHMS = {header: algorithm for algorithm, header in METACOPY_HEADERS.items()}
_NUMBERED = {algorithm.number: algorithm for algorithm in Algorithm}
_CACHED_MAPPINGS_MAX = 1 << 16
_PERMISSIONS = 0o7777
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_SPECIAL: dict[int, type[Fifo | Socket]] = {stat.S_IFIFO: Fifo, stat.S_IFSOCK: Socket}
_UPWARD = frozenset({b".", b".."})

Pair = tuple[bytes, bytes]
AnyInode = TypeVar("AnyInode", bound=Inode)


def read_image(data: Buffer, *, filters: Collection[bytes] | None = None, allow_tail: bool = False) -> Directory:
    """The tree of a composefs image.

    With *filters* only these direct children of the root are loaded, each with all below it (section 8);
    unknown names are ignored. With *allow_tail* bytes behind the image are ignored. Xattrs are in stored order, inline
    before shared. The first name of an inode, depth-first in byte order, is its primary name.

    Raises ImageError for anything the strict reader (section 10.2) does not accept, UsageError for a filter that
    is not a name.
    """
    for name in filters or ():
        if b"/" in name:
            raise UsageError(f"filter {escape_text(name)} is a path; only names in the root can be chosen")
    return TreeReader(Image(data, allow_tail=allow_tail), filters=filters).read()


class OrdinaryTree(NamedTuple):
    """A tree that was read natively, and counts: devices that hide names, further names, files with a link count other
    than 1, shared xattrs and references to them."""

    root: Directory
    algorithm: Algorithm | None
    hiding: int
    further_names: int
    linked: int
    shared_xattrs: int
    xattr_references: int


def read_ordinary(image: Image) -> OrdinaryTree | None:
    """The whole tree of *image*, or ``None`` if anything in it is wrong or rare: :class:`TreeReader` tells."""
    superblock = image.superblock
    found = native.read_tree(
        image.data[: image.length],
        image.root_nid,
        superblock.xattr_block * fmt.BLOCK_SIZE,
        superblock.build_time_sec,
        superblock.build_time_nsec,
        KINDS,
        NO_XATTRS,
        _freeze,
    )
    if found is None:
        return None
    root, number, *counts = found
    return OrdinaryTree(root, _NUMBERED.get(number), *counts)


def _freeze(pairs: tuple[Pair, ...]) -> Xattrs:
    return MappingProxyType(dict(pairs))


class TreeReader:
    """Builds the tree of one image; ``algorithm`` is that of its digests, once one was met."""

    def __init__(self, image: Image, *, filters: Collection[bytes] | None = None) -> None:
        self._image = image
        self._filtered = filters is not None
        self._walk = Walk(image, filters=filters)
        self._algorithm: Algorithm | None = None
        self._mappings: dict[tuple[tuple[bytes, bytes], ...], Xattrs] = {}

    @property
    def algorithm(self) -> Algorithm | None:
        """The algorithm of the digests of external files; None as long as there was none."""
        return self._algorithm

    def read(self, *, try_native: bool = True) -> Directory:
        """The whole tree; see :func:`read_image`. *try_native* is false where :func:`read_ordinary` gave nothing."""
        tree = read_ordinary(self._image) if try_native and not self._filtered else None
        if tree is not None:
            self._algorithm = tree.algorithm
            return tree.root
        return self._read()

    def _read(self) -> Directory:
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
        kept, redirect, metacopy, whiteout = split_xattrs(inode, self._image.xattrs(inode))
        xattrs = self._mapping(kept) if kept else NO_XATTRS
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

    def _mapping(self, kept: list[Pair]) -> Xattrs:
        """The xattrs as a mapping, the same one for the same xattrs as far as memory is well spent on that."""
        key = tuple(kept)
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = MappingProxyType(dict(kept))
            if len(self._mappings) < _CACHED_MAPPINGS_MAX:
                self._mappings[key] = mapping
        return mapping


def split_xattrs(inode: DiskInode, xattrs: Sequence[Xattr]) -> tuple[list[Pair], bytes | None, bytes | None, bool]:
    """What the stored *xattrs* of *inode* say: those of the tree, redirect, metacopy, whether it is a whiteout.

    Redirect and metacopy are ``None`` where they are not there. On anything but a regular file they mean nothing
    and are dropped, and the mark of a whiteout is an xattr as any other (composefs format, section 6.5).
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
        elif key == WHITEOUT_KEY and regular:
            whiteout = True
        elif key.startswith(ESCAPED):
            if key not in _DROPPED:
                kept.append((OVERLAY + key[len(ESCAPED) :], value))
        elif not key.startswith(OVERLAY) and key not in _DROPPED:
            kept.append((key, value))
    return kept, redirect, metacopy, whiteout


def parse_metacopy(value: bytes, inode: DiskInode) -> tuple[Algorithm | None, bytes | None]:
    """Algorithm and digest in a ``trusted.overlay.metacopy`` (section 4.5); both ``None`` for the empty value."""
    if not value:
        return None, None
    algorithm = _ALGORITHMS.get(value[:4])
    if algorithm is None or len(value) != 4 + algorithm.digest_size:
        raise ImageError(f"the metacopy xattr of {len(value)} bytes has no digest of a known form", where=inode.where)
    return algorithm, value[4:]


def parse_redirect(value: bytes | None, inode: DiskInode) -> bytes | None:
    """The payload in a ``trusted.overlay.redirect``: the path of an object below a store, without its first slash.

    Refuses what could leave the store, not repeated slashes (section 10.2): the reference writes them.
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
