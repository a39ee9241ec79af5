"""Inodes of a live file system, read by name below an open directory or through a descriptor.

What is read of an inode follows composefs format, section 7.2. Nothing here follows symbolic links, and whatever
the kernel answers that means "no longer what it was a moment ago" becomes :class:`SourceChanged`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import MappingProxyType

from cfstools.errors import InputError, SourceChanged, TreeError, os_error
from cfstools.tree import NO_XATTRS, Device, Directory, Fifo, RegularFile, Socket, Stamp, Symlink, Unread, Xattrs
from cfstools.tree.model import KINDS, Content, Leaf
from cfstools.tree.xattrs import XattrPolicy, check_xattr_space

_NANO = 1_000_000_000
_RDEV_MASK = 0xFFFFFFFF
_XATTR_TRIES = 4

Pairs = tuple[tuple[bytes, bytes], ...]
# As native.stat_names gives and takes them.
Maker = tuple[tuple[type, ...], type, Xattrs, dict[Pairs, Xattrs], bool, bool]
NameStatus = tuple[int, int, int, int, int, int, int, int, int, int, int, int, Pairs | bool | None, bytes | None]

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO, errno.EXDEV})
_XATTRS_RACED = frozenset({errno.ENODATA, errno.ERANGE})


class Place:
    """Where the source is, to name what is inside it in errors."""

    __slots__ = ("_root",)

    def __init__(self, root: bytes) -> None:
        self._root = root

    def name(self, path: bytes) -> str:
        """The whole path of *path*, which is relative to the root and empty for the root itself."""
        return os.fsdecode(os.path.join(self._root, path) if path else self._root)

    def failed(self, error: OSError, what: str, path: bytes) -> InputError:
        """What an ``OSError`` about *path* means: that it changed, or that it cannot be read."""
        if error.errno in _GONE:
            return self.changed(path, "vanished or was replaced")
        return os_error(error, what, subject=self.name(path))

    def changed(self, path: bytes, how: str = "changed") -> SourceChanged:
        """The error for something that is no longer what it was."""
        return SourceChanged(f"{how} while the source was read", subject=self.name(path))


def stamp_of(status: os.stat_result) -> Stamp:
    """What identifies the contents of the file with this status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class XattrReader:
    """Reads extended attributes by *policy*; equal sets are given out as one mapping."""

    __slots__ = ("_accepts", "_place", "_shared", "known", "wanted")

    def __init__(self, place: Place, policy: XattrPolicy) -> None:
        self._place = place
        self._accepts: Callable[[bytes], bool] = policy.accepts
        self._shared: dict[Pairs, Xattrs] = {}
        # The same by what the kernel gave, in its order and not chosen from.
        self.known: dict[Pairs, Xattrs] = {}
        self.wanted = policy is not XattrPolicy.NONE

    def supported(self, fd: int, path: bytes) -> bool:
        """Whether the file system of the directory *fd* has extended attributes at all."""
        try:
            os.listxattr(fd)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise self._place.failed(error, "cannot list extended attributes", path) from error
        return True

    def read(self, target: bytes | int, path: bytes, *, follow: bool = False) -> Xattrs:
        """All attributes of *target*: a path of which the last component is not followed, or (following) a descriptor.

        Raises :class:`InputError` if one cannot be read, :class:`SourceChanged` if they keep changing and
        :class:`TreeError` if they need more space than an inode has (composefs format, section 10.1).
        """
        for _ in range(_XATTR_TRIES):
            try:
                names = os.listxattr(target, follow_symlinks=follow)
                if not names:
                    return NO_XATTRS
                keys = sorted(filter(self._accepts, map(os.fsencode, names)))
                found = tuple([(key, os.getxattr(target, key, follow_symlinks=follow)) for key in keys])
            except OSError as error:
                if error.errno in _XATTRS_RACED:
                    continue
                if error.errno == errno.EOPNOTSUPP:
                    return NO_XATTRS
                raise self._place.failed(error, "cannot read extended attributes", path) from error
            return self._share(found, path) if found else NO_XATTRS
        raise self._place.changed(path, "extended attributes changed")

    def choose(self, pairs: Pairs, path: bytes) -> Xattrs:
        """Those of the attributes *pairs*, read elsewhere, that are wanted. Raises :class:`TreeError` as above."""
        known = self.known.get(pairs)
        if known is None:
            found = tuple(sorted([pair for pair in pairs if self._accepts(pair[0])]))
            known = self.known[pairs] = self._share(found, path) if found else NO_XATTRS
        return known

    def _share(self, found: Pairs, path: bytes) -> Xattrs:
        shared = self._shared.get(found)
        if shared is None:
            shared = MappingProxyType(dict(found))
            try:
                check_xattr_space(shared)
            except TreeError as error:
                error.subject = self._place.name(path)
                raise
            self._shared[found] = shared
        return shared


class InodeReader:
    """Makes tree inodes from what the kernel says about names."""

    __slots__ = ("_place", "_use_epoch", "xattrs")

    def __init__(self, place: Place, *, policy: XattrPolicy, use_epoch: bool) -> None:
        self._place = place
        self._use_epoch = use_epoch
        self.xattrs = XattrReader(place, policy)

    def maker(self, *, hardlinks: bool) -> Maker:
        """What native functions need to make the ordinary ones of these inodes at once."""
        return KINDS, Stamp, NO_XATTRS, self.xattrs.known, self._use_epoch, hardlinks

    def directory(self, status: os.stat_result, xattrs: Xattrs) -> Directory:
        """A directory without entries."""
        sec, nsec = (0, 0) if self._use_epoch else divmod(status.st_mtime_ns, _NANO)
        return Directory(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_sec=sec,
            mtime_nsec=nsec,
            xattrs=xattrs,
        )

    def leaf(self, status: NameStatus, path: bytes, xattrs: Xattrs) -> Leaf:
        """The inode of anything but a directory, met at *path*, with a link count of 1."""
        mode, _, uid, gid, rdev, device, number, size, sec, nsec, csec, cnsec, _, target = status
        stamp = (sec, nsec)
        if self._use_epoch:
            sec = nsec = 0
        match mode & 0o170000:
            case stat.S_IFREG:
                content: Content = b""
                if size:
                    stamped = Stamp(device, number, size, stamp[0] * _NANO + stamp[1], csec * _NANO + cnsec)
                    content = Unread(path, stamped)
                return RegularFile(
                    mode=mode,
                    uid=uid,
                    gid=gid,
                    mtime_sec=sec,
                    mtime_nsec=nsec,
                    xattrs=xattrs,
                    size=size,
                    content=content,
                )
            case stat.S_IFLNK:
                assert target is not None
                return Symlink(
                    mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, target=target
                )
            case stat.S_IFCHR | stat.S_IFBLK:
                rdev &= _RDEV_MASK
                return Device(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, rdev=rdev)
            case stat.S_IFIFO:
                return Fifo(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case stat.S_IFSOCK:
                return Socket(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case kind:
                raise InputError(f"unknown kind of file {kind:#o}", subject=self._place.name(path))
