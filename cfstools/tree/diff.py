"""Compare two trees: an iterative merge walk over both, names in byte order.

Contents are equal if their fs-verity digests are, no matter where each tree keeps them. Hard links are compared by
structure: which names share an inode in both trees.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from cfstools.tree.model import (
    Content,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Leaf,
    Located,
    RegularFile,
    Socket,
    Symlink,
    Unread,
)
from cfstools.tree.walk import inode_of, iter_directories
from cfstools.verity import ObjectId, digest_bytes, object_path


class Aspect(Enum):
    """What can differ between two entries of one name; the values are the words of options and reports."""

    TYPE = "type"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    CONTENT = "content"
    DIGEST = "digest"  # of two files of equal size only one has a digest: the contents may or may not differ
    PAYLOAD = "payload"  # contents are equal, or unknown on both sides, but another object or place is named
    TARGET = "target"
    RDEV = "rdev"
    SIZE = "size"  # of devices, fifos and sockets; only dump texts give them one
    LINKS = "links"


_NOTHING: frozenset[Aspect] = frozenset()


class NamePath:
    """A name with a reference to that of its parent; names in one directory share the chain above them.

    Storing a whole path for each name would take memory quadratic in the depth of the tree.
    """

    __slots__ = ("name", "parent")

    def __init__(self, parent: NamePath | None, name: bytes) -> None:
        self.parent = parent
        self.name = name

    @property
    def path(self) -> bytes:
        """The path from the root, with a slash in front."""
        names = []
        at: NamePath | None = self
        while at is not None:
            names.append(at.name)
            at = at.parent
        return b"/".join(names[::-1]) if len(names) > 1 else b"/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One name that differs: added (``old`` is ``None``), removed (``new`` is ``None``), or changed in ``aspects``.

    ``xattrs`` are the keys that were added, removed or changed, in byte order. ``old_first`` and ``new_first`` are the
    first name of the inode if this name is a hard link to it: of an added or removed name the first in its tree, and
    for :attr:`Aspect.LINKS` the first that both trees have. ``old_names`` and ``new_names`` count the inode's names.
    """

    at: NamePath
    old: Directory | Leaf | None
    new: Directory | Leaf | None
    aspects: tuple[Aspect, ...] = ()
    xattrs: tuple[bytes, ...] = ()
    old_first: NamePath | None = None
    new_first: NamePath | None = None
    old_names: int = 1
    new_names: int = 1

    @property
    def path(self) -> bytes:
        """The path of the name, with a slash in front. Built on each access."""
        return self.at.path

    @property
    def old_link(self) -> bytes | None:
        """The path of :attr:`old_first`."""
        return None if self.old_first is None else self.old_first.path

    @property
    def new_link(self) -> bytes | None:
        """The path of :attr:`new_first`."""
        return None if self.new_first is None else self.new_first.path


@dataclass(slots=True, eq=False)
class Notes:
    """What :func:`diff_trees` noticed that is not a change: the number of files, and the first path of each kind.

    ``unknown``: same size and same place, but no digest on either side. ``incomparable``: same size, but digests of
    different algorithms. ``moved``: same contents, inline on one side and an object on the other.
    """

    unknown: int = 0
    incomparable: int = 0
    moved: int = 0
    first_unknown: bytes | None = None
    first_incomparable: bytes | None = None
    first_moved: bytes | None = None


def diff_trees(
    old: Directory, new: Directory, *, ignore: Collection[Aspect] = _NOTHING, notes: Notes | None = None
) -> Iterator[Change]:
    """Yield every :class:`Change` from *old* to *new*, depth-first in byte order; nothing if the trees are equal.

    Every name below an added or removed directory is a change of its own. A pair of inodes that share several names is
    compared once, at the first. Aspects to *ignore* make no change. *notes* is filled while the iterator runs. Unread
    contents count as contents without a digest.
    """
    walk = _Walk(frozenset(ignore), notes or Notes(), _Links(old), _Links(new))
    compare = walk.compare
    stack: list[tuple[NamePath | None, bytes, Entry | None, Entry | None]] = [(None, b"", old, new)]
    while stack:
        parent, name, before, after = stack.pop()
        at = NamePath(parent, name)
        if before is None or after is None:
            yield walk.lone(at, before, after)
        elif (change := compare(at, before, after)) is not None:
            yield change
        _push_children(stack, at, before, after)


