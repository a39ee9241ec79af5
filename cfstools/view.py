"""What an image and the object stores it needs look like as read-only files, whatever shows them.

Names, kinds and attributes are those of the tree. What is defined here is what a path leads to, and what a file
holds: contents are compared with what the image says while they are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from cfstools.errors import CheckFailed, InputError, ObjectMissing, StoreError, raise_exhausted
from cfstools.formats.escape import escape_text
from cfstools.linux import verity as kernel_verity
from cfstools.linux.files import close
from cfstools.progress import SILENT, Stage
from cfstools.store import Store
from cfstools.tree import Directory, External, Leaf, RegularFile, Symlink, Unread
from cfstools.tree.walk import inode_of
from cfstools.verity import Algorithm, CopyFailed, MerkleHasher, Params, hash_fd, object_path

MAX_HOPS = 40
"""How many symbolic links one lookup follows, as Linux does."""

PIECE = 1 << 20
"""The length in bytes of the pieces contents are read in."""


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
            return Contents(file.size, path, data=content)
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
                fd = self.stores.open(digest)
            except ObjectMissing:
                if payload is None or payload.lstrip(b"/") == object_path(digest):
                    raise
            else:
                return Contents(size, path, fd=fd, digest=digest, describe=partial(self.stores.describe, digest))
        if payload is None:
            return Contents(size, path)
        fd = self.stores.open_path(payload)
        return Contents(size, path, fd=fd, digest=digest, describe=partial(escape_text, payload))


class Contents:
    """The contents of one file, open until :meth:`close`; use it as a context manager. Not for several threads.

    ``size`` is what the image says. ``fd`` reads the object, whose own attributes mean nothing; it is ``None`` for
    contents that are in the image.
    """

    def __init__(
        self,
        size: int,
        path: bytes,
        *,
        data: bytes = b"",
        fd: int | None = None,
        digest: bytes | None = None,
        describe: Callable[[], str] = str,
    ) -> None:
        self.size = size
        self.fd = fd
        self._path = path
        self._data = data
        self._digest = digest
        self._describe = describe

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the object. Closing twice is allowed."""
        if self.fd is not None:
            close(self.fd)
            self.fd = None

    def pieces(self) -> Iterator[bytes]:
        """The contents from front to back; the last piece is given out only once the whole was found right.

        So a file of up to ``PIECE`` bytes is never given out wrong. Raises :class:`CheckFailed` where length or
        digest are not what the image says, :class:`StoreError` when reading fails.
        """
        if self.fd is None:
            if self._data:
                yield self._data
            return
        sealed = self._sealed(self.fd)
        hasher = MerkleHasher(self._params)
        held = b""
        following = self._read(self.fd, 0)
        done = 0
        while following and done < self.size:
            if held:
                yield held
            held = following
            done += len(held)
            following = self._read(self.fd, done)
            if not sealed:
                hasher.update(held)
        self._judge(done + len(following), self._digest if sealed else hasher.digest())
        if held:
            yield held

    def check(self, fd: int | None = None, *, progress: Stage = SILENT) -> None:
        """Raise :class:`CheckFailed` unless *fd*, a clone of the object, or else the object itself holds the contents.

        What the kernel guards with the right digest is not read. ``progress`` is advanced in bytes read.
        """
        if self.fd is None:
            return
        fd = self.fd if fd is None else fd
        try:
            self._judge(os.fstat(fd).st_size, self._digest)
            if not self._sealed(fd):
                digest, size = hash_fd(fd, self._params, progress=progress)
                self._judge(size, digest)
        except (OSError, InputError) as error:
            raise self._unreadable(error) from error

    @property
    def has_holes(self) -> bool:
        """Whether the object takes less room than its length says."""
        if self.fd is None:
            return False
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            raise self._unreadable(error) from error
        return status.st_blocks * 512 < status.st_size

    def copy_to(self, fd: int, *, progress: Stage = SILENT) -> None:
        """Copy the object to *fd*, a new file, which then has its holes as well.

        Only afterwards is it known to be right: raises as :meth:`check`, and OSError for what cannot be written.
        """
        assert self.fd is not None
        try:
            self._judge(os.fstat(self.fd).st_size, self._digest)
            digest, size = hash_fd(self.fd, self._params, copy_fd=fd, progress=progress)
        except CopyFailed:
            raise
        except (OSError, InputError) as error:
            raise self._unreadable(error) from error
        self._judge(size, self._digest and digest)

    @property
    def _params(self) -> Params:
        return Params(algorithm=Algorithm.from_digest_size(len(self._digest))) if self._digest else Params()

    def _sealed(self, fd: int) -> bool:
        """Whether nothing is to be hashed: the kernel checks every read of *fd*, or there is no digest."""
        if self._digest is None:
            return True
        try:
            return kernel_verity.measure(fd) == (self._params.algorithm.number, self._digest)
        except OSError:
            return False

    def _read(self, fd: int, offset: int) -> bytes:
        """A whole piece, less only at the end; one byte past the end tells whether the object is too long."""
        wanted = min(PIECE, self.size + 1 - offset)
        try:
            data = os.pread(fd, wanted, offset)
            while len(data) < min(wanted, self.size - offset):
                more = os.pread(fd, wanted - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise self._unreadable(error) from error
        return data

    def _judge(self, size: int, digest: bytes | None) -> None:
        if size != self.size:
            much = f"more than {self.size}" if size > self.size else str(size)
            raise self._wrong(f"has {much} bytes instead of {self.size}")
        if digest != self._digest:
            assert digest is not None
            raise self._wrong(f"is damaged: its fs-verity digest is {digest.hex()}")

    def _wrong(self, how: str) -> CheckFailed:
        return CheckFailed(f"object {self._describe()} {how}", where=escape_text(self._path))

    def _unreadable(self, error: OSError | InputError) -> StoreError:
        if isinstance(error, OSError):
            raise_exhausted(error, f"object {self._describe()} cannot be read", None)
        why = str(error) if isinstance(error, InputError) else error.strerror
        return StoreError(f"object {self._describe()} cannot be read: {why}", where=escape_text(self._path))
