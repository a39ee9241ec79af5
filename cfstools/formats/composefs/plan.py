"""From a tree to the nodes of its image: order, links, overlay xattrs, whiteouts.

Rules: composefs format, sections 2.2 and 4.5 to 4.7. ``native.encode_tree`` does the same for most trees.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cfstools.errors import TreeError
from cfstools.formats.composefs.overlay_xattrs import (
    ACL_KEYS,
    HIDING_NAMES,
    METACOPY_HEADERS,
    METACOPY_KEY,
    OPAQUE_KEY,
    PARENT_MARKS,
    PARENT_MARKS_V1,
    REDIRECT_KEY,
    SELINUX_KEY,
    WHITEOUT_MARKS,
    rewrite_xattrs,
    select_version,
)
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.writer import Node, Placed, chunk_geometry, place
from cfstools.formats.erofs.xattrs import Pair
from cfstools.formats.escape import escape_text
from cfstools.tree import (
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Inode,
    Leaf,
    Located,
    RegularFile,
    Socket,
    Symlink,
    Unread,
    Xattrs,
)
from cfstools.tree.objects import blobs_text
from cfstools.tree.walk import iter_entries
from cfstools.tree.xattrs import XattrBuilder
from cfstools.verity import Algorithm

_HIDING_MODE = stat.S_IFCHR | 0o644
_PERMISSIONS = 0o7777
_U32 = 0xFFFFFFFF


def place_tree(root: Directory, *, min_version: int, max_version: int, algorithm: Algorithm) -> Placed:
    """Place every inode of *root*; see :func:`~cfstools.formats.composefs.writer.plan_image`."""
    planner = _Planner(algorithm=algorithm)
    nodes = planner.plan(root)
    version = select_version(min_version, max_version, has_whiteout=bool(planner.whiteout_parents))
    planner.mark_parents(root, version)
    header = fmt.ComposefsHeader(
        magic=fmt.COMPOSEFS_MAGIC,
        header_version=fmt.COMPOSEFS_HEADER_VERSION,
        flags=fmt.HEADER_FLAG_HAS_ACL if planner.has_acl else 0,
        composefs_version=version,
    )
    return place(nodes, header)


def metacopy(digest: bytes | None, algorithm: Algorithm) -> bytes:
    """The value of ``trusted.overlay.metacopy`` for an external file (section 4.5)."""
    if digest is None:
        return b""
    if len(digest) != algorithm.digest_size:
        raise TreeError(f"object digest has {len(digest)} bytes; {algorithm.value} has {algorithm.digest_size}")
    return METACOPY_HEADERS[algorithm] + digest


class _Rejected(Exception):
    """What is wrong with an entry. The planner adds the path: finding it takes a walk, so only errors do it."""

    def __init__(self, entry: Entry, what: str) -> None:
        super().__init__(what)
        self.entry = entry


@dataclass(slots=True, eq=False)
class _Planner:
    """Turns a tree into nodes: breadth-first order, rewritten xattrs, automatic whiteouts."""

    algorithm: Algorithm
    has_acl: bool = False
    nodes: list[Node] = field(default_factory=list)
    inodes: list[Inode | None] = field(default_factory=list)  # parallel to nodes; None for automatic whiteouts
    links: list[tuple[list[tuple[bytes, Node]], int, HardLink]] = field(default_factory=list)
    whiteout_parents: list[tuple[Node, Directory]] = field(default_factory=list)
    rewritten: dict[int, tuple[Xattrs, list[Pair]]] = field(default_factory=dict)

    def plan(self, root: Directory) -> list[Node]:
        """All nodes in breadth-first order (section 2.2), root first."""
        try:
            self._plan(root)
        except _Rejected as rejected:
            raise TreeError(str(rejected), where=_path_text(root, rejected.entry)) from None
        return self.nodes

    def _plan(self, root: Directory) -> None:
        top = self._node(root)
        top.xattrs = sorted([*top.xattrs, (OPAQUE_KEY, b"y")])
        self._append(top, root)
        hiding = _hiding_nodes(root)
        queue = deque([(top, root, top)])
        while queue:
            node, directory, parent = queue.popleft()
            queue.extend(self._add_children(node, directory, parent, hiding))
            hiding = {}
        self._resolve_links()

    def _append(self, node: Node, inode: Inode | None) -> None:
        self.nodes.append(node)
        self.inodes.append(inode)

    def _add_children(
        self, node: Node, directory: Directory, parent: Node, hiding: dict[bytes, Node]
    ) -> list[tuple[Node, Directory, Node]]:
        """Append the nodes of one directory's entries; returns its subdirectories."""
        entries = directory.entries
        fixed = {b".": node, b"..": parent, **hiding}
        children: list[tuple[bytes, Node]] = []
        subdirectories = []
        has_whiteout = False
        for name in sorted(entries.keys() | fixed.keys()):
            entry = entries.get(name)
            if entry is None:
                child = fixed[name]
                if hiding and name in hiding:
                    self._append(child, None)
            elif isinstance(entry, HardLink):
                _check_name(name, entry)
                self.links.append((children, len(children), entry))
                child = node  # a placeholder: the target may not have its node yet
            else:
                _check_name(name, entry)
                child = self._node(entry)
                self._append(child, entry)
                if isinstance(entry, Directory):
                    subdirectories.append((child, entry, node))
                elif isinstance(entry, Device) and entry.is_whiteout:
                    has_whiteout = True
            children.append((name, child))
        if has_whiteout:
            self.whiteout_parents.append((node, directory))
        node.children = children
        node.nlink = 2 + len(subdirectories)
        return subdirectories

    def _resolve_links(self) -> None:
        if not self.links:
            return
        wanted = {id(link.inode) for _, _, link in self.links}
        targets = {id(inode): node for node, inode in zip(self.nodes, self.inodes, strict=True) if id(inode) in wanted}
        for children, position, link in self.links:
            target = targets.get(id(link.inode))
            if target is None:
                raise _Rejected(link, "hard link to an inode that is not in the tree")
            children[position] = (children[position][0], target)

    def mark_parents(self, root: Directory, version: int) -> None:
        """Mark directories that hold whiteouts (section 4.6). Raises TreeError if they have no space (Q5)."""
        for node, directory in self.whiteout_parents:
            try:
                node.xattrs = _marked(node.xattrs, PARENT_MARKS_V1 if version == 1 else PARENT_MARKS)
            except TreeError as error:
                raise TreeError(error.what, where=_path_text(root, directory)) from None

    def _node(self, inode: Directory | Leaf) -> Node:
        if (inode.uid | inode.gid | inode.nlink | inode.mtime_nsec) >> 32 or (inode.mtime_sec + (1 << 63)) >> 64:
            raise _Rejected(inode, "owner, link count or time is out of the format's range")
        node = Node(
            mode=inode.mode & 0xFFFF,
            nlink=inode.nlink,
            uid=inode.uid,
            gid=inode.gid,
            mtime_sec=inode.mtime_sec,
            mtime_nsec=inode.mtime_nsec,
            xattrs=self._rewrite(inode) if inode.xattrs else (),
        )
        match inode:
            case RegularFile():
                self._fill_file(node, inode)
            case Symlink(target=target):
                if not 0 < len(target) <= fmt.SYMLINK_MAX:
                    raise _Rejected(inode, f"symlink target of {len(target)} bytes: 1 to {fmt.SYMLINK_MAX} are allowed")
                if b"\0" in target:
                    raise _Rejected(inode, "symlink target holds a NUL byte")
                node.data, node.size = target, len(target)
            case Device():
                self._fill_device(node, inode)
            case Fifo(size=size) | Socket(size=size):
                node.size = size
            case Directory():
                pass
        return node

    def _fill_file(self, node: Node, inode: RegularFile) -> None:
        content = inode.content
        node.size = inode.size
        match content:
            case bytes():
                if len(content) != inode.size or len(content) > fmt.INLINE_MAX:
                    raise _Rejected(
                        inode,
                        f"{len(content)} bytes of inline content for a size of {inode.size}; "
                        f"they must agree and be at most {fmt.INLINE_MAX}",
                    )
                node.data = content
            case External():
                self._fill_external(node, inode, content)
            case Located():
                what = f"contents lie in pieces of {blobs_text(content)}; a composefs image can name whole objects only"
                raise _Rejected(inode, what)
            case Unread():
                raise _Rejected(inode, "contents were not read before the image was written")

    def _fill_external(self, node: Node, inode: RegularFile, content: External) -> None:
        if inode.size == 0:
            return
        payload = content.payload
        node.data = None
        try:
            chunk_geometry(inode.size)
            pairs = [(METACOPY_KEY, metacopy(content.digest, self.algorithm))]
        except TreeError as error:
            raise _Rejected(inode, error.what) from None
        if payload:
            if len(payload) > fmt.PAYLOAD_MAX:
                raise _Rejected(inode, f"payload of {len(payload)} bytes: at most {fmt.PAYLOAD_MAX} are allowed")
            pairs.append((REDIRECT_KEY, b"/" + payload))
        node.xattrs = sorted([*node.xattrs, *pairs]) if node.xattrs else pairs

    def _fill_device(self, node: Node, inode: Device) -> None:
        if inode.is_whiteout:
            node.mode = stat.S_IFREG | (inode.mode & _PERMISSIONS)
            try:
                node.xattrs = _marked(node.xattrs, WHITEOUT_MARKS)
            except TreeError as error:
                raise _Rejected(inode, error.what) from None
        else:
            node.size = inode.size
            node.rdev = inode.rdev & _U32

    def _rewrite(self, inode: Directory | Leaf) -> list[Pair]:
        """The inode's xattrs, checked, escaped and sorted; done once for inodes that share them."""
        known = self.rewritten.get(id(inode.xattrs))
        if known is not None:
            return known[1]
        try:
            pairs = rewrite_xattrs(inode.xattrs)
        except TreeError as error:
            raise _Rejected(inode, error.what) from None
        if not self.has_acl:
            self.has_acl = any(key in ACL_KEYS for key in inode.xattrs)
        # Keep the xattrs with the result: their id is valid only while they live.
        self.rewritten[id(inode.xattrs)] = (inode.xattrs, pairs)
        return pairs


