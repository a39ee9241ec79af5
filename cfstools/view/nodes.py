"""The nodes of an image: what a path leads to, and where the contents of a file are."""

from __future__ import annotations

from functools import partial

from cfstools.errors import CheckFailed, InputError, ObjectMissing, StoreError
from cfstools.formats.escape import escape_text
from cfstools.store.base import BytesObject, Store
from cfstools.tree import Directory, External, Leaf, RegularFile, Symlink, Unread
from cfstools.tree.walk import inode_of
from cfstools.verity import ObjectId, object_path
from cfstools.view.contents import Contents

MAX_HOPS = 40
"""How many symbolic links one lookup follows, as Linux does."""


class View:
    """The tree *root* with its contents in *stores*. May be used from several threads."""

    def __init__(self, root: Directory, stores: Store) -> None:
        self.root = root
        self.stores = stores

    def lookup(self, path: bytes, *, follow: bool = False) -> Directory | Leaf:
        """The inode at *path*, which starts at the root with or without a slash; ``..`` stops at the root.

        Symbolic links on the way, and in its last component with *follow*, lead where they would in a root of
        their own. Raises :class:`InputError` where there is nothing, or after 40 links.
        """
        trail = [self.root]
        leaf: Leaf | None = None
        pending = path.split(b"/")[::-1]
        hops = 0
        while pending:
            name = pending.pop()
            if not name or name == b".":
                continue
            if leaf is not None:
                raise InputError("not a directory on the way", where=escape_text(path))
            if name == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            entry = trail[-1].entries.get(name)
            if entry is None:
                raise InputError("no such name in the image", where=escape_text(path))
            inode = inode_of(entry)
            if isinstance(inode, Directory):
                trail.append(inode)
            elif isinstance(inode, Symlink) and (follow or any(pending)):
                hops += 1
                if hops > MAX_HOPS:
                    raise InputError("too many symbolic links", where=escape_text(path))
                if inode.target.startswith(b"/"):
                    del trail[1:]
                pending += inode.target.split(b"/")[::-1]
            else:
                leaf = inode
        return trail[-1] if leaf is None else leaf

    def open(self, file: RegularFile, path: bytes) -> Contents:
        """Open the contents of *file*; *path* is one of its names, for messages.

        An object is looked for by its digest, then by the path the image gives it. Raises :class:`CheckFailed` when
        no store has it, :class:`StoreError` when it cannot be opened, :class:`InputError` when the tree does not
        say where the contents are.
        """
        content = file.content
        if isinstance(content, bytes):
            return Contents(file.size, path, BytesObject(content))
        if isinstance(content, Unread) or (file.size and content.digest is None and content.payload is None):
            raise InputError("its contents are unknown: no object is named", where=escape_text(path))
        try:
            return self._open_object(file.size, path, content)
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
