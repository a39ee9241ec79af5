"""The tree of a delta layer: what makes one tree of another when an unpacker puts it on top.

A removed name is an empty file ``.wh.NAME``. All names of an inode stand together, so that a hard link never refers to
a lower layer, and each name has its parents, so that nobody makes them up (docs/distribution.md, "Delta layers").
"""

from __future__ import annotations

from cfstools.errors import OciError
from cfstools.text import shown_path
from cfstools.tree.diff import diff_trees
from cfstools.tree.layer_rules import LayerRules
from cfstools.tree.layers import Layer, LayeredTree
from cfstools.tree.model import Directory, HardLink, Leaf, RegularFile, copy_of
from cfstools.tree.walk import inode_of, iter_entries, linked_inodes, lookup

_MARKER = b".wh."
_NAME_MAX = 255 - len(_MARKER)
# Both trees came out of images, within the limits of those.
_ANYTHING = LayerRules(max_entries=1 << 62, max_metadata=1 << 62)


def delta_tree(base: Directory, root: Directory) -> Directory | None:
    """The members that turn *base* into *root*, as a tree; ``None`` when nothing differs.

    It shares leaves with *root*, and has its directories anew. Raises :class:`OciError` where a name that is gone is
    too long for a marker.
    """
    changed: set[bytes] = set()
    removed: set[bytes] = set()
    regrouped: set[Leaf] = set()
    linked = linked_inodes(root)
    for change in diff_trees(base, root):
        if change.new is None:
            parent, _, name = change.path.rpartition(b"/")
            if isinstance(lookup(root, parent), Directory):
                if len(name) > _NAME_MAX:
                    raise OciError("the name is too long for a whiteout", where=shown_path(change.path))
                removed.add(change.path)
            continue
        changed.add(change.path)
        if not isinstance(change.new, Directory) and change.new in linked:
            regrouped.add(change.new)
    if not changed and not removed:
        return None
    if regrouped:
        changed.update(path for path, _, entry in iter_entries(root) if inode_of(entry) in regrouped)
    return _Picked(root).pick(changed, removed)


class _Picked:
    """Some names of a tree, with their parents."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._made: dict[bytes, Directory] = {}
        self._top = self._made[b""] = _empty(root)
        self._placed: set[Leaf] = set()

    def pick(self, changed: set[bytes], removed: set[bytes]) -> Directory:
        for path in sorted(removed):
            parent, _, name = path.rpartition(b"/")
            self._directory(parent).entries[_MARKER + name] = RegularFile(mode=0o100644, size=0, content=b"")
        # In the order of the walk, for the first name of an inode is its primary one.
        for path, name, entry in iter_entries(self._root):
            if path not in changed or path == b"/":
                continue
            inode = inode_of(entry)
            if isinstance(inode, Directory):
                self._directory(path)
                continue
            entries = self._directory(path.rpartition(b"/")[0]).entries
            entries[name] = HardLink(inode) if inode in self._placed else inode
            self._placed.add(inode)
        return self._top

    def _directory(self, path: bytes) -> Directory:
        """The directory at *path*, and with it those above."""
        missing = []
        while path not in self._made:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        directory = self._made[path]
        for path in reversed(missing):
            original = lookup(self._root, path)
            assert isinstance(original, Directory)
            directory.entries[path.rpartition(b"/")[2]] = directory = self._made[path] = _empty(original)
        return directory


def _empty(directory: Directory) -> Directory:
    return copy_of(directory, entries={})


def layered(base: Directory, delta: Directory) -> Directory:
    """The tree that a reader of container images makes of *base* with *delta* on top.

    Whatever it differs in from the tree meant shows that the delta must not be pushed. The leaves are shared and their
    links counted anew. Raises :class:`OciError`, :class:`LimitExceeded`.
    """
    tree = LayeredTree(_ANYTHING)
    for label, root in (("base", base), ("delta", delta)):
        layer = tree.layer(label)
        _stage(layer, root)
        layer.apply()
    tree.linked = True
    return tree.finish()


def _stage(layer: Layer, root: Directory) -> None:
    """Stage the members that the tree becomes in a tar, in their order."""
    names: dict[Leaf, bytes] = {}
    linked = linked_inodes(root)
    for path, _, entry in iter_entries(root):
        inode = inode_of(entry)
        if isinstance(inode, Directory):
            layer.add(path, _empty(inode))
        elif inode in names:
            layer.add_link(path, names[inode])
        else:
            if inode in linked:
                names[inode] = path
            layer.add(path, inode)
