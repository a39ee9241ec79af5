"""From the tree of an image to the one that its writer had: primary names of hard links, no marks of the version.

Readers take the first name of an inode, depth-first, as the primary one. A writer may have had another, and then the
order of the inodes shows it: they are numbered breadth-first, by the number of the directory and the name in it
(composefs format, section 2.2), so the primary name is the one that fits between the inodes before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cfstools.formats.composefs.overlay_xattrs import OPAQUE_KEY
from cfstools.formats.erofs.reader import DIRECTORY, Image
from cfstools.formats.erofs.walk import Walk
from cfstools.tree import NO_XATTRS, Device, Directory, HardLink, Leaf
from cfstools.tree.walk import iter_directories, iter_names, linked_inodes

_Key = tuple[int, bytes]  # number of the directory, name
_BEFORE_ALL: _Key = (-1, b"")
# Those of PARENT_MARKS_V1 that a reader does not drop, as it returns them.
_VERSION_MARKS = frozenset({(OPAQUE_KEY, b"x"), (b"user.overlay.opaque", b"x")})


def drop_version_marks(root: Directory) -> None:
    """Remove from the tree of a version 1 image what that version adds to directories that hold whiteouts.

    A reader cannot tell these marks from attributes of the tree (composefs format, sections 4.6 and 6.5); written as
    version 1 again the tree gets them back.
    """
    for directory in iter_directories(root):
        if not directory.xattrs or not any(
            type(entry) is Device and entry.is_whiteout for entry in directory.entries.values()
        ):
            continue
        kept = {key: value for key, value in directory.xattrs.items() if (key, value) not in _VERSION_MARKS}
        directory.xattrs = kept or NO_XATTRS


@dataclass(slots=True, eq=False)
class _Linked:
    """An inode with several names: the place of each, in order."""

    inode: Leaf
    names: list[tuple[_Key, Directory]] = field(default_factory=list)


def restore_primary_names(image: Image, root: Directory) -> int:
    """Give hard-linked inodes of *root*, the whole tree read from *image*, the primary names that the writer had.

    If several names fit the order of inodes (they give the same image), the first one is taken. An inode whose number
    is out of order keeps its primary name. Returns how many changed. Raises ImageError if the image is not readable.
    """
    linked = linked_inodes(root)
    if not linked:
        return 0
    places: dict[int, _Key | _Linked] = {}  # by the number of the inode
    parents: list[int] = []
    entries = iter_names(root)
    for depth, name, disk, _ in Walk(image):
        del parents[depth:]
        key = (parents[-1], name) if parents else _BEFORE_ALL
        if disk.kind == DIRECTORY:
            parents.append(disk.ino)
        if not depth or disk.is_masking:
            places[disk.ino] = key
            continue
        parent, _, entry = next(entries)
        inode = entry.inode if isinstance(entry, HardLink) else entry
        if isinstance(inode, Directory) or inode not in linked:
            places[disk.ino] = key
            continue
        known = places.setdefault(disk.ino, _Linked(inode))
        if isinstance(known, _Linked) and known.inode is inode:
            known.names.append((key, parent))
    return _settle([places[number] for number in sorted(places)])


def _settle(places: list[_Key | _Linked]) -> int:
    """Give each linked inode among *places*, sorted by inode number, a primary name that fits the order."""
    keys: list[_Key] = []
    previous = _BEFORE_ALL
    for place in places:
        if isinstance(place, _Linked):
            previous = min((key for key, _ in place.names if key > previous), default=previous)
        else:
            previous = place
        keys.append(previous)
    changed = 0
    keys.append((1 << 32, b""))
    for number, place in enumerate(places):
        if isinstance(place, _Linked):
            fits = keys[number - 1] < place.names[0][0] < keys[number + 1]
            changed += _carry(place, place.names[0][0] if fits else keys[number])
    return changed


def _carry(linked: _Linked, key: _Key) -> bool:
    """Make the inode's name at *key* the primary one; returns whether it was not before and exists."""
    inode = linked.inode
    parent = next((parent for place, parent in linked.names if place == key), None)
    if parent is None or parent.entries[key[1]] is inode:
        return False
    for (_, name), directory in linked.names:
        directory.entries[name] = HardLink(inode)
    parent.entries[key[1]] = inode
    return True
