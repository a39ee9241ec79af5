"""Which names of a directory tree are hard links: names of one inode, as far as the file system can be believed.

Where inode numbers come from a disk, device and inode number tell, and what differs between two such names has
changed meanwhile. Elsewhere (user space, networks, layers) they only make candidates: those are looked at once more
when all names were met, because only then some file systems know their link counts, and their contents are compared
unless the kernel itself knows them as one inode. Nowhere are more names links of one inode than its link count says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cfstools.linux.files import close, open_below
from cfstools.linux.numbers import Look, file_handle, look
from cfstools.sources.inodes import RDEV_MASK, NameStatus, SourceRoot
from cfstools.tree import Device, Directory, HardLink, RegularFile, Symlink
from cfstools.tree.model import Leaf
from cfstools.verity import DEFAULT
from cfstools.verity.files import hash_fd

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_Number = tuple[int, int]  # device and inode


class Name(NamedTuple):
    """A name that may be a link, in *directory*, and the inode it is until that is known."""

    inode: Leaf
    directory: Directory
    parent: bytes
    name: bytes
    times: tuple[int, int]

    @property
    def path(self) -> bytes:
        """The path below the root of the source."""
        return self.parent + b"/" + self.name if self.parent else self.name


# An inode whose number can be believed, and what was said of it where it was met first.
Known = tuple[Leaf, NameStatus]


def is_link(known: Known, status: NameStatus, source: SourceRoot, path: bytes) -> bool:
    """Whether *path*, of which *status* is said and which has the number of *known*, is one more name of it.

    One inode can be met more often than it has names, through mounts: then these are another file's names. Raises
    :class:`SourceChanged` if what is said of it is not what was said before.
    """
    inode, before = known
    if before != status and _said(before) != _said(status):
        raise source.changed(path)
    return inode.nlink < status[1]


def _said(status: NameStatus) -> tuple[object, ...]:
    """The fields of a status that all names of one inode share; a change of attributes shows in its ctime."""
    return (*status[:5], *status[7:12], status[13])


class Doubts:
    """The names of one walk that may be links of each other, and have numbers that cannot be believed."""

    def __init__(self, source: SourceRoot) -> None:
        self._source = source
        # Most have one name only.
        self._names: dict[_Number, Name | list[Name]] = {}

    def add(self, number: _Number, name: Name) -> bool:
        """Remember a name whose *number* cannot be believed; whether it is the first one with it."""
        before = self._names.setdefault(number, name)
        if before is name:
            return True
        if isinstance(before, list):
            before.append(name)
        else:
            self._names[number] = [before, name]
        return False

    def settle(self, root_fd: int) -> list[RegularFile]:
        """Make links of the doubtful names that are; returns the files among them that still are to be read.

        These are the ones that :meth:`add` did not say to be first. Raises :class:`InputError` and
        :class:`SourceChanged`.
        """
        settling = _Settling(self._source, root_fd)
        unread: list[RegularFile] = []
        for number, names in self._names.items():
            if isinstance(names, list):
                settling.link(number, names)
                unread += [
                    name.inode
                    for name in names[1:]
                    if name.directory.entries[name.name] is name.inode
                    and type(name.inode) is RegularFile
                    and name.inode.size
                ]
        self._names.clear()
        return unread


class _Settling:
    """Looks at doubtful names once more."""

    def __init__(self, source: SourceRoot, root_fd: int) -> None:
        self._source = source
        self._root_fd = root_fd

    def link(self, number: _Number, names: list[Name]) -> None:
        """Make links of those of *names*, which all had this *number*, that are names of one inode."""
        looks = [(name, self._look(name)) for name in names]
        # A number that is another one by now tells nothing at all.
        looks = [(name, now) for name, now in looks if (now.device, now.inode) == number]
        # Times may be made up whenever somebody looks; then they tell nothing either.
        are_made_up = any(name.times != (now.mtime_ns, now.ctime_ns) for name, now in looks)
        alike: dict[object, list[Name]] = {}
        for name, _ in looks:
            alike.setdefault((*_traits(name.inode), None if are_made_up else name.times), []).append(name)
        for group in alike.values():
            if len(group) > 1:
                self._link_alike(group)

    def _look(self, name: Name) -> Look:
        """What is said of *name* now. Raises :class:`SourceChanged` if that is another file."""
        with self._opened(name, _LOOK) as fd:
            now = look(fd)
        inode = name.inode
        size = now.size if type(inode) is RegularFile else None
        rdev = now.rdev & RDEV_MASK if type(inode) is Device else None
        if (now.mode, now.uid, now.gid, size, rdev) != _traits(inode)[:5]:
            raise self._source.changed(name.path)
        return now

    def _link_alike(self, names: list[Name]) -> None:
        """Make links of those of *names*, of which the same is said, that have the same contents."""
        count = 0
        by_handle: dict[object, list[Name]] = {}
        for name in names:
            with self._opened(name, _LOOK) as fd:
                # Some file systems count a link once its name was looked at: by now all of them were.
                count = max(count, look(fd).nlink)
                by_handle.setdefault(file_handle(fd) or id(name), []).append(name)
        if count < 2:
            return
        for same in self._same_contents(names, list(by_handle.values())):
            for first in range(0, len(same), count):
                primary, *others = same[first : first + count]
                for name in others:
                    primary.inode.nlink += 1
                    name.directory.entries[name.name] = HardLink(primary.inode)

    def _same_contents(self, names: list[Name], parts: list[list[Name]]) -> Iterable[list[Name]]:
        """*names* by their contents; those of one of *parts* are known to have the same."""
        if len(parts) == 1 or type(names[0].inode) is not RegularFile or not names[0].inode.size:
            return [names]
        digests = {id(name): digest for part in parts for digest in [self._digest(part[0])] for name in part}
        found: dict[bytes, list[Name]] = {}
        for name in names:
            found.setdefault(digests[id(name)], []).append(name)
        return found.values()

    def _digest(self, name: Name) -> bytes:
        with self._opened(name, _READ) as fd:
            try:
                digest, size = hash_fd(fd, DEFAULT)
            except OSError as error:
                raise self._source.failed(error, "cannot read", name.path) from error
        if type(name.inode) is RegularFile and size != name.inode.size:
            raise self._source.changed(name.path)
        return digest

    @contextmanager
    def _opened(self, name: Name, flags: int) -> Iterator[int]:
        what = "cannot open" if flags == _READ else "cannot look at"
        try:
            fd = open_below(self._root_fd, name.path, flags)
            try:
                yield fd
            finally:
                close(fd)
        except OSError as error:
            raise self._source.failed(error, what, name.path) from error


def _traits(inode: Leaf) -> tuple[object, ...]:
    """The attributes of an inode but its times; equal extended attributes are one mapping."""
    return (
        inode.mode,
        inode.uid,
        inode.gid,
        inode.size if type(inode) is RegularFile else None,
        inode.rdev if type(inode) is Device else None,
        inode.target if type(inode) is Symlink else None,
        id(inode.xattrs),
    )
