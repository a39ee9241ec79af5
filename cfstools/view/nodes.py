"""An image and its stores as files: one view, which extraction, ``cat`` and file systems in user space adapt.

A node is an inode of the tree: names of one inode lead to the same node, and nodes can be kept in sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

from cfstools.errors import CheckFailed, InputError, ObjectMissing, StoreError
from cfstools.formats.escape import escape_text
from cfstools.store.base import BytesObject, Store
from cfstools.tree import Device, Directory, External, Leaf, Located, RegularFile, Symlink, Unread, Xattrs
from cfstools.tree.copying import select
from cfstools.tree.objects import blobs_text
from cfstools.tree.walk import inode_of, linked_inodes
from cfstools.verity import ObjectId, object_path
from cfstools.view.contents import Contents

MAX_HOPS = 40
"""How many symbolic links one lookup follows, as Linux does."""

Node = Directory | Leaf


class Attributes(NamedTuple):
    """What ``stat`` says of a node, and its extended attributes.

    ``mode`` includes the type. ``size`` is in bytes: of contents, of a link's target, else 0. ``rdev`` is in Linux'
    32-bit encoding, 0 for all but devices. ``mtime_nsec`` is as in the image, where it may be a second or more.
    ``nlink`` is the link count that the image gives; that of a directory is counted.
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    rdev: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Xattrs


class View:
    """The tree *root* with its contents in *stores*. May be used from several threads."""

    def __init__(self, root: Directory, stores: Store) -> None:
        self.root = root
        self.stores = stores

    def only(self, paths: tuple[bytes, ...]) -> View:
        """A view of what is at or below *paths* and of the directories that lead there; of all without any.

        Raises InputError for a path that is not there.
        """
        return View(select(self.root, paths), self.stores) if paths else self

    @cached_property
    def linked(self) -> frozenset[Node]:
        """The nodes that have several names."""
        return frozenset(linked_inodes(self.root))

    def lookup(self, node: Node, name: bytes) -> Node | None:
        """The node called *name* in the directory *node*; ``None`` where there is none. Nothing is followed."""
        entry = node.entries.get(name) if isinstance(node, Directory) else None
        return None if entry is None else inode_of(entry)

    def children(self, node: Node) -> Iterator[tuple[bytes, Node]]:
        """The names in the directory *node* with their nodes, in byte order; nothing for other nodes."""
        if isinstance(node, Directory):
            for name, entry in sorted(node.entries.items()):
                yield name, inode_of(entry)

    def attributes(self, node: Node) -> Attributes:
        """The attributes of *node*."""
        nlink, size, rdev = node.nlink, 0, 0
        match node:
            case Directory():
                nlink = 2 + sum(type(entry) is Directory for entry in node.entries.values())
            case RegularFile():
                size = node.size
            case Symlink():
                size = len(node.target)
            case Device():
                rdev = node.rdev
            case _:
                pass
        return Attributes(
            node.mode, node.uid, node.gid, nlink, size, rdev, node.mtime_sec, node.mtime_nsec, node.xattrs
        )

    def target(self, node: Node) -> bytes:
        """What the symbolic link *node* holds. Raises InputError for another node."""
        if not isinstance(node, Symlink):
            raise InputError("is no symbolic link")
        return node.target

    def open(self, node: Node, path: bytes) -> Contents:
        """Open the contents of the file *node*; *path* is one of its names, for messages.

        An object is looked for by its digest, then by the path the image gives it. Raises :class:`CheckFailed` when
        no store has it, :class:`StoreError` when it cannot be opened, :class:`InputError` for what is no file, and
        when the tree does not say where the contents are.
        """
        if not isinstance(node, RegularFile):
            raise InputError("is no file with contents", where=escape_text(path))
        content = node.content
        match content:
            case bytes():
                return Contents(node.size, path, BytesObject(content))
            case External() if content.digest is not None or content.payload is not None or not node.size:
                return self._open_found(node.size, path, content)
            case Located():
                what = f"its contents lie in pieces of {blobs_text(content)}, not in an object of their own"
                raise InputError(what, where=escape_text(path))
            case External() | Unread():
                raise InputError("its contents are unknown: no object is named", where=escape_text(path))

    def _open_found(self, size: int, path: bytes, content: External) -> Contents:
        try:
            return self._open_object(size, path, content)
        except ObjectMissing as error:
            name = content.payload if content.digest is None else object_path(content.digest)
            raise CheckFailed(
                f"object {escape_text(name or b'')} is in none of the stores", where=escape_text(path)
            ) from error
        except StoreError as error:
            raise StoreError(str(error), where=escape_text(path), hint=error.hint) from error

    def _open_object(self, size: int, path: bytes, content: External) -> Contents:
        digest, payload = content.digest, content.payload
        if digest is not None:
            try:
                found = self.stores.open(digest)
            except ObjectMissing:
                if payload is None or payload.lstrip(b"/") == object_path(digest):
                    raise
            else:
                return Contents(size, path, found, ObjectId.of(digest), partial(self.stores.describe, digest))
        if payload is None:
            return Contents(size, path, BytesObject(b""))
        found = self.stores.open_path(payload)
        return Contents(size, path, found, ObjectId.of(digest) if digest else None, partial(escape_text, payload))


def find(view: View, path: bytes, *, follow: bool = False) -> Node:
    """The node at *path*, which starts at the root with or without a slash; ``..`` stops at the root.

    Symbolic links on the way, and in its last component with *follow*, lead where they would in a root of their own.
    Raises :class:`InputError` where there is nothing, or after 40 links.
    """
    trail: list[Node] = [view.root]
    pending = path.split(b"/")[::-1]
    hops = 0
    while pending:
        name = pending.pop()
        if not name or name == b".":
            continue
        if not isinstance(trail[-1], Directory):
            raise InputError("not a directory on the way", where=escape_text(path))
        if name == b"..":
            del trail[max(1, len(trail) - 1) :]
            continue
        node = view.lookup(trail[-1], name)
        if node is None:
            raise InputError("no such name in the image", where=escape_text(path))
        if isinstance(node, Symlink) and (follow or any(pending)):
            hops += 1
            if hops > MAX_HOPS:
                raise InputError("too many symbolic links", where=escape_text(path))
            target = view.target(node)
            if target.startswith(b"/"):
                del trail[1:]
            pending += target.split(b"/")[::-1]
        else:
            trail.append(node)
    return trail[-1]


def walk(view: View) -> Iterator[tuple[bytes, bytes, Node]]:
    """Yield ``(path, name, node)`` for every name of *view*, depth-first in byte order; the root first.

    Paths start with ``/``, the root is ``(b"/", b"", root)``.
    """
    yield b"/", b"", view.root
    # Of directories that are open only the length of the path: whole paths would take room by the square of the depth.
    above: list[tuple[Iterator[tuple[bytes, Node]], int]] = []
    prefix = b"/"
    children = view.children(view.root)
    while True:
        for name, node in children:
            path = prefix + name
            yield path, name, node
            if isinstance(node, Directory):
                above.append((children, len(prefix)))
                children, prefix = view.children(node), path + b"/"
                break
        else:
            if not above:
                return
            children, length = above.pop()
            prefix = prefix[:length]
