"""A directory as the source of an image: its tree as the reference tool reads it, file contents on demand.

Names are looked up one at a time below open directories and no symbolic link is ever followed, so that nothing a
user of the tree does to it meanwhile leads the reader out of it; what changes under way is an error.
Rules: docs/directories.md. Unlike the reference, hard links are kept.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from cfstools import native
from cfstools.errors import InputError, LimitExceeded, Unsupported, os_error
from cfstools.linux.files import MAX_PATH, close
from cfstools.linux.numbers import Numbers, makes_numbers_up, numbers_of, was_mounted
from cfstools.native import _pure
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.sources.files import DirectorySource
from cfstools.sources.inodes import InodeReader, NameStatus, SourceRoot, is_there, list_names
from cfstools.sources.links import Doubts, Known, Name, is_link
from cfstools.sources.recheck import Listing
from cfstools.sources.source import WalkOptions
from cfstools.text import shown_path
from cfstools.tree import NO_XATTRS, Directory, Entry, External, HardLink, RegularFile, Symlink, Unread
from cfstools.tree.globs import GlobSet
from cfstools.tree.model import Leaf

if TYPE_CHECKING:
    from cfstools.sources.source import FileReader
    from cfstools.store import Blobs

MAX_OPEN = 256
"""How many directories on the way down are held open; further up they are found again through ``..``."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


_LOOK_TOGETHER = 1024


def open_directory(
    path: bytes,
    *,
    options: WalkOptions | None = None,
    reader: Callable[[Blobs], FileReader] | None = None,
    progress: Progress = SILENT,
) -> DirectorySource:
    """Walk the directory at *path* and return its tree, with file contents still unread.

    The root of the tree is the directory itself. The names of one inode are hard links: the first, depth-first in
    byte order, is primary and ``nlink`` is their number. What *reader* gives is handed each file that is to be read
    soon after it is met, in tree order, and is stopped if the walk fails.

    Raises :class:`InputError` for what cannot be read,
    :class:`SourceChanged` for what changes or vanishes meanwhile, :class:`TreeError` for more extended attributes
    than an inode can have, :class:`LimitExceeded` for paths over ``MAX_PATH`` bytes, :class:`UsageError` for a
    malformed pattern and :class:`Unsupported` without ``/proc``, which extended attributes are read through.
    """
    options = options or WalkOptions()
    globs = GlobSet(options.exclude)
    fd = _open_root(path)
    source = DirectorySource(path, fd, Directory(mode=stat.S_IFDIR), use_epoch=options.use_epoch)
    files: FileReader | None = None
    try:
        files = reader(source) if reader is not None else None
        with running_stage(progress, "walk", None, "entry") as stage:
            source.root = _Walk(SourceRoot(path), options, globs, files, stage).run(fd)
    except BaseException:
        # Threads must not read through a descriptor that is closed, and perhaps given to something else.
        if files is not None:
            files.close()
        close(fd)
        raise
    return source


def _add_none(_files: Sequence[RegularFile]) -> None:
    pass


def _open_root(path: bytes) -> int:
    subject = shown_path(path)
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            hint = "add a trailing slash to read the directory it points to"
            raise InputError("is a symbolic link, not a directory", subject=subject, hint=hint)
        if not stat.S_ISDIR(mode):
            raise InputError("is not a directory", subject=subject)
        return os.open(path, _DIRECTORY)
    except ValueError:
        raise InputError("a path cannot contain a zero byte", subject=subject) from None
    except OSError as error:
        raise os_error(error, "cannot open", subject=subject) from error


class _Frame:
    """An open directory of the walk, with its pending names. ``fd`` is -1 while it is not held open."""

    __slots__ = ("directory", "fd", "found", "listing", "numbers", "path", "reads_xattrs", "status", "true_device")

    def __init__(self, path: bytes, fd: int, status: os.stat_result) -> None:
        self.path = path
        self.fd = fd
        self.status = status
        self.directory = Directory(mode=status.st_mode)
        self.found: Iterator[tuple[bytes, NameStatus | Leaf | None]] = iter(())
        self.reads_xattrs = False
        self.numbers = Numbers.TRUE
        self.listing: Listing | None = None  # where times do not tell whether it changed
        self.true_device = -1  # that of the directory, where its inode numbers are true


