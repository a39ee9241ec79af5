"""Which name of a hard-linked inode carried it when its image was written.

Readers take the first name, depth-first; a writer may have had another, and then inodes lie in another order. That
order still tells: inodes are numbered breadth-first, by the number of the directory and the name in it
(composefs format, section 2.2), so that the primary name is the one that fits between the inodes before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cfstools.formats.erofs.reader import DIRECTORY, Image
from cfstools.formats.erofs.walk import Walk
from cfstools.tree import Directory, HardLink, Leaf
from cfstools.tree.walk import iter_names, linked_inodes

_Key = tuple[int, bytes]  # number of the directory, name
_BEFORE_ALL: _Key = (-1, b"")


@dataclass(slots=True, eq=False)
class _Linked:
    """An inode with several names: where each is, the first one first."""

    inode: Leaf
    names: list[tuple[_Key, Directory]] = field(default_factory=list)


def restore_primary_names(image: Image, root: Directory) -> int:
    """Make the names that carried inodes in *image* the primary ones of *root*, the whole tree read from it.

    Where the order of inodes leaves several, which then give the same image, the first name is preferred. Returns
    how many inodes changed their primary name. An inode whose number is out of order keeps what it has. Raises
    ImageError if the image is not readable.
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
        if not depth or disk.is_hiding:
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
    """Give the linked inodes among *places*, which are in order, the names that keep the order."""
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
    """Make the name at *key*, if it is one of the inode's, the primary one; whether that is a change."""
    inode = linked.inode
    parent = next((parent for place, parent in linked.names if place == key), None)
    if parent is None or parent.entries[key[1]] is inode:
        return False
    for (_, name), directory in linked.names:
        directory.entries[name] = HardLink(inode)
    parent.entries[key[1]] = inode
    return True
