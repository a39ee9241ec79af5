"""Make one inode on disk: contents, then owner, extended attributes, mode and time, so that none resets another.

Names are made below open directories that nobody else may enter, and only where there is nothing yet. What a name
got is opened, compared with what was made, and given its attributes through the descriptor alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import NamedTuple

from cfstools.errors import Interrupted, Phrase, Remedy, Unsupported, os_error
from cfstools.linux import files, pinned
from cfstools.progress import SILENT, Stage
from cfstools.text import shown_path
from cfstools.tree import NO_XATTRS, Xattrs
from cfstools.tree.xattrs import XattrPolicy
from cfstools.values import Value
from cfstools.view.contents import Contents
from cfstools.view.nodes import Attributes, Node, View

OWNERS = "owners"
SET_ID_BITS = "setuid and setgid bits"
DEVICES = "device nodes"
TIMES = "modification times"

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE = 0o600
_SET_ID = stat.S_ISUID | stat.S_ISGID
_UNCHANGED = 0xFFFFFFFF  # as an owner it means "leave it as it is" to the kernel
_NANO = 1_000_000_000
# Every file system with times holds these seconds; beyond, the kernel silently cuts them to what it can store.
_COMMON_TIMES = range(-(1 << 31), 1 << 31)
_PRIVILEGED = (b"trusted.", b"security.")
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOENT, errno.EOPNOTSUPP})
_NO_XATTR = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP})


class CopyMode(Enum):
    """How contents that are objects get into the files made of them."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    COPY = "copy"


class InodeOptions(Value):
    """Which attributes are put on disk, and how contents are. ``AUTO`` clones where possible and copies elsewhere."""

    contents: CopyMode = CopyMode.AUTO
    xattrs: XattrPolicy = XattrPolicy.ALL
    owners: bool = True
    devices: bool = True


@dataclass
class Tally:
    """Counts of what was done, and of what could not be put on disk, with the first path of each kind."""

    done: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    absent: set[Node] = field(default_factory=set)

    def leave_out(self, what: str, path: bytes, times: int = 1) -> None:
        """Note something that is not on disk."""
        count, first = self.left_out.get(what, (0, path))
        self.left_out[what] = (count + times, first)

    def add(self, other: Tally) -> None:
        """Add what *other* counted later than this one."""
        self.done.update(other.done)
        self.absent |= other.absent
        for what, (count, first) in other.left_out.items():
            self.leave_out(what, first, count)


class Spot(NamedTuple):
    """Where an inode is made: as *name* in the open directory *dirfd*; *path* is that in the image."""

    dirfd: int
    name: bytes
    path: bytes


class _Given(NamedTuple):
    """The attributes that an inode is given on disk; without ``owner`` it keeps that of new files."""

    owner: tuple[int, int] | None
    mode: int
    xattrs: Xattrs
    time_ns: int
    checks_time: bool


