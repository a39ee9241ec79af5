"""Changes to a whole tree that the options of a build ask for: times, names, kinds, attributes, hard links.

Each function changes the tree in place. Afterwards every inode that is left has exactly one primary name.
"""

from __future__ import annotations

from collections.abc import Callable

from cfstools.tree.globs import GlobSet
from cfstools.tree.model import NO_XATTRS, Device, Directory, Entry, HardLink, Leaf, Xattrs, copy_of
from cfstools.tree.walk import inode_of, iter_directories, iter_entries, iter_inodes, iter_names
from cfstools.tree.xattrs import XattrPolicy


def use_epoch(root: Directory) -> None:
    """Set every modification time to 0."""
    for inode in iter_inodes(root):
        inode.mtime_sec = inode.mtime_nsec = 0


def clamp_mtime(root: Directory, seconds: int) -> None:
    """Set every modification time later than *seconds* to exactly *seconds*; earlier ones stay as they are."""
    latest = (seconds, 0)
    for inode in iter_inodes(root):
        inode.mtime_sec, inode.mtime_nsec = min((inode.mtime_sec, inode.mtime_nsec), latest)


def keep_xattrs(root: Directory, policy: XattrPolicy) -> None:
    """Remove the extended attributes that *policy* does not keep."""
    if policy is XattrPolicy.ALL:
        return
    accepts = policy.accepts
    for inode in iter_inodes(root):
        if inode.xattrs:
            kept: Xattrs = {key: value for key, value in inode.xattrs.items() if accepts(key)}
            inode.xattrs = kept or NO_XATTRS


def exclude(root: Directory, globs: GlobSet) -> int:
    """Remove every name that matches, directories with all below them; return the number of matches.

    If an inode loses its primary name, the first name left, depth-first in byte order, becomes primary. The link count
    of an inode that loses names becomes the number of names left.
    """
    if not globs:
        return 0

    def unwanted(path: bytes, name: bytes, entry: Entry) -> bool:
        if type(entry) is Directory:
            return globs.matches_directory(path, name)
        return globs.matches(path, name)

    return _remove(root, unwanted)


def drop_devices(root: Directory) -> int:
    """Remove every character and block device, whiteouts included; return the number of names removed."""
    return _remove(root, lambda _path, _name, entry: isinstance(inode_of(entry), Device))


def _remove(root: Directory, unwanted: Callable[[bytes, bytes, Entry], bool]) -> int:
    removed = 0
    lost_names: set[Leaf] = set()
    lost_primary: set[Leaf] = set()
    for path, _, directory in iter_entries(root):
        if type(directory) is not Directory:
            continue
        prefix = path[1:] + b"/" if directory is not root else b""
        entries = directory.entries
        going = [name for name, entry in entries.items() if unwanted(prefix + name, name, entry)]
        removed += len(going)
        for name in going:
            _collect_lost(entries.pop(name), lost_names, lost_primary)
    if lost_names:
        _recover_links(root, lost_names, lost_primary)
    return removed


def _collect_lost(entry: Entry, lost_names: set[Leaf], lost_primary: set[Leaf]) -> None:
    pending = [entry]
    while pending:
        entry = pending.pop()
        if type(entry) is Directory:
            pending.extend(entry.entries.values())
        elif isinstance(entry, HardLink):
            lost_names.add(entry.inode)
        elif not isinstance(entry, Directory):
            lost_names.add(entry)
            lost_primary.add(entry)


def _recover_links(root: Directory, lost_names: set[Leaf], lost_primary: set[Leaf]) -> None:
    """Make the first name left the primary one where that was removed, and count the names of all affected inodes."""
    for inode in lost_names:
        inode.nlink = 0
    for parent, name, entry in iter_names(root):
        named = inode_of(entry)
        if isinstance(named, Directory) or named not in lost_names:
            continue
        named.nlink += 1
        if named in lost_primary:
            lost_primary.discard(named)
            parent.entries[name] = named


def split_hardlinks(root: Directory) -> None:
    """Make every name of a non-directory an inode of its own with a link count of 1.

    The copies share contents and attributes with the inode they were names of.
    """
    for directory in iter_directories(root):
        entries = directory.entries
        for name, entry in entries.items():
            if isinstance(entry, HardLink):
                entries[name] = copy_of(entry.inode, nlink=1)
            elif type(entry) is not Directory:
                entry.nlink = 1
