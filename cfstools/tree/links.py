"""Hard links of a merged tree: which name is the primary one, and how many there are."""

from __future__ import annotations

from cfstools.tree.model import Directory, HardLink, Leaf


def settle_links(root: Directory) -> None:
    """Make the first name of each inode, depth-first in byte order, its primary one, and count its links.

    Before, any of an inode's names may be the inode itself or a :class:`HardLink`, and the primary name may be
    missing; merging layers leaves trees so.
    """
    seen: set[int] = set()
    pending = [(root.entries, iter(sorted(root.entries)))]
    while pending:
        entries, names = pending[-1]
        for name in names:
            entry = entries[name]
            if isinstance(entry, Directory):
                pending.append((entry.entries, iter(sorted(entry.entries))))
                break
            inode: Leaf = entry.inode if isinstance(entry, HardLink) else entry
            if id(inode) in seen:
                inode.nlink += 1
                if entry is inode:
                    entries[name] = HardLink(inode)
            else:
                inode.nlink = 1
                seen.add(id(inode))
                if entry is not inode:
                    entries[name] = inode
        else:
            pending.pop()