class InodeWriter:
    """Makes inodes of *view* on disk; used from several threads."""

    def __init__(self, view: View, options: InodeOptions, progress: Stage = SILENT) -> None:
        self._view = view
        self._options = options
        self._progress = progress
        self._accepts = options.xattrs.accepts
        self._user = os.geteuid()
        self._groups = frozenset({*os.getgroups(), os.getegid()})
        # File systems whose objects cannot be cloned.
        self._no_clones: set[int] = set()
        self.stopped = False

    def advance(self, amount: int) -> None:
        """Count so many bytes as copied. Raises Interrupted if the others have stopped."""
        if self.stopped:
            raise Interrupted("interrupted")
        self._progress.advance(amount)

    def make(self, spot: Spot, node: Node, tally: Tally) -> None:
        """Make *node*, which is no directory. Raises ``OSError`` for what the file system refuses."""
        attributes = self._view.attributes(node)
        kind = stat.S_IFMT(attributes.mode)
        target = None
        if kind == stat.S_IFREG:
            self._file(spot, node, attributes, tally)
            tally.done["files"] += 1
            return
        if kind == stat.S_IFLNK:
            target = self._view.target(node)
            os.symlink(target, spot.name, dir_fd=spot.dirfd)
            tally.done["symlinks"] += 1
        elif _is_device(kind):
            if not self._device(spot, attributes, tally):
                tally.absent.add(node)
                return
            tally.done["special_files"] += 1
        else:
            os.mknod(spot.name, kind | _PRIVATE, dir_fd=spot.dirfd)
            tally.done["special_files"] += 1
        self._finish_name(spot, attributes, target, tally)

    def _device(self, spot: Spot, inode: Attributes, tally: Tally) -> bool:
        if not self._options.devices:
            return False
        # Whiteouts are the one kind that anybody may make, since Linux 5.8.
        if not self._user or (inode.rdev == 0 and stat.S_ISCHR(inode.mode)):
            try:
                os.mknod(spot.name, stat.S_IFMT(inode.mode) | _PRIVATE, inode.rdev, dir_fd=spot.dirfd)
            except PermissionError as error:
                if not self._user:
                    hint = Phrase("{} leaves them out", Remedy.NO_DEVICES)
                    raise os_error(error, "cannot make a device node", hint=hint) from error
            else:
                return True
        tally.leave_out(DEVICES, spot.path)
        return False

    # Contents

    def _file(self, spot: Spot, node: Node, attributes: Attributes, tally: Tally) -> None:
        with self._view.open(node, spot.path) as contents:
            noted = Tally()
            given = self._given(spot.path, attributes, noted)
            if self._options.contents is CopyMode.HARDLINK and self._link(spot, contents, given, tally):
                tally.add(noted)
                return
            fd = os.open(spot.name, _NEW_FILE, _PRIVATE, dir_fd=spot.dirfd)
            try:
                self._fill(fd, contents, tally)
                self._finish_open(fd, spot.path, given, noted)
            finally:
                os.close(fd)
            tally.add(noted)

    def _fill(self, fd: int, contents: Contents, tally: Tally) -> None:
        if not contents.in_image and self._clone(contents.fileno(), fd):
            contents.check(fd, progress=self._progress)
            tally.done["bytes_cloned"] += contents.size
            return
        if contents.has_holes:
            contents.copy_to(fd, progress=_Stoppable(self))
        else:
            for piece in contents.pieces():
                files.write_all(fd, piece)
                self.advance(len(piece))
        tally.done["bytes_copied"] += contents.size

    def _clone(self, source: int | None, fd: int) -> bool:
        wanted = self._options.contents
        if wanted is CopyMode.COPY:
            return False
        if source is not None and (device := os.fstat(source).st_dev) not in self._no_clones:
            if files.reflink(source, fd):
                return True
            self._no_clones.add(device)
        if wanted is CopyMode.REFLINK:
            raise Unsupported(
                "objects cannot be cloned there", hint="that needs store and directory on one btrfs or XFS"
            )
        return False

    def _link(self, spot: Spot, contents: Contents, given: _Given, tally: Tally) -> bool:
        """Make the name a hard link to the object, if that has the attributes already: they are never changed."""
        source = contents.fileno()
        if source is None or not self._fits(source, given):
            return False
        contents.check(progress=self._progress)
        try:
            files.link_tmpfile(source, spot.dirfd, spot.name)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        if os.fstat(source).st_mtime_ns != given.time_ns:
            tally.leave_out(f"{TIMES} of hard-linked objects", spot.path)
        tally.done["bytes_linked"] += contents.size
        return True

    def _fits(self, fd: int, given: _Given) -> bool:
        status = os.fstat(fd)
        owner = given.owner or (self._user, status.st_gid)
        if status.st_mode & 0o7777 != given.mode or (status.st_uid, status.st_gid) != owner:
            return False
        try:
            has = {os.fsencode(key) for key in os.listxattr(fd)}
        except OSError:  # the file system has no extended attributes
            has = set()
        wanted = given.xattrs
        # A label that the system gives to every file would be on a copy as well.
        has -= {b"security.selinux"} - wanted.keys()
        return has == wanted.keys() and all(os.getxattr(fd, key) == value for key, value in wanted.items())

    # Attributes

    def _given(self, path: bytes, inode: Attributes, tally: Tally) -> _Given:
        owner = self._owner(inode)
        if owner is None and self._options.owners:
            tally.leave_out(OWNERS, path)
        mode = inode.mode & 0o7777
        # A program must not run as somebody it was never meant for.
        if mode & _SET_ID and owner is None:
            mode &= ~_SET_ID
            tally.leave_out(SET_ID_BITS, path)
        nsec = min(inode.mtime_nsec, _NANO - 1)
        checks_time = inode.mtime_sec not in _COMMON_TIMES
        if nsec != inode.mtime_nsec:
            tally.leave_out(TIMES, path)
        xattrs = self._xattrs(path, inode.xattrs, tally) if inode.xattrs else NO_XATTRS
        time_ns = inode.mtime_sec * _NANO + nsec
        return _Given(owner, mode, xattrs, time_ns, checks_time)

    def _owner(self, inode: Attributes) -> tuple[int, int] | None:
        """The inode's owner and group, ``None`` when they cannot be given or are not wanted."""
        owner = (inode.uid, inode.gid)
        if not self._options.owners or _UNCHANGED in owner:
            return None
        if self._user and (inode.uid != self._user or inode.gid not in self._groups):
            return None
        return owner

    def _xattrs(self, path: bytes, xattrs: Xattrs, tally: Tally) -> Xattrs:
        kept: Xattrs = {key: value for key, value in xattrs.items() if self._accepts(key)}
        if self._user:
            for key in kept:
                if key.startswith(_PRIVILEGED):
                    _leave_out_xattr(tally, key, path)
            kept = {key: value for key, value in kept.items() if not key.startswith(_PRIVILEGED)}
        return kept

    def finish_directory(self, fd: int, path: bytes, node: Node, tally: Tally) -> None:
        """Give a directory, of which all contents are there, its attributes."""
        self._finish_open(fd, path, self._given(path, self._view.attributes(node), tally), tally)

    def _finish_open(self, fd: int, path: bytes, given: _Given, tally: Tally) -> None:
        owner, mode, xattrs, time_ns, checks_time = given
        if owner is not None:
            self._chown(partial(os.chown, fd), owner)
        for key, value in xattrs.items():
            self._set_xattr(partial(os.setxattr, fd), key, value, path, tally)
        os.chmod(fd, mode)
        os.utime(fd, ns=(time_ns, time_ns))
        if checks_time and os.fstat(fd).st_mtime_ns != time_ns:
            tally.leave_out(TIMES, path)

    def _finish_name(self, spot: Spot, inode: Attributes, target: bytes | None, tally: Tally) -> None:
        """Give attributes to a link, device, FIFO or socket, which must not be opened for reading."""
        fd = pinned.pin(spot.dirfd, spot.name)
        try:
            self._compare(fd, spot.dirfd, inode, target)
            self._finish_pinned(fd, spot.path, inode, tally)
        finally:
            files.close(fd)

    def _compare(self, fd: int, dirfd: int, inode: Attributes, target: bytes | None) -> None:
        """Raise OSError unless *fd* is what was just made in *dirfd* for *inode*; *target* is that of a link."""
        status = os.fstat(fd)
        same = (
            stat.S_IFMT(status.st_mode) == stat.S_IFMT(inode.mode)
            and status.st_nlink == 1
            # Others cannot make anything in our name, but where new files have an owner of the file system's choice.
            and (status.st_uid == self._user or status.st_uid == os.fstat(dirfd).st_uid)
            and (not _is_device(inode.mode) or status.st_rdev == inode.rdev)
            and (target is None or os.readlink(b"", dir_fd=fd) == target)
        )
        if not same:
            raise OSError(errno.EBUSY, "it was replaced while it was made")

    def _finish_pinned(self, fd: int, path: bytes, inode: Attributes, tally: Tally) -> None:
        owner, mode, xattrs, time_ns, checks_time = self._given(path, inode, tally)
        if owner is not None:
            self._chown(partial(pinned.chown, fd), owner)
        for key, value in xattrs.items():
            self._set_xattr(partial(pinned.setxattr, fd), key, value, path, tally)
        if not stat.S_ISLNK(inode.mode):
            pinned.chmod(fd, mode)
        pinned.utime(fd, time_ns)
        if checks_time and os.fstat(fd).st_mtime_ns != time_ns:
            tally.leave_out(TIMES, path)

    @staticmethod
    def _chown(chown: Callable[[int, int], object], owner: tuple[int, int]) -> None:
        try:
            chown(*owner)
        except OSError as error:
            # In a user namespace, numbers that nobody has there; of file systems, those that have no owners.
            what = f"cannot give it to user {owner[0]} and group {owner[1]}"
            hint = Phrase("{} leaves owners out", Remedy.NO_OWNERS)
            raise os_error(error, what, hint=hint) from error

    def _set_xattr(
        self, setxattr: Callable[[bytes, bytes], object], key: bytes, value: bytes, path: bytes, tally: Tally
    ) -> None:
        try:
            setxattr(key, value)
        except OSError as error:
            if self._user and error.errno in _NO_XATTR:
                _leave_out_xattr(tally, key, path)
                return
            text = shown_path(key)
            hint = Phrase("{} leaves extended attributes out", Remedy.NO_XATTRS)
            raise os_error(error, f"cannot set extended attribute {text}", hint=hint) from error


class _Stoppable:
    """The progress of one large copy, counted in the writer's stage."""

    def __init__(self, writer: InodeWriter) -> None:
        self.advance = writer.advance

    def finish(self) -> None:
        """Nothing: the writer's stage goes on."""


def _is_device(mode: int) -> bool:
    return stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK)


def _leave_out_xattr(tally: Tally, key: bytes, path: bytes) -> None:
    namespace = shown_path(key.partition(b".")[0])
    tally.leave_out(f"extended attributes {namespace}.*", path)
