"""A second tree that can be changed without changing the first."""

from __future__ import annotations

from cfstools.tree.model import Directory, HardLink, Leaf, copy_of


def copy_tree(root: Directory) -> Directory:
    """A tree with inodes of its own, linked as those of *root*; contents and attribute mappings are shared."""
    leaves: dict[Leaf, Leaf] = {}

    def copy_leaf(inode: Leaf) -> Leaf:
        known = leaves.get(inode)
        if known is None:
            known = leaves[inode] = copy_of(inode)
        return known

    top = copy_of(root, entries={})
    pending = [(root, top)]
    while pending:
        old, new = pending.pop()
        entries = new.entries
        for name, entry in old.entries.items():
            if isinstance(entry, Directory):
                below = entries[name] = copy_of(entry, entries={})
                pending.append((entry, below))
            elif isinstance(entry, HardLink):
                entries[name] = HardLink(copy_leaf(entry.inode))
            else:
                entries[name] = copy_leaf(entry)
    return top
