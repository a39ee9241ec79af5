"""What differs between two trees: a merge walk over both, names in byte order, nothing recursive.

Contents are the same when their fs-verity digests are, wherever each tree keeps them. Hard links are compared as a
structure, not name by name: which names of both trees share an inode.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from cfstools.tree.model import (
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Leaf,
    RegularFile,
    Socket,
    Symlink,
)
from cfstools.tree.walk import inode_of, iter_directories, iter_inodes
from cfstools.verity import ObjectId, digest_bytes, object_path


class Aspect(Enum):
    """What of a name can differ; the value is its name in options and reports."""

    TYPE = "type"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    CONTENT = "content"
    DIGEST = "digest"  # only one of two files of equal size has one: whether contents differ is not known
    PAYLOAD = "payload"  # contents are the same, or nothing is known of them, but another object is named
    TARGET = "target"
    RDEV = "rdev"
    SIZE = "size"  # of devices, fifos and sockets, which only dump texts can give one
    LINKS = "links"


_NOTHING: frozenset[Aspect] = frozenset()


class Place:
    """A name in a tree as it is met from the root down; many below one directory share what leads to that.

    The paths of all names of a tree would take room by the square of its depth.
    """

    __slots__ = ("name", "parent")

    def __init__(self, parent: Place | None, name: bytes) -> None:
        self.parent = parent
        self.name = name

    @property
    def path(self) -> bytes:
        """The path from the root, which starts with a slash."""
        names = []
        place: Place | None = self
        while place is not None:
            names.append(place.name)
            place = place.parent
        return b"/".join(names[::-1]) if len(names) > 1 else b"/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One name that differs: only in the new tree (``old`` is ``None``), only in the old one, or in ``aspects``.

    ``xattrs`` are the keys whose presence or value differs, in byte order. ``old_first`` and ``new_first`` are
    the name which this one is a further name of: the first of all where a tree has the name alone, else the first of
    those that both trees have, and only given for :attr:`Aspect.LINKS`. ``old_names`` and ``new_names`` count the
    names of the inode.
    """

    place: Place
    old: Directory | Leaf | None
    new: Directory | Leaf | None
    aspects: tuple[Aspect, ...] = ()
    xattrs: tuple[bytes, ...] = ()
    old_first: Place | None = None
    new_first: Place | None = None
    old_names: int = 1
    new_names: int = 1

    @property
    def path(self) -> bytes:
        """The path of the name, which starts with a slash; made anew each time."""
        return self.place.path

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
    """What :func:`diff_trees` met that is no change: files counted, and the first name among each.

    ``unknown``: same size and object path, but no digest on either side. ``incomparable``: same size, but digests of
    different algorithms. ``moved``: same contents, inside the tree on one side and an object on the other.
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
    """Yield every :class:`Change` from *old* to *new*, depth-first in byte order; none means that the trees agree.

    All names below an added or removed directory are yielded as well. An inode with several names is compared once
    for each pair it forms, at its first name. A change is yielded if an aspect besides those to *ignore* differs.
    *notes* is filled while the iterator runs. Contents not read yet count as contents without a digest.
    """
    walk = _Walk(frozenset(ignore), notes or Notes(), _Links(old), _Links(new))
    compare = walk.compare
    stack: list[tuple[Place | None, bytes, Entry | None, Entry | None]] = [(None, b"", old, new)]
    while stack:
        parent, name, before, after = stack.pop()
        place = Place(parent, name)
        if before is None or after is None:
            yield walk.lone(place, before, after)
        elif (change := compare(place, before, after)) is not None:
            yield change
        _push_children(stack, place, before, after)


def objects_of(root: Directory) -> dict[bytes, int]:
    """The objects a tree needs, each once: digest, or payload where there is none, to its size in bytes."""
    objects: dict[bytes, int] = {}
    for inode in iter_inodes(root):
        if type(inode) is RegularFile and inode.size and isinstance(inode.content, External):
            name = inode.content.digest or inode.content.payload
            if name is not None:
                objects[name] = inode.size
    return objects


def _push_children(
    stack: list[tuple[Place | None, bytes, Entry | None, Entry | None]],
    place: Place,
    before: Entry | None,
    after: Entry | None,
) -> None:
    below = before.entries if type(before) is Directory else {}
    above = after.entries if type(after) is Directory else {}
    names = sorted(below.keys() | above.keys(), reverse=True)
    stack += [(place, name, below.get(name), above.get(name)) for name in names]


class _Links:
    """Inodes of one tree with several names: how many, which is the first, and the first that both trees have."""

    __slots__ = ("common", "first", "names")

    def __init__(self, root: Directory) -> None:
        self.names: dict[Leaf, int] = {}
        self.first: dict[Leaf, Place] = {}
        self.common: dict[Leaf, Place] = {}
        names = self.names
        for directory in iter_directories(root):
            for entry in directory.entries.values():
                if isinstance(entry, HardLink):
                    names[entry.inode] = names.get(entry.inode, 1) + 1


class _Walk:
    """Compares pairs of entries; remembers what the names of one inode have in common."""

    def __init__(self, ignore: frozenset[Aspect], notes: Notes, old: _Links, new: _Links) -> None:
        self._ignore = ignore
        self._notes = notes
        self._old = old
        self._new = new
        self._met: set[tuple[Leaf, Leaf]] = set()

    def lone(self, place: Place, before: Entry | None, after: Entry | None) -> Change:
        """The change for a name that one tree does not have."""
        return Change(
            place=place,
            old=None if before is None else inode_of(before),
            new=None if after is None else inode_of(after),
            old_first=_first_name(self._old, before, place),
            new_first=_first_name(self._new, after, place),
            old_names=_count_names(self._old, before),
            new_names=_count_names(self._new, after),
        )

    def compare(self, place: Place, before: Entry, after: Entry) -> Change | None:
        """The change for a name that both trees have, if there is one."""
        old, new = inode_of(before), inode_of(after)
        aspects: list[Aspect] = []
        xattrs: tuple[bytes, ...] = ()
        old_first: Place | None = None
        new_first: Place | None = None
        repeated = False
        if not isinstance(old, Directory) and not isinstance(new, Directory):
            if old in self._old.names or new in self._new.names:
                _first_name(self._old, before, place)
                _first_name(self._new, after, place)
                old_first = _common_name(self._old, old, place)
                new_first = _common_name(self._new, new, place)
                repeated = (old, new) in self._met
                self._met.add((old, new))
            if old_first is not new_first or (not repeated and self._excess(old, new)):
                aspects.append(Aspect.LINKS)
        if not repeated:
            _compare_metadata(old, new, aspects)
            if old.xattrs is not new.xattrs and old.xattrs != new.xattrs:
                aspects.append(Aspect.XATTRS)
                xattrs = _differing_keys(old, new)
            data = _compare_data(old, new, self._notes, place)
            if data is not None:
                aspects.append(data)
        wanted = [aspect for aspect in aspects if aspect not in self._ignore] if self._ignore else aspects
        if not wanted:
            return None
        links = Aspect.LINKS in wanted
        return Change(
            place=place,
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
        """Whether link counts differ by something else than the names there are."""
        return old.nlink - self._old.names.get(old, 1) != new.nlink - self._new.names.get(new, 1)


_ORDER = {aspect: number for number, aspect in enumerate(Aspect)}


def _count_names(links: _Links, entry: Entry | None) -> int:
    inode = None if entry is None else inode_of(entry)
    return 1 if inode is None or isinstance(inode, Directory) else links.names.get(inode, 1)


def _first_name(links: _Links, entry: Entry | None, place: Place) -> Place | None:
    """The first name of an inode with several, unless *place* is that one."""
    inode = None if entry is None else inode_of(entry)
    if inode is None or isinstance(inode, Directory) or inode not in links.names:
        return None
    first = links.first.setdefault(inode, place)
    return None if first is place else first


def _common_name(links: _Links, inode: Leaf, place: Place) -> Place | None:
    if inode not in links.names:
        return None
    first = links.common.setdefault(inode, place)
    return None if first is place else first


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


def _compare_data(old: Directory | Leaf, new: Directory | Leaf, notes: Notes, place: Place) -> Aspect | None:
    """What differs in the part that only inodes of one type have; a difference of types says enough."""
    match old, new:
        case RegularFile(), RegularFile():
            return _compare_files(old, new, notes, place)
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


def _compare_files(old: RegularFile, new: RegularFile, notes: Notes, place: Place) -> Aspect | None:
    if old.size != new.size:
        return Aspect.CONTENT
    before, after = old.content, new.content
    if not old.size or before is after:
        return None
    if isinstance(before, bytes) and isinstance(after, bytes):
        return Aspect.CONTENT if before != after else None
    digest = _digest(old, new)
    other = _digest(new, old)
    if digest is None or other is None:
        return _compare_unknown(old, new, notes, place)
    return _compare_digests(old, new, (digest, other), notes, place)


def _compare_digests(
    old: RegularFile, new: RegularFile, digests: tuple[bytes, bytes], notes: Notes, place: Place
) -> Aspect | None:
    first, second = digests
    if len(first) != len(second):
        notes.incomparable += 1
        notes.first_incomparable = notes.first_incomparable or place.path
        named_so = _payload(old) == object_path(first) and _payload(new) == object_path(second)
        return None if named_so or _payload(old) == _payload(new) else Aspect.PAYLOAD
    if first != second:
        return Aspect.CONTENT
    if isinstance(old.content, bytes) or isinstance(new.content, bytes):
        notes.moved += 1
        notes.first_moved = notes.first_moved or place.path
        return None
    return Aspect.PAYLOAD if _payload(old) != _payload(new) else None


def _compare_unknown(old: RegularFile, new: RegularFile, notes: Notes, place: Place) -> Aspect | None:
    """Two files of the same size, of which at least one has contents that nothing is known of."""
    known = _has_digest(old) or _has_digest(new)
    if known or isinstance(old.content, bytes) or isinstance(new.content, bytes):
        return Aspect.DIGEST
    if _payload(old) != _payload(new):
        return Aspect.PAYLOAD
    notes.unknown += 1
    notes.first_unknown = notes.first_unknown or place.path
    return None


def _has_digest(file: RegularFile) -> bool:
    return isinstance(file.content, External) and file.content.digest is not None


def _payload(file: RegularFile) -> bytes | None:
    return file.content.payload if isinstance(file.content, External) else None


def _digest(file: RegularFile, other: RegularFile) -> bytes | None:
    """The digest of a file's contents; bytes are digested as the *other* file's contents were."""
    match file.content, other.content:
        case External(digest=digest), _:
            return digest
        case bytes() as data, External(digest=bytes() as model):
            return digest_bytes(data, ObjectId.of(model).params)
        case _:
            return None
