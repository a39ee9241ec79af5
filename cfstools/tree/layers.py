"""Apply layers, base first, to one tree: additions, replacements, whiteouts and hard links.

A layer is staged completely before it changes the tree, because the effect of a whiteout must not depend on its
position in the layer: first all whiteouts remove names of the lower tree, then the entries are added in their order,
then the hard links to later entries. Only inodes and names are kept here; contents are not touched.

``..`` and symbolic links lead no further than the root of the tree, and never to the host. The rules are those of the
OCI layer specification. Where engines disagree, our choice is reported as a warning, or as an error when strict
(docs/oci.md, "Applying layers" and "Where tools disagree").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

from cfstools.errors import FormatError, LimitExceeded, OciError, Phrase, Remedy
from cfstools.tree.copying import settle_links, take_attributes
from cfstools.tree.layer_rules import DEFAULT_RULES, LayerRules
from cfstools.tree.model import Directory, Entry, HardLink, Leaf, Symlink
from cfstools.tree.resolve import MAX_NAME, MAX_PATH, Find, Resolver, normal_parts, shown

MAX_WARNINGS = 1000
LINK_STEPS, LINK_STEPS_PER_NAME = 1 << 16, 64
"""Limit on the components of symbolic link targets that paths may lead through: a base, and more for each name."""

_NAME = rb"[^/.\0][^/\0]{0,%d}+" % (MAX_NAME - 1)
# Paths whose components need no second look, as most are; the group is the normal form.
_PLAIN = re.compile(rb"(?:\./)?(%b(?:/%b)*+)/?" % (_NAME, _NAME))
_MARKER = b".wh."
_AUFS = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_MADE = "missing parent directory made as 0755, owner 0:0, time 0: some tools refuse it"
_KEPT = "the layer has no entry for this parent: it keeps its attributes, some tools reset them to 0755"


class LayerWarning(NamedTuple):
    """A place where other tools behave differently: the layer's label, the path from the root, and what differs."""

    layer: str
    path: bytes
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {shown(self.path)}: {self.text}"


class _Implicit(NamedTuple):
    """A parent directory without an entry in its layer: its name, its own parent, and the path of that with a slash."""

    directory: Directory
    parent: Directory
    prefix: bytes | None
    name: bytes
    text: str


class LayeredTree:
    """The tree that layers are applied to.

    For each layer, base first: call :meth:`layer`, fill the result and :meth:`Layer.apply` it. Call :meth:`finish` at
    the end. ``root`` is the tree so far; it is 0755, owner 0:0, time 0 until a layer has an entry for the root. Discard
    the tree after an error.
    """

    def __init__(self, rules: LayerRules = DEFAULT_RULES) -> None:
        self.root = Directory(mode=0o40755)
        self.rules = rules
        self.warnings: list[LayerWarning] = []
        self.warnings_dropped = 0
        self.linked = False
        self.names = 0
        self.metadata = 0
        self._link_steps = 0

    def layer(self, label: str) -> Layer:
        """Start the next layer; *label* names it in warnings and errors."""
        return Layer(self, label)

    @property
    def keeps_warnings(self) -> bool:
        """Whether the next warning is kept or raised, not only counted."""
        return self.rules.strict or len(self.warnings) < MAX_WARNINGS

    def warn(self, layer: str, path: bytes, text: str) -> None:
        """Add a warning, or raise it as :class:`OciError` when strict. After a thousand they are only counted."""
        warning = LayerWarning(layer, path, text)
        if self.rules.strict:
            raise OciError(text, where=f"{layer}: {shown(path)}")
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(warning)
        else:
            self.warnings_dropped += 1

    def count(self, layer: str, metadata: int) -> None:
        """Count a name with *metadata* bytes; raises :class:`LimitExceeded` beyond a limit."""
        self.names += 1
        self.metadata += metadata
        if self.names > self.rules.max_entries:
            hint = Phrase("if the source is trusted, raise {}", Remedy.MAX_ENTRIES)
            raise LimitExceeded(f"more than {self.rules.max_entries} entries", where=layer, hint=hint)
        if self.metadata > self.rules.max_metadata:
            what = f"more than {self.rules.max_metadata} bytes of paths, link targets and extended attributes"
            raise LimitExceeded(what, where=layer)

    def follow(self, components: int) -> None:
        """Count *components* of a followed link's target; raises :class:`LimitExceeded` beyond a limit."""
        self._link_steps += components
        allowed = LINK_STEPS + LINK_STEPS_PER_NAME * self.names
        if self._link_steps > allowed:
            what = f"paths lead through symbolic links with more than {allowed} components in all"
            raise LimitExceeded(f"{what}, for {self.names} entries")

    def finish(self) -> Directory:
        """The finished tree, with one primary name for each inode and right link counts."""
        if self.linked:
            settle_links(self.root)
        return self.root


