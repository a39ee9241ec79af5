"""A tree as files in a file system in memory, with contents by reference, for the overlay of users.

Every file is empty and as long as its contents; attributes of overlayfs say which object below the stores has them.
All names are made by single components, from a working directory that only the thread at work has, so neither the depth
of the tree nor what its names say matters.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from cfstools.errors import ImageError, Interrupted, os_error
from cfstools.formats.composefs.overlay_xattrs import ACL_KEYS, METACOPY_HEADERS
from cfstools.formats.escape import escape_text
from cfstools.linux.files import close, write_all
from cfstools.linux.namespaces import known_ids, own_directory
from cfstools.report import LeftOut
from cfstools.text import shown_path
from cfstools.tree import Device, Directory, Entry, External, HardLink, Inode, Leaf, RegularFile, Symlink, Xattrs
from cfstools.verity import object_path

OWNERS = "owners"
DEVICES = "devices"
SET_ID_BITS = "set-ID bits"
TIMES = "modification times"
ACLS = "access control lists"
CAPABILITIES = "file capabilities"

_METACOPY = b"user.overlay.metacopy"
_REDIRECT = b"user.overlay.redirect"
# Attributes of the image that the overlay would act on; with one more "overlay." in them it shows them as they were.
_ACTIVE = b"user.overlay."
_ESCAPED = b"user.overlay.overlay."
_WHITEOUT = _ESCAPED + b"whiteout"
_WHITEOUTS = _ESCAPED + b"whiteouts"
_CAPABILITY = b"security.capability"
_HEADERS = {algorithm.digest_size: header for algorithm, header in METACOPY_HEADERS.items()}

_RESERVED = frozenset({b"", b".", b".."})
_PRIVATE = 0o700
_PERMISSIONS = 0o7777
_SPECIAL_BITS = 0o7000
_NO_ID = 0xFFFFFFFF
_NANO = 1_000_000_000
_COMMON_TIMES = range(-(1 << 31), 1 << 33)
# What the kernel says of attributes that this process, this kind of file or this file system cannot have.
_NO_XATTR = frozenset(
    {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.E2BIG, errno.ENODATA}
)
_LONGEST_SHOWN = 4096


class _Owner(NamedTuple):
    """The owner to set, whether that is another than the image says, and the mode bits that must go."""

    uid: int
    gid: int
    lost: bool
    forbidden: int


def materialise(root: Directory, directory: int, *, linked: frozenset[Leaf]) -> tuple[LeftOut, ...]:
    """Make everything in *root* below the open, empty *directory*, and give that the attributes of the root.

    *linked* are the inodes of the tree with several names. Returns what could not be made as the image says. Raises
    ImageError for names that no directory can have, InputError and Exhausted for what the file system refuses.
    """
    work = _Materialiser(linked)
    try:
        own_directory(directory, lambda: work.run(root))
    except OSError as error:
        raise os_error(error, "cannot make the tree in memory", where=work.where) from error
    except ValueError as error:  # from Python, before any system call
        raise ImageError("a name or target holds a NUL byte", where=work.where) from error
    finally:
        work.stopped = True
    return work.left_out


class _Materialiser:
    """One tree being made; all paths are relative to the working directory of its thread."""

    def __init__(self, linked: frozenset[Leaf]) -> None:
        self._linked = linked
        # Names of linked inodes in the staging directory, empty for what was left out.
        self._numbers: dict[Leaf, bytes] = {}
        self._staging = -1
        self._with_whiteouts: set[Directory] = set()
        self._own = (os.geteuid(), os.getegid())
        self._known_uids, self._known_gids = known_ids("uid"), known_ids("gid")
        self._several = sum(map(len, self._known_uids)) > 1
        # File capabilities are those of the root of a namespace: without one there are none.
        self._has_root = any(0 in known for known in self._known_uids)
        self._owners: dict[tuple[int, int], _Owner] = {}
        self._noted: dict[str, tuple[int, str | None]] = {}
        # The names from the root to the working directory, and the one at work.
        self._trail: list[bytes] = []
        self._name = b""
        self.stopped = False

    @property
    def where(self) -> str | None:
        """The name at work as text; ``None`` for a path that is too long to be shown."""
        path = b"/" + b"/".join([*self._trail[-_LONGEST_SHOWN:], self._name])
        return escape_text(path) if len(path) <= _LONGEST_SHOWN else None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What could not be made, in the order in which it was met."""
        return tuple(LeftOut(what=what, count=count, first=first) for what, (count, first) in self._noted.items())

    def _leave_out(self, what: str) -> None:
        count, first = self._noted.get(what) or (0, self.where)
        self._noted[what] = (count + 1, first)

    def run(self, root: Directory) -> None:
        """Make the tree in the working directory."""
        staging = self._make_staging(root)
        directories = [root]
        left: list[list[tuple[bytes, Directory]]] = []
        pending = self._fill(root)
        while True:
            if pending:
                name, directory = pending.pop()
                os.mkdir(name, _PRIVATE)
                os.chdir(name)
                self._trail.append(name)
                directories.append(directory)
                left.append(pending)
                pending = self._fill(directory)
            elif left:
                os.chdir(b"..")
                self._name = self._trail.pop()
                self._finish_directory(self._name, directories.pop())
                pending = left.pop()
            else:
                break
        self._remove_staging(staging)
        self._name = b""
        self._finish_directory(b".", root)

    def _make_staging(self, root: Directory) -> bytes:
        """A directory with a name for each inode that needs several: links are made from there."""
        if not self._linked:
            return b""
        number = 0
        while (name := b".links-%d" % number) in root.entries:
            number += 1
        os.mkdir(name, _PRIVATE)
        self._staging = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return name

    def _remove_staging(self, name: bytes) -> None:
        if self._staging >= 0:
            for number in filter(None, self._numbers.values()):
                os.unlink(number, dir_fd=self._staging)
            close(self._staging)
            os.rmdir(name)

    def _fill(self, directory: Directory) -> list[tuple[bytes, Directory]]:
        """Make all names of *directory* but those of directories, which are returned."""
        if self.stopped:
            raise Interrupted("interrupted")
        entries = directory.entries
        _check_names(entries)
        directories = []
        linked = self._linked
        for name, entry in entries.items():
            self._name = name
            if type(entry) is Directory:
                directories.append((name, entry))
            elif type(entry) is RegularFile and entry not in linked:
                self._file(name, entry)
            else:
                self._leaf(name, entry, directory)
        return directories

    def _leaf(self, name: bytes, entry: Entry, parent: Directory) -> None:
        """Make a file, link, device, FIFO or socket, or a further name of one."""
        inode = entry.inode if isinstance(entry, HardLink) else entry
        assert not isinstance(inode, Directory)
        if inode not in self._linked:
            self._make(name, inode, parent)
            return
        number = self._numbers.get(inode)
        if number:
            os.link(number, name, src_dir_fd=self._staging, follow_symlinks=False)
        elif number is None:
            number = b"%d" % len(self._numbers) if self._make(name, inode, parent) else b""
            self._numbers[inode] = number
            if number:
                os.link(name, number, dst_dir_fd=self._staging, follow_symlinks=False)
        if isinstance(inode, Device) and inode.is_whiteout:
            self._with_whiteouts.add(parent)

    def _make(self, name: bytes, inode: Leaf, parent: Directory) -> bool:
        """Make the first name of *inode*; whether that could be done."""
        match inode:
            case RegularFile():
                self._file(name, inode)
            case Symlink():
                os.symlink(inode.target, name)
                self._finish_symlink(name, inode)
            case Device() if inode.is_whiteout:
                os.mknod(name, stat.S_IFREG | inode.mode & _PERMISSIONS)
                os.setxattr(name, _WHITEOUT, b"")
                self._with_whiteouts.add(parent)
                self._finish(name, inode)
            case Device():
                try:
                    os.mknod(name, inode.mode, inode.rdev)
                except PermissionError:
                    self._leave_out(DEVICES)
                    return False
                self._finish(name, inode)
            case _:
                os.mknod(name, inode.mode)
                self._finish(name, inode)
        return True

    def _file(self, name: bytes, inode: RegularFile) -> None:
        content = inode.content
        os.mknod(name, stat.S_IFREG | inode.mode & _PERMISSIONS)
        if type(content) is External:
            if inode.size:
                os.truncate(name, inode.size)
            digest, payload = content.digest, content.payload
            os.setxattr(name, _METACOPY, b"" if digest is None else _HEADERS[len(digest)] + digest)
            os.setxattr(name, _REDIRECT, b"/" + (payload or object_path(digest or b"")))
        elif content:
            assert isinstance(content, bytes)
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
        self._finish(name, inode)

    # Attributes

    def _finish(self, name: bytes, inode: Inode) -> None:
        """Give *name*, made with the permissions of *inode* and no symbolic link, the rest."""
        if inode.xattrs or inode.mode & _SPECIAL_BITS or (inode.uid, inode.gid) != self._own:
            owner = self._set_owner(name, inode)
            if inode.xattrs:
                self._set_xattrs(name, inode.xattrs, follow=True)
            # After the owner and the attributes: both change the mode.
            forbidden = inode.mode & owner.forbidden
            if forbidden:
                self._leave_out(SET_ID_BITS)
            if inode.xattrs or inode.mode & _SPECIAL_BITS:
                os.chmod(name, inode.mode & _PERMISSIONS & ~forbidden)
        nsec = inode.mtime_nsec
        if nsec >= _NANO or inode.mtime_sec not in _COMMON_TIMES:
            self._set_odd_time(name, inode)
        else:
            time = inode.mtime_sec * _NANO + nsec
            os.utime(name, ns=(time, time))

    def _finish_directory(self, name: bytes, directory: Directory) -> None:
        if directory in self._with_whiteouts:
            os.setxattr(name, _WHITEOUTS, b"")
        if not directory.xattrs and not directory.mode & _SPECIAL_BITS:
            os.chmod(name, directory.mode & _PERMISSIONS)
        self._finish(name, directory)

    def _finish_symlink(self, name: bytes, inode: Symlink) -> None:
        if (inode.uid, inode.gid) != self._own:
            self._set_owner(name, inode)
        if inode.xattrs:
            self._set_xattrs(name, inode.xattrs, follow=False)
        self._set_odd_time(name, inode)

    def _set_odd_time(self, name: bytes, inode: Inode) -> None:
        """Set a time that the file system may cut, or that of a symbolic link."""
        time = inode.mtime_sec * _NANO + min(inode.mtime_nsec, _NANO - 1)
        os.utime(name, ns=(time, time), follow_symlinks=False)
        if inode.mtime_nsec >= _NANO or os.lstat(name).st_mtime_ns != time:
            self._leave_out(TIMES)

    def _set_owner(self, name: bytes, inode: Inode) -> _Owner:
        wanted = (inode.uid, inode.gid)
        owner = self._owners.get(wanted)
        if owner is None:
            owner = self._owners[wanted] = self._find_owner(*wanted)
        if owner.lost:
            self._leave_out(OWNERS)
        if (owner.uid, owner.gid) != self._own:
            os.chown(name, owner.uid, owner.gid, follow_symlinks=False)
        return owner

    def _find_owner(self, uid: int, gid: int) -> _Owner:
        has_uid, has_gid = uid != _NO_ID, gid != _NO_ID
        has_uid = has_uid and any(uid in known for known in self._known_uids)
        has_gid = has_gid and any(gid in known for known in self._known_gids)
        # A program must not run as somebody it was never meant for. With one id, everybody is the same.
        forbidden = (0 if has_uid else stat.S_ISUID) | (0 if has_gid else stat.S_ISGID) if self._several else 0
        lost = not (has_uid and has_gid)
        return _Owner(uid if has_uid else self._own[0], gid if has_gid else self._own[1], lost, forbidden)

    def _set_xattrs(self, name: bytes, xattrs: Xattrs, *, follow: bool) -> None:
        for key, value in xattrs.items():
            if key == _CAPABILITY and not self._has_root:
                self._leave_out(CAPABILITIES)
                continue
            made = _ESCAPED + key[len(_ACTIVE) :] if key.startswith(_ACTIVE) else key
            try:
                os.setxattr(name, made, value, follow_symlinks=follow)
            except ValueError:  # a NUL byte
                self._leave_out(_kind_of(key))
            except OSError as error:
                if error.errno not in _NO_XATTR:
                    raise
                self._leave_out(_kind_of(key))


def _kind_of(key: bytes) -> str:
    return ACLS if key in ACL_KEYS else f"{shown_path(key.partition(b'.')[0])} attributes"


def _check_names(entries: Collection[bytes]) -> None:
    """Raise ImageError unless each name is a single component of a path."""
    together = b"/".join(entries)
    if entries and (together.count(b"/") != len(entries) - 1 or not _RESERVED.isdisjoint(entries)):
        raise ImageError("a directory holds a name that is none")