def _push_children(
    stack: list[tuple[NamePath | None, bytes, Entry | None, Entry | None]],
    at: NamePath,
    before: Entry | None,
    after: Entry | None,
) -> None:
    below = before.entries if type(before) is Directory else {}
    above = after.entries if type(after) is Directory else {}
    names = sorted(below.keys() | above.keys(), reverse=True)
    stack += [(at, name, below.get(name), above.get(name)) for name in names]


class _Links:
    """The inodes of one tree with several names: their number, the first one, and the first that both trees have."""

    __slots__ = ("common", "first", "names")

    def __init__(self, root: Directory) -> None:
        self.names: dict[Leaf, int] = {}
        self.first: dict[Leaf, NamePath] = {}
        self.common: dict[Leaf, NamePath] = {}
        names = self.names
        for directory in iter_directories(root):
            for entry in directory.entries.values():
                if isinstance(entry, HardLink):
                    names[entry.inode] = names.get(entry.inode, 1) + 1


class _Walk:
    """Compares pairs of entries, and remembers which pairs of inodes were compared before."""

    def __init__(self, ignore: frozenset[Aspect], notes: Notes, old: _Links, new: _Links) -> None:
        self._ignore = ignore
        self._notes = notes
        self._old = old
        self._new = new
        self._met: set[tuple[Leaf, Leaf]] = set()

    def lone(self, at: NamePath, before: Entry | None, after: Entry | None) -> Change:
        """The change for a name that only one tree has."""
        return Change(
            at=at,
            old=None if before is None else inode_of(before),
            new=None if after is None else inode_of(after),
            old_first=_first_name(self._old, before, at),
            new_first=_first_name(self._new, after, at),
            old_names=_count_names(self._old, before),
            new_names=_count_names(self._new, after),
        )

    def compare(self, at: NamePath, before: Entry, after: Entry) -> Change | None:
        """The change for a name that both trees have; ``None`` if nothing differs."""
        old, new = inode_of(before), inode_of(after)
        aspects: list[Aspect] = []
        xattrs: tuple[bytes, ...] = ()
        old_first: NamePath | None = None
        new_first: NamePath | None = None
        repeated = False
        if not isinstance(old, Directory) and not isinstance(new, Directory):
            if old in self._old.names or new in self._new.names:
                _first_name(self._old, before, at)
                _first_name(self._new, after, at)
                old_first = _common_name(self._old, old, at)
                new_first = _common_name(self._new, new, at)
                repeated = (old, new) in self._met
                self._met.add((old, new))
            if old_first is not new_first or (not repeated and self._excess(old, new)):
                aspects.append(Aspect.LINKS)
        if not repeated:
            _compare_metadata(old, new, aspects)
            if old.xattrs is not new.xattrs and old.xattrs != new.xattrs:
                aspects.append(Aspect.XATTRS)
                xattrs = _differing_keys(old, new)
            data = _compare_data(old, new, self._notes, at)
            if data is not None:
                aspects.append(data)
        wanted = [aspect for aspect in aspects if aspect not in self._ignore] if self._ignore else aspects
        if not wanted:
            return None
        links = Aspect.LINKS in wanted
        return Change(
            at=at,
            old=old,
            new=new,
            aspects=tuple(sorted(wanted, key=_ORDER.__getitem__)),
            xattrs=xattrs if Aspect.XATTRS in wanted else (),
            old_first=old_first if links else None,
            new_first=new_first if links else None,
            old_names=_count_names(self._old, before),
            new_names=_count_names(self._new, after),
        )

    def _excess(self, old: Leaf, new: Leaf) -> bool:
        """Whether the link counts differ by more than the numbers of names do."""
        return old.nlink - self._old.names.get(old, 1) != new.nlink - self._new.names.get(new, 1)


_ORDER = {aspect: number for number, aspect in enumerate(Aspect)}


def _count_names(links: _Links, entry: Entry | None) -> int:
    inode = None if entry is None else inode_of(entry)
    return 1 if inode is None or isinstance(inode, Directory) else links.names.get(inode, 1)


def _first_name(links: _Links, entry: Entry | None, at: NamePath) -> NamePath | None:
    """The first name of an inode that has several; ``None`` if that is *at* itself."""
    inode = None if entry is None else inode_of(entry)
    if inode is None or isinstance(inode, Directory) or inode not in links.names:
        return None
    first = links.first.setdefault(inode, at)
    return None if first is at else first