class SharedTree(LayeredTree):
    """A tree whose layers several threads stage at once. They are applied one after the other."""

    def __init__(self, rules: LayerRules = DEFAULT_RULES) -> None:
        super().__init__(rules)
        self._lock = Lock()

    def warn(self, layer: str, path: bytes, text: str) -> None:
        """Note a warning, or raise it."""
        with self._lock:
            super().warn(layer, path, text)

    def count(self, layer: str, metadata: int) -> None:
        """One more name."""
        with self._lock:
            super().count(layer, metadata)


class _Whiteout(NamedTuple):
    """A marker: its directory, the name it removes (``None``: all), and its position among the entries."""

    parent: list[bytes]
    name: bytes | None
    order: int


class _LinkTo(NamedTuple):
    """A staged hard link: the components of its target."""

    target: list[bytes]


class Layer:
    """One layer: stage its entries in order with :meth:`add` and :meth:`add_link`, then :meth:`apply` it."""

    def __init__(self, tree: LayeredTree, label: str) -> None:
        self._tree = tree
        self._label = label
        self._entries: list[tuple[bytes, Directory | Leaf | _LinkTo]] = []
        self._whiteouts: list[_Whiteout] = []
        self._symlinks: dict[bytes, Symlink] = {}
        self._hidden: dict[bytes, Leaf] = {}
        self._placed: set[Entry] = set()  # what this layer put in place; entries are equal to nothing but themselves
        self._removed: dict[tuple[int, bytes], tuple[Entry, Directory]] = {}
        self._implicit: dict[int, _Implicit] = {}
        self._followed: dict[int, Symlink] = {}
        self._staged_directories: set[bytes] | None = None
        self._parent_path: bytes | None = None
        self._parent_directory = tree.root

    # Staging

    def add(self, path: bytes, inode: Directory | Leaf) -> None:
        """Stage one entry, or a whiteout if its name says so.

        Raises :class:`OciError` for invalid paths and marker names, :class:`LimitExceeded` for too many entries.
        """
        metadata = len(path)
        if inode.xattrs:
            metadata += sum(len(key) + len(value) for key, value in inode.xattrs.items())
        symlink = inode if isinstance(inode, Symlink) else None
        if symlink is not None:
            metadata += len(symlink.target)
        self._tree.count(self._label, metadata)
        plain = _PLAIN.fullmatch(path)
        if plain is not None and len(path) <= MAX_PATH and b".wh." not in path:
            normal = plain[1]
            if symlink is not None:
                self._symlinks[normal] = symlink
            self._entries.append((normal, inode))
            return
        parts = self._parts(path)
        if b".wh." in path and self._is_marker(parts, inode):
            return
        if not parts and not isinstance(inode, Directory):
            raise self._error("the root is not a directory", b"")
        normal = b"/".join(parts)
        if symlink is not None:
            self._symlinks[normal] = symlink
        self._entries.append((normal, inode))

    def add_link(self, path: bytes, target: bytes) -> None:
        """Stage a hard link to *target*, a path from the root of the layer. Raises as :meth:`add` does."""
        self._tree.count(self._label, len(path) + len(target))
        parts = self._parts(path)
        if b".wh." in path and self._is_marker(parts, None):
            return
        wanted = self._parts(target)
        if not parts or parts == wanted:
            raise self._error("hard link to itself" if parts else "the root is not a directory", b"/".join(parts))
        self._entries.append((b"/".join(parts), _LinkTo(wanted)))

    def _parts(self, path: bytes) -> list[bytes]:
        try:
            parts, climbed = normal_parts(path)
        except OciError as error:
            error.where = f"{self._label}: {error.where}"
            raise
        if climbed:
            self._warn(b"/".join(parts), '".." in the path of the entry was resolved inside the root')
        return parts

    def _is_marker(self, parts: list[bytes], inode: Directory | Leaf | None) -> bool:
        """Stage the entry as a marker if it is one or lies below one, and tell whether it was."""
        marker = next((index for index, part in enumerate(parts) if part.startswith(_MARKER)), None)
        if marker is None:
            return False
        name, path = parts[marker], b"/".join(parts)
        if name == _OPAQUE and marker == len(parts) - 1:
            self._whiteouts.append(_Whiteout(parts[:marker], None, len(self._entries)))
        elif name.startswith(_AUFS) and name != _OPAQUE:
            # Files that aufs keeps for itself; hard links of this layer may refer to its pool of link sources.
            if inode is not None and not isinstance(inode, Directory):
                self._hidden[path] = inode
        elif marker != len(parts) - 1:
            raise self._error("an entry below a whiteout marker", path)
        elif name[4:] in {b"", b".", b".."}:
            raise self._error("a whiteout marker that names nothing", path)
        else:
            self._whiteouts.append(_Whiteout(parts[:marker], name[4:], len(self._entries)))
        return True

    # Applying

    def apply(self) -> None:
        """Apply the staged layer to the tree.

        Raises :class:`OciError` for duplicates, parents that are not directories, and hard links to directories or
        missing files; :class:`LimitExceeded` for too many entries or too deep directories.
        """
        self._warn_of_order()
        for whiteout in self._whiteouts:
            self._remove(whiteout)
        forward = [(path, link) for path, link in self._place_all() if not self._link(path, link, lower_too=True)]
        for path, link in forward:
            if not self._link(path, link, lower_too=False):
                raise self._error(f"hard link to {shown(b'/'.join(link.target))}, which does not exist", path)
            self._warn(path, "hard link to a later entry of the layer: other tools refuse it")
        for implicit in self._implicit.values():
            if implicit.directory not in self._placed:
                self._warn(self._implicit_path(implicit) if self._tree.keeps_warnings else b"", implicit.text)

    def _implicit_path(self, implicit: _Implicit) -> bytes:
        """The path of an implicit parent; of several in a row only the topmost stores it."""
        names = [implicit.name]
        while implicit.prefix is None:
            implicit = self._implicit[id(implicit.parent)]
            names.append(implicit.name)
        return implicit.prefix + b"/".join(names[::-1])

    def _place_all(self) -> Iterator[tuple[bytes, _LinkTo]]:
        """Add the entries in order; yield each hard link when it is its turn."""
        for path, staged in self._entries:
            if isinstance(staged, _LinkTo):
                yield path, staged
            else:
                self._place(path, staged)

    def _place(self, path: bytes, entry: Entry) -> None:
        parent_path, _, name = path.rpartition(b"/")
        if not name:
            self._take_root(entry)
            return
        if parent_path != self._parent_path:
            self._parent_directory = self._parent(parent_path)
            self._parent_path = parent_path
        entries = self._parent_directory.entries
        existing = entries.get(name)
        if existing is not None:
            both = isinstance(existing, Directory) and isinstance(entry, Directory)
            if existing in self._placed:
                self._duplicate(path, allowed=both)
            if isinstance(existing, Directory):
                if isinstance(entry, Directory):
                    take_attributes(existing, entry)
                    self._placed.add(existing)
                    return
                self._check_bare(existing, path)
            # The cached parent may have been reached through the old entry, a directory or a link: drop it.
            self._parent_path = None
        entries[name] = entry
        self._placed.add(entry)

    def _take_root(self, entry: Entry) -> None:
        assert isinstance(entry, Directory)
        if self._tree.root in self._placed:
            self._duplicate(b"", allowed=True)
        take_attributes(self._tree.root, entry)
        self._placed.add(self._tree.root)

    def _duplicate(self, path: bytes, *, allowed: bool = False) -> None:
        if not (allowed or self._tree.rules.allow_duplicates):
            raise OciError(
                "two entries of one name in a layer",
                where=f"{self._label}: {shown(path)}",
                hint=Phrase("{} lets the last one win", Remedy.ALLOW_DUPLICATES),
            )
        self._warn(path, "two entries of one name in the layer: the last one wins")

    def _check_bare(self, directory: Directory, path: bytes) -> None:
        """Treat it as a duplicate if a directory to be replaced by a non-directory has entries of this layer."""
        pending = [directory]
        while pending:
            for entry in pending.pop().entries.values():
                if entry in self._placed:
                    self._duplicate(path)
                    return
                if isinstance(entry, Directory):
                    pending.append(entry)

    # Hard links

    def _link(self, path: bytes, link: _LinkTo, *, lower_too: bool) -> bool:
        """Add the link if its target exists, in the tree so far or before the whiteouts of this layer."""
        inode = self._target(path, link.target, lower_too=lower_too)
        if inode is None:
            return False
        self._place(path, HardLink(inode))
        self._tree.linked = True
        return True

    def _target(self, path: bytes, target: list[bytes], *, lower_too: bool) -> Leaf | None:
        hidden = self._hidden.get(b"/".join(target))
        if hidden is not None:
            return hidden
        found = self._lookup(target, self._present)
        if found is None and lower_too and self._removed:
            found = self._lookup(target, self._before)
            if found is not None:
                self._warn(path, "hard link to a file that this layer removes: some tools refuse it")
        elif found is not None and found not in self._placed:
            self._warn(path, "hard link to a file of a lower layer: some tools refuse it")
        if isinstance(found, HardLink):
            return found.inode
        if isinstance(found, Directory):
            raise self._error("hard link to a directory", path)
        return found

    def _lookup(self, target: list[bytes], find: Find) -> Entry | None:
        if not target:
            return self._tree.root
        directory = self._walk(target[:-1], find)
        return None if directory is None else find(directory, target[-1], b"")

    @staticmethod
    def _present(directory: Directory, name: bytes, prefix: bytes) -> Entry | None:  # noqa: ARG004
        return directory.entries.get(name)

    def _before(self, directory: Directory, name: bytes, prefix: bytes) -> Entry | None:  # noqa: ARG002
        """The entry as it was before this layer's whiteouts."""
        removed = self._removed.get((id(directory), name))
        return removed[0] if removed else directory.entries.get(name)

    # Whiteouts

    def _remove(self, whiteout: _Whiteout) -> None:
        parent = self._walk(whiteout.parent, self._lower)
        if parent is None:
            return
        entries = parent.entries
        names = list(entries) if whiteout.name is None else [whiteout.name]
        for name in names:
            entry = entries.pop(name, None)
            if entry is not None:
                self._removed[id(parent), name] = (entry, parent)

    def _lower(self, directory: Directory, name: bytes, prefix: bytes) -> Entry | None:
        """The entry that a whiteout's path leads through: of this layer if it has one there, else of the lower tree."""
        entry = directory.entries.get(name)
        if not self._symlinks and not isinstance(entry, Symlink | HardLink):
            return entry
        path = prefix + name
        if self._staged_directories is None:
            self._staged_directories = {path for path, staged in self._entries if isinstance(staged, Directory)}
        if path in self._staged_directories:
            return entry if isinstance(entry, Directory) else None
        return self._symlinks.get(path) or entry

    def _warn_of_order(self) -> None:
        """Warn about markers whose effect on this layer's own entries differs between tools."""
        if not self._whiteouts:
            return
        markers = {
            (b"/".join([*mark.parent, mark.name]), mark.order) for mark in self._whiteouts if mark.name is not None
        }
        opaque = {b"/".join(mark.parent): mark.order for mark in self._whiteouts if mark.name is None}
        removed = dict(markers)
        for order, (path, staged) in enumerate(self._entries):
            mark = removed.get(path)
            if mark is not None and mark > order:
                self._warn(
                    path, "a whiteout of the same name follows in the layer: the new entry stays, some tools drop it"
                )
            elif mark is not None and isinstance(staged, Directory):
                self._warn(
                    path, "whiteout and new directory in one layer: lower contents are hidden, some tools show them"
                )
            if opaque and opaque.get(path.rpartition(b"/")[0] if path else b"\0", -1) > order:
                self._warn(path, "an opaque marker follows in the layer: the new entry stays, some tools drop it")

    # Walking

    def _parent(self, path: bytes) -> Directory:
        """The directory at *path*, created where it is missing."""
        if not path:
            return self._tree.root
        directory = self._walk(path.split(b"/"), self._made)
        if directory is None:
            raise self._error("the parent of an entry is not a directory", path)
        return directory

    def _made(self, directory: Directory, name: bytes, prefix: bytes) -> Entry:
        entry = directory.entries.get(name)
        if entry is None:
            self._tree.count(self._label, len(name))
            entry = directory.entries[name] = Directory(mode=0o40755)
            self._add_implicit(entry, directory, prefix, name, _MADE)
        elif (
            isinstance(entry, Directory)
            and (entry.mode, entry.uid, entry.gid) != (0o40755, 0, 0)
            and id(entry) not in self._implicit
        ):
            self._add_implicit(entry, directory, prefix, name, _KEPT)
        return entry

    def _add_implicit(self, entry: Directory, parent: Directory, prefix: bytes, name: bytes, text: str) -> None:
        """Record an implicit parent; storing the paths of many in a row would take quadratic memory."""
        known = None if id(parent) in self._implicit else prefix
        self._implicit[id(entry)] = _Implicit(entry, parent, known, name, text)

    def _walk(self, parts: list[bytes], find: Find) -> Directory | None:
        try:
            return Resolver(self._tree.root, find, self._follow, self._tree.follow).to(parts)
        except FormatError as error:
            error.where = f"{self._label}: {error.where or shown(b'/'.join(parts))}"
            raise

    def _follow(self, path: bytes, link: Symlink) -> None:
        if id(link) in self._followed:
            return
        self._followed[id(link)] = link
        if link in self._placed or self._symlinks.get(path) is link:
            self._warn(
                path, "a symbolic link of this layer stands for a parent directory: followed, some tools refuse it"
            )
        else:
            self._warn(
                path, "a symbolic link of a lower layer stands for a parent directory: followed, some tools replace it"
            )

    # Reporting

    def _warn(self, path: bytes, text: str) -> None:
        self._tree.warn(self._label, path, text)

    def _error(self, what: str, path: bytes) -> OciError:
        return OciError(what, where=f"{self._label}: {shown(path)}")
