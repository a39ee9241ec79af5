"""Paths inside a tree: their components, and where they lead through symbolic links, never beyond the root."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.errors import LimitExceeded, OciError, shown_path
from cfstools.tree.model import Directory, Entry, HardLink, Symlink

MAX_PATH = 4095
MAX_NAME = 255
MAX_DEPTH = 2048
MAX_HOPS = 40

Find = Callable[[Directory, bytes, list[bytes]], Entry | None]
"""What stands under a name: called with the directory, the name, and the names that lead to the directory."""

Follow = Callable[[bytes, Symlink], None]
"""Told of each link that is followed, with its path."""


def shown(path: bytes) -> str:
    """A path from the root as one line of text."""
    return "/" + shown_path(path)


def normal_parts(path: bytes) -> tuple[list[bytes], bool]:
    """The components of *path* below the root, and whether a ``..`` was taken out (it never climbs above the root).

    Raises :class:`OciError` for NUL bytes and for names or paths longer than Linux has them.
    """
    if len(path) > MAX_PATH + 1 or b"\0" in path:
        why = "NUL byte in the path" if b"\0" in path else f"the path is longer than {MAX_PATH} bytes"
        raise OciError(why, where=shown(path[:64]))
    parts = [part for part in path.split(b"/") if part and part != b"."]
    climbed = b".." in parts
    if climbed:
        kept: list[bytes] = []
        for part in parts:
            if part != b"..":
                kept.append(part)
            elif kept:
                kept.pop()
        parts = kept
    if parts and max(map(len, parts)) > MAX_NAME:
        raise OciError(f"a name in the path is longer than {MAX_NAME} bytes", where=shown(path))
    return parts, climbed


class Walk:
    """One walk through a tree along components and symbolic links; ``..`` stops at the root, as in a chroot.

    :meth:`to` returns the directory the path leads to, or ``None``. Raises :class:`OciError` after 40
    links (as Linux does), :class:`LimitExceeded` beyond 2048 levels.
    """

    def __init__(self, root: Directory, find: Find, follow: Follow) -> None:
        self._find = find
        self._follow = follow
        self._directories = [root]
        self._names: list[bytes] = []
        self._hops = 0

    def to(self, parts: list[bytes]) -> Directory | None:
        """The directory that *parts* lead to."""
        pending = parts[::-1]
        while pending:
            part = pending.pop()
            if part == b"..":
                self._climb()
            elif part and part != b".":
                entry = self._find(self._directories[-1], part, self._names)
                if isinstance(entry, HardLink):
                    entry = entry.inode
                if isinstance(entry, Directory):
                    self._enter(part, entry)
                elif isinstance(entry, Symlink):
                    pending.extend(self._jump(part, entry))
                else:
                    return None
        return self._directories[-1]

    def _climb(self) -> None:
        if self._names:
            self._names.pop()
            self._directories.pop()

    def _enter(self, name: bytes, directory: Directory) -> None:
        if len(self._names) == MAX_DEPTH:
            raise LimitExceeded(f"directories nested deeper than {MAX_DEPTH}")
        self._names.append(name)
        self._directories.append(directory)

    def _jump(self, name: bytes, link: Symlink) -> list[bytes]:
        """The components to go on with, last first."""
        self._hops += 1
        path = b"/".join([*self._names, name])
        if self._hops > MAX_HOPS:
            raise OciError("too many symbolic links in the path", where=shown(path))
        self._follow(path, link)
        if link.target.startswith(b"/"):
            del self._directories[1:]
            self._names.clear()
        return link.target.split(b"/")[::-1]