def _common_name(links: _Links, inode: Leaf, at: NamePath) -> NamePath | None:
    if inode not in links.names:
        return None
    first = links.common.setdefault(inode, at)
    return None if first is at else first


def _compare_metadata(old: Directory | Leaf, new: Directory | Leaf, aspects: list[Aspect]) -> None:
    if old.mode != new.mode:
        if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
            aspects.append(Aspect.TYPE)
        if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
            aspects.append(Aspect.MODE)
    if old.uid != new.uid or old.gid != new.gid:
        aspects.append(Aspect.OWNER)
    if old.mtime_sec != new.mtime_sec or old.mtime_nsec != new.mtime_nsec:
        aspects.append(Aspect.MTIME)


def _differing_keys(old: Directory | Leaf, new: Directory | Leaf) -> tuple[bytes, ...]:
    before, after = old.xattrs, new.xattrs
    return tuple(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)))


def _compare_data(old: Directory | Leaf, new: Directory | Leaf, notes: Notes, at: NamePath) -> Aspect | None:
    """Compare what is specific to the type of the inodes; for different types :attr:`Aspect.TYPE` says enough."""
    match old, new:
        case RegularFile(), RegularFile():
            return _compare_files(old, new, notes, at)
        case Symlink(), Symlink():
            return Aspect.TARGET if old.target != new.target else None
        case Device(), Device() if old.rdev != new.rdev:
            return Aspect.RDEV
        case (Device(size=size), Device(size=other)) | (Fifo(size=size), Fifo(size=other)):
            return Aspect.SIZE if size != other else None
        case Socket(size=size), Socket(size=other):
            return Aspect.SIZE if size != other else None
        case _:
            return None


def _compare_files(old: RegularFile, new: RegularFile, notes: Notes, at: NamePath) -> Aspect | None:
    if old.size != new.size:
        return Aspect.CONTENT
    before, after = old.content, new.content
    if not old.size or before is after:
        return None
    if isinstance(before, bytes) and isinstance(after, bytes):
        return Aspect.CONTENT if before != after else None
    digest = _digest(before, after)
    other = _digest(after, before)
    if digest is None or other is None:
        return _compare_unknown(before, after, notes, at)
    return _compare_digests(before, after, (digest, other), notes, at)


def _compare_digests(
    before: Content, after: Content, digests: tuple[bytes, bytes], notes: Notes, at: NamePath
) -> Aspect | None:
    """Compare contents with a digest on both sides; inline bytes were hashed the way the other digest was."""
    first, second = digests
    if len(first) != len(second):
        notes.incomparable += 1
        notes.first_incomparable = notes.first_incomparable or at.path
        named_so = _payload(before) == object_path(first) and _payload(after) == object_path(second)
        return None if named_so or _payload(before) == _payload(after) else Aspect.PAYLOAD
    if first != second:
        return Aspect.CONTENT
    if isinstance(before, bytes) or isinstance(after, bytes):
        notes.moved += 1
        notes.first_moved = notes.first_moved or at.path
        return None
    return Aspect.PAYLOAD if _payload(before) != _payload(after) else None


def _compare_unknown(before: Content, after: Content, notes: Notes, at: NamePath) -> Aspect | None:
    """Compare contents of the same size if at least one side has no digest."""
    match before, after:
        case Located(), Located():
            if not (before.in_image and after.in_image):
                if not before.same_place(after):
                    return Aspect.PAYLOAD
                if all(blob.digest is not None for blob in before.blobs):
                    return None
        case (bytes(), _) | (_, bytes()) | (External(digest=bytes()), _) | (_, External(digest=bytes())):
            return Aspect.DIGEST
        case (Located(), _) | (_, Located()):
            return Aspect.PAYLOAD
        case _ if _payload(before) != _payload(after):
            return Aspect.PAYLOAD
    notes.unknown += 1
    notes.first_unknown = notes.first_unknown or at.path
    return None


def _payload(content: Content) -> bytes | None:
    return content.payload if isinstance(content, External) else None


def _digest(content: Content, other: Content) -> bytes | None:
    """The digest of *content*; inline bytes are hashed with the algorithm of the *other* digest."""
    match content:
        case External(digest=digest):
            return digest
        case bytes():
            model = other.digest if isinstance(other, External) else None
            return None if model is None else digest_bytes(content, ObjectId.of(model).params)
        case Located() | Unread():
            return None
