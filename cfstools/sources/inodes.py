"""Inodes of a live file system, read by name below an open directory or through a descriptor.

What is read of an inode stands in docs/directories.md. Nothing here follows symbolic links, and whatever
the kernel answers that means "no longer what it was a moment ago" becomes :class:`SourceChanged`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING

from cfstools.errors import CfsError, InputError, Phrase, Remedy, SourceChanged, TreeError, os_error
from cfstools.linux.files import close, open_below
from cfstools.linux.numbers import Numbers, numbers_of
from cfstools.native import _pure
from cfstools.text import shown_path
from cfstools.tree import NO_XATTRS, Device, Directory, Fifo, RegularFile, Socket, Stamp, Symlink, Unread, Xattrs
from cfstools.tree.model import KINDS, Content, Leaf
from cfstools.tree.xattrs import XattrPolicy, check_xattr_space

if TYPE_CHECKING:
    from cfstools.native._names import Recall

_NANO = 1_000_000_000
RDEV_MASK = 0xFFFFFFFF
_XATTR_TRIES = 4
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Pairs = tuple[tuple[bytes, bytes], ...]
# As native.stat_names gives and takes them.
Maker = tuple[tuple[type, ...], type, Xattrs, dict[Pairs, Xattrs], bool, int, "Recall | None"]
NameStatus = tuple[int, int, int, int, int, int, int, int, int, int, int, int, Pairs | bool | None, bytes | None]

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO, errno.EXDEV})
_XATTRS_RACED = frozenset({errno.ENODATA, errno.ERANGE})


class SourceRoot:
    """Where the source is, to name what is inside it in errors."""

    __slots__ = ("_root",)

    def __init__(self, root: bytes) -> None:
        self._root = root

    def name(self, path: bytes) -> str:
        """The whole path of *path*, which is relative to the root and empty for the root itself."""
        return os.fsdecode(os.path.join(self._root, path) if path else self._root)

    def failed(self, error: OSError, what: str, path: bytes) -> CfsError:
        """What an ``OSError`` about *path* means: that it changed, or that it cannot be read."""
        if error.errno in _GONE:
            return self.changed(path, "vanished or was replaced")
        return self.refused(error, what, path)

    def refused(self, error: OSError, what: str, path: bytes) -> CfsError:
        """The error for something that is what it was, and cannot be read."""
        return os_error(error, what, subject=self.name(path))

    def changed(self, path: bytes, how: str = "changed") -> SourceChanged:
        """The error for something that is no longer what it was."""
        return SourceChanged(f"{how} while the source was read", subject=self.name(path))


def stamp_of(status: os.stat_result) -> Stamp:
    """What identifies the contents of the file with this status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class XattrReader:
    """Reads extended attributes by *policy*; equal sets are given out as one mapping."""

    __slots__ = ("_accepts", "_shared", "_source", "known", "wanted")

    def __init__(self, source: SourceRoot, policy: XattrPolicy) -> None:
        self._source = source
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
            raise self._source.failed(error, "cannot list extended attributes", path) from error
        return True

    def read(self, target: bytes | int, path: bytes, *, follow: bool = False) -> Xattrs:
        """All attributes of *target*: a path of which the last component is not followed, or (following) a descriptor.

        Raises :class:`InputError` if one cannot be read (which may be listed all the same), :class:`SourceChanged` if
        they keep changing and :class:`TreeError` if they need more space than an inode has (composefs format,
        section 10.1).
        """
        ctimes: set[int | None] = set()
        for _ in range(_XATTR_TRIES):
            key = None
            try:
                keys = sorted(filter(self._accepts, map(os.fsencode, os.listxattr(target, follow_symlinks=follow))))
                found = []
                for key in keys:
                    found.append((key, os.getxattr(target, key, follow_symlinks=follow)))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP and key is None:
                    return NO_XATTRS
                if error.errno not in _XATTRS_RACED:
                    raise self._unreadable(error, key, path) from error
                ctimes.add(_ctime(target))
                refused = error, key
            else:
                return self._share(tuple(found), path) if found else NO_XATTRS
        if len(ctimes) > 1:
            raise self._source.changed(path, "extended attributes changed")
        raise self._unreadable(*refused, path)

    def _unreadable(self, error: OSError, key: bytes | None, path: bytes) -> CfsError:
        """The error for attributes that cannot be listed, or for the one called *key* that is, but cannot be read."""
        if key is None:
            failure = self._source.failed(error, "cannot list extended attributes", path)
        else:
            failure = self._source.failed(error, f"cannot read extended attribute {shown_path(key)}", path)
        if not isinstance(failure, SourceChanged):
            all_out, others_out = "{} leaves all extended attributes out", "{} those that are not of users"
            failure.hint = (
                Phrase(all_out, Remedy.NO_XATTRS)
                if key is None or key.startswith(b"user.")
                else Phrase(f"{all_out}, {others_out}", Remedy.NO_XATTRS, Remedy.USER_XATTRS)
            )
        return failure

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
                error.subject = self._source.name(path)
                raise
            self._shared[found] = shared
        return shared


def _ctime(target: bytes | int) -> int | None:
    """The time of the last change of *target*, ``None`` where it is gone or the file system may make times up."""
    try:
        fd = os.open(target, _LOOK) if isinstance(target, bytes) else os.dup(target)
        try:
            return os.fstat(fd).st_ctime_ns if numbers_of(fd) is not Numbers.INVENTED else None
        finally:
            close(fd)
    except OSError:
        return None


def list_names(directory: int) -> list[bytes]:
    """The names in *directory* but ``.`` and ``..``, in byte order. Raises ``OSError``."""
    return sorted(map(os.fsencode, os.listdir(directory)))


def statuses(directory: int, names: list[bytes]) -> list[NameStatus | None]:
    """Stat *names* in *directory*, without extended attributes; ``None`` for a name that cannot be looked up."""
    reads_xattrs = False
    return _pure.stat_names(directory, names, reads_xattrs, b"", (KINDS, Stamp, NO_XATTRS, {}, False, 0, None))


def is_there(directory: int, path: bytes, number: tuple[int, int]) -> bool:
    """Whether *path* below *directory*, which could not be opened, is there all the same, with the same *number*.

    Only where the kernel does not answer by itself: elsewhere it was gone for a moment.
    """
    try:
        fd = open_below(directory, path, _LOOK)
        try:
            status = os.fstat(fd)
            return (status.st_dev, status.st_ino) == number and numbers_of(fd) is Numbers.INVENTED
        finally:
            close(fd)
    except OSError:
        return False


class InodeReader:
    """Makes tree inodes from what the kernel says about names."""

    __slots__ = ("_source", "_use_epoch", "xattrs")

    def __init__(self, source: SourceRoot, *, policy: XattrPolicy, use_epoch: bool) -> None:
        self._source = source
        self._use_epoch = use_epoch
        self.xattrs = XattrReader(source, policy)

    def maker(self, links: int, recall: Recall | None = None) -> Maker:
        """What native functions need to make the ordinary ones of these inodes at once.

        *links* says which may be links: 0 none, 1 those with a link count over 1, 2 any; *recall* which files need not
        be read.
        """
        return KINDS, Stamp, NO_XATTRS, self.xattrs.known, self._use_epoch, links, recall

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
                rdev &= RDEV_MASK
                return Device(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, rdev=rdev)
            case stat.S_IFIFO:
                return Fifo(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case stat.S_IFSOCK:
                return Socket(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case kind:
                raise InputError(f"unknown kind of file {kind:#o}", subject=self._source.name(path))