def _marked(xattrs: Sequence[Pair], marks: Sequence[Pair]) -> list[Pair]:
    builder = XattrBuilder(dict(xattrs))
    for key, value in marks:
        builder.set(key, value)
    return sorted(builder.build().items())


def _hiding_nodes(root: Directory) -> dict[bytes, Node]:
    """The automatic whiteouts that hide a store's directories (section 4.7), by name."""
    label = root.xattrs.get(SELINUX_KEY)
    xattrs = [] if label is None else [(SELINUX_KEY, label)]
    return {
        name: Node(
            mode=_HIDING_MODE,
            nlink=1,
            uid=root.uid,
            gid=root.gid,
            mtime_sec=root.mtime_sec,
            mtime_nsec=root.mtime_nsec,
            xattrs=xattrs,
        )
        for name in HIDING_NAMES
        if name not in root.entries
    }


def _check_name(name: bytes, entry: Entry) -> None:
    if not 0 < len(name) <= fmt.NAME_MAX:
        raise _Rejected(entry, f"name of {len(name)} bytes: 1 to {fmt.NAME_MAX} are allowed")
    if b"/" in name or b"\0" in name or name in {b".", b".."}:
        raise _Rejected(entry, "name is '.' or '..' or holds a slash or NUL")


def _path_text(root: Directory, wanted: Entry) -> str | None:
    for path, _, entry in iter_entries(root):
        if entry is wanted:
            return escape_text(path)
    return None