class _Walk:
    """One walk over one directory."""

    def __init__(
        self,
        source: SourceRoot,
        options: WalkOptions,
        globs: GlobSet,
        files: FileReader | None,
        stage: Stage,
    ) -> None:
        self._source = source
        self._globs = globs
        self._files = files
        self._add = files.add if files is not None else _add_none
        self._recall = files.recall if files is not None else None
        self._hardlinks = options.hardlinks
        self._use_epoch = options.use_epoch
        self._skip_devices = options.skip_devices
        self._inodes = InodeReader(source, policy=options.xattrs, use_epoch=options.use_epoch)
        self._read_xattrs = self._inodes.xattrs.read
        words = self._recall.words if self._recall is not None else None
        self._maker = self._inodes.maker(int(options.hardlinks), words)
        # Where any name may be a link, whatever its link count says now.
        self._wary_maker = self._inodes.maker(2 if options.hardlinks else 0)
        self._advance = stage.advance
        self._met: list[RegularFile] = []
        self._stack: list[_Frame] = []
        self._first_open = 0
        self._known: dict[tuple[int, int], Known] = {}
        self._doubts = Doubts(source)
        self._xattr_devices: dict[int, bool] = {}
        self._numbers: dict[int, Numbers] = {}

    def run(self, fd: int) -> Directory:
        if self._inodes.xattrs.wanted:
            self._need_proc(fd)
        stack = self._stack
        try:
            root = self._enter(b".", b"", fd, None)
            while stack:
                frame = stack[-1]
                found = self._scan(frame)
                if found is None:
                    self._leave()
                else:
                    name, path, status = found
                    frame.directory.entries[name] = self._enter(name, path, frame.fd, status)
            self._add(self._doubts.settle(fd))
        finally:
            for frame in stack[self._first_open :]:
                close(frame.fd)
        return root

    def _need_proc(self, fd: int) -> None:
        try:
            os.stat(b"/proc/self/fd/%d" % fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Unsupported(
                "extended attributes are read through /proc, which is not mounted",
                subject=self._source.name(b""),
                hint="mount /proc, or leave extended attributes out",
            ) from error
        except OSError as error:
            raise self._source.failed(error, "cannot look up through /proc", b"") from error

    def _look(self, frame: _Frame, names: list[bytes]) -> Iterator[tuple[bytes, NameStatus | Leaf | None]]:
        """Take in ordinary files and links; yields each other name and what it is while *frame* is the innermost."""
        prefix = frame.path + b"/" if frame.path else b""
        entries = frame.directory.entries
        files = self._met
        maker = self._maker if frame.numbers is not Numbers.INVENTED else self._wary_maker
        for first in range(0, len(names), _LOOK_TOGETHER):
            some = names[first : first + _LOOK_TOGETHER]
            before = len(self._recall) if self._recall is not None else 0
            met: list[Any] = native.stat_names(frame.fd, some, frame.reads_xattrs, prefix, maker)
            if self._recall is not None and self._hand_on(prefix, some, met, len(self._recall) - before):
                entries.update(zip(some, met, strict=True))
                continue
            for name, inode in zip(some, met, strict=True):
                if type(inode) is RegularFile:
                    entries[name] = inode
                    if type(inode.content) is Unread:
                        files.append(inode)
                elif type(inode) is Symlink:
                    entries[name] = inode
                else:
                    yield name, inode
            # Let the files be read that were met so far.
            self._add(files)
            files.clear()

    def _hand_on(self, prefix: bytes, names: list[bytes], met: list[Any], count: int) -> bool:
        """Hand on those *count* of the files *met* that need not be read; whether these are all."""
        assert self._files is not None
        if count == len(met):
            self._files.add_recalled(prefix, names, met)
        elif count:
            recalled = [type(one) is RegularFile and type(one.content) is External for one in met]
            self._files.add_recalled(prefix, list(compress(names, recalled)), list(compress(met, recalled)))
        return count == len(met)

    def _scan(self, frame: _Frame) -> tuple[bytes, bytes, NameStatus] | None:
        """Take in what is in *frame* up to the next subdirectory, and return that; ``None`` at the end."""
        prefix = frame.path + b"/" if frame.path else b""
        for name, met in frame.found:
            path = prefix + name
            status = met if isinstance(met, tuple) else self._look_again(frame, name, path)
            if status[0] & 0o170000 == stat.S_IFDIR:
                if not self._globs.matches_directory(path, name):
                    return name, path, status
                continue
            entry = self._leaf(frame, name, path, status)
            if entry is not None:
                frame.directory.entries[name] = entry
        return None

    def _look_again(self, frame: _Frame, name: bytes, path: bytes) -> NameStatus:
        """Stat *name* once more: raise the error that explains why the first stat failed, or return its result."""
        fd = frame.fd
        what = "cannot look at"
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                what = "cannot read symbolic link"
                os.readlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno == errno.ENOENT and frame.numbers is Numbers.INVENTED and name in list_names(fd):
                raise self._source.refused(error, "is listed, but cannot be looked at", path) from error
            if error.errno != errno.EINVAL:
                raise self._source.failed(error, what, path) from error
        # The failure was transient; a replaced name is caught by the directory check in `_leave`.
        (met,) = _pure.stat_names(fd, [name], frame.reads_xattrs, b"", self._maker)
        if met is None:
            raise self._source.changed(path, "was replaced")
        record: NameStatus = met
        return record

    def _leaf(self, frame: _Frame, name: bytes, path: bytes, status: NameStatus) -> Entry | None:
        mode, links = status[0], status[1]
        if self._skip_devices and mode & 0o170000 in (stat.S_IFCHR, stat.S_IFBLK):
            return None
        may_be_link = self._hardlinks and (links > 1 or frame.numbers is Numbers.INVENTED)
        if may_be_link and (status[5] == frame.true_device or self._has_true_number(frame, name, path, status)):
            number = status[5:7]
            known = self._known.get(number)
            if known is not None and is_link(known, status, self._source, path):
                known[0].nlink += 1
                return HardLink(known[0])
            inode = self._inode(frame, name, path, status)
            self._known[number] = inode, status
        else:
            inode = self._inode(frame, name, path, status)
            if may_be_link:
                times = (status[8] * 10**9 + status[9], status[10] * 10**9 + status[11])
                if not self._doubts.add(status[5:7], Name(inode, frame.directory, frame.path, name, times)):
                    return inode
        if type(inode) is RegularFile and inode.size:
            self._met.append(inode)
        return inode

    def _inode(self, frame: _Frame, name: bytes, path: bytes, status: NameStatus) -> Leaf:
        pairs = status[12]
        if pairs is None:
            xattrs = NO_XATTRS
        elif isinstance(pairs, tuple):
            xattrs = self._inodes.xattrs.choose(pairs, path)
        else:
            xattrs = self._read_xattrs(b"/proc/self/fd/%d/%b" % (frame.fd, name), path)
        return self._inodes.leaf(status, path, xattrs)

    def _enter(self, name: bytes, path: bytes, dir_fd: int, met: NameStatus | None) -> Directory:
        """Open and list the directory *name*, which must still be the one that was *met*."""
        if len(path) > MAX_PATH:
            subject = f"{self._source.name(path[:200])}…"
            raise LimitExceeded(f"a path inside the source is longer than {MAX_PATH} bytes", subject=subject)
        what = "cannot open directory"
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
            self._stack.append(frame := _Frame(path, fd, os.fstat(fd)))
            number = (frame.status.st_dev, frame.status.st_ino)
            is_steady = met is None or met[5:7] == number or not makes_numbers_up(fd)
            if met is not None and is_steady and met[5:7] != number and not was_mounted(dir_fd, name, fd):
                raise self._source.changed(path, "was replaced")
            what = "cannot list directory"
            names = list_names(fd)
        except OSError as error:
            if met is not None and is_there(dir_fd, name, met[5:7]):
                raise self._source.refused(error, what, path) from error
            raise self._source.failed(error, what, path) from error
        self._advance(len(names) + (met is None))
        frame.reads_xattrs = self._reads_xattrs(frame)
        frame.numbers = self._numbers_of(fd, path, frame.status.st_dev)
        frame.true_device = frame.status.st_dev if frame.numbers is Numbers.TRUE else -1
        if self._use_epoch or frame.numbers is Numbers.INVENTED:
            frame.listing = Listing(names, frame.status)
        if met is not None and is_steady and (listing := self._stack[-2].listing) is not None:
            listing.subdirectories[name] = number
        xattrs = self._read_xattrs(fd, path, follow=True) if frame.reads_xattrs else NO_XATTRS
        frame.directory = self._inodes.directory(frame.status, xattrs)
        globs = self._globs
        if globs:
            prefix = path + b"/" if path else b""
            names = [name for name in names if not globs.matches(prefix + name, name)]
        frame.found = self._look(frame, names)
        self._hold_fewer()
        return frame.directory

    def _reads_xattrs(self, frame: _Frame) -> bool:
        """Whether to ask for attributes in this directory: wanted, and its file system has them."""
        if not self._inodes.xattrs.wanted:
            return False
        device = frame.status.st_dev
        known = self._xattr_devices.get(device)
        if known is None:
            known = self._xattr_devices[device] = self._inodes.xattrs.supported(frame.fd, frame.path)
        return known

    def _numbers_of(self, fd: int, path: bytes, device: int) -> Numbers:
        """What inode numbers are worth on *device*, which holds *fd*."""
        known = self._numbers.get(device)
        if known is None:
            try:
                known = self._numbers[device] = numbers_of(fd)
            except OSError as error:
                raise self._source.failed(error, "cannot look up the file system", path) from error
        return known

    def _has_true_number(self, frame: _Frame, name: bytes, path: bytes, status: NameStatus) -> bool:
        """Whether the number of *name* in *frame* can be believed, on which a file of another device may be mounted."""
        device = status[5]
        if frame.true_device < 0 or device in self._numbers:
            return frame.true_device >= 0 and self._numbers[device] is Numbers.TRUE
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=frame.fd)
        except OSError as error:
            raise self._source.failed(error, "cannot look at", path) from error
        try:
            return self._numbers_of(fd, path, device) is Numbers.TRUE
        finally:
            close(fd)

    def _hold_fewer(self) -> None:
        """Close the topmost open directory if there are too many; the stack has at most one too many."""
        if len(self._stack) - self._first_open > MAX_OPEN:
            frame = self._stack[self._first_open]
            self._first_open += 1
            close(frame.fd)
            frame.fd = -1

    def _leave(self) -> None:
        """Finish the innermost directory: it must be as it was when it was listed."""
        frame = self._stack[-1]
        try:
            before, now = frame.status, os.fstat(frame.fd)
        except OSError as error:
            raise self._source.failed(error, "cannot look up", frame.path) from error
        if (before.st_mtime_ns, before.st_ctime_ns) != (now.st_mtime_ns, now.st_ctime_ns):
            self._check_again(frame)
        if self._first_open and self._first_open == len(self._stack) - 1:
            self._reopen_parent(self._stack[-2], frame)
        self._stack.pop()
        close(frame.fd)

    def _check_again(self, frame: _Frame) -> None:
        """Other times of a directory mean that it changed, but where they do not tell: there its names are compared."""
        if frame.listing is None:
            raise self._source.changed(frame.path, "directory changed")
        xattrs = self._read_xattrs(frame.fd, frame.path, follow=True) if frame.reads_xattrs else NO_XATTRS
        if xattrs != frame.directory.xattrs:
            raise self._source.changed(frame.path, "directory changed")
        try:
            frame.listing.check(self._source, frame.path, frame.fd, frame.directory)
        except OSError as error:
            raise self._source.failed(error, "cannot list directory", frame.path) from error

    def _reopen_parent(self, parent: _Frame, child: _Frame) -> None:
        try:
            parent.fd = os.open(b"..", _DIRECTORY, dir_fd=child.fd)
            self._first_open -= 1
            moved = not os.path.samestat(os.fstat(parent.fd), parent.status) and not makes_numbers_up(parent.fd)
        except OSError as error:
            raise self._source.failed(error, "cannot open directory", parent.path) from error
        if moved:
            raise self._source.changed(parent.path, "was moved")
