"""Resolve paths inside a tree, through symbolic links and never beyond the root."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.errors import LimitExceeded, OciError
from cfstools.text import shown_path
from cfstools.tree.model import Directory, Entry, HardLink, Symlink

MAX_PATH = 4095
MAX_NAME = 255
MAX_DEPTH = 2048
MAX_HOPS = 40
_NO_NAMES = frozenset((b"", b".", b".."))

Find = Callable[[Directory, bytes, bytes], Entry | None]
"""Looks up a name: called with the directory, the name, and the directory's path with a slash at the end."""

Follow = Callable[[bytes, Symlink], None]
"""Called for each symbolic link that is followed, with its path."""

Spend = Callable[[int], None]
"""Called with the number of components that a link's target adds; may raise to limit the work."""


def shown(path: bytes) -> str:
    """The text of a path, with the slash of the root in front."""
    return "/" + shown_path(path)


def normal_parts(path: bytes) -> tuple[list[bytes], bool]:
    """Split *path* into components below the root; also tell whether it had a ``..``, which stops at the root.

    Raises :class:`OciError` for NUL bytes and for names or paths longer than Linux allows.
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


class Resolver:
    """Resolves one path along its components and symbolic links; ``..`` stops at the root, as in a chroot.

    :meth:`to` returns the directory at its end, or ``None``. Raises :class:`OciError` after 40 links (as Linux does),
    :class:`LimitExceeded` for more than 2048 levels or a resolved path of more than 4095 bytes. The time of a step does
    not depend on the depth; *spend* may bound the number of steps.
    """

    def __init__(self, root: Directory, find: Find, follow: Follow, spend: Spend) -> None:
        self._find = find
        self._follow = follow
        self._spend = spend
        self._directories = [root]
        self._prefix = b""  # the resolved path of the last of these: empty, or with a slash at the end
        self._hops = 0

    def to(self, parts: list[bytes]) -> Directory | None:
        """The directory that *parts* lead to; ``None`` if there is none."""
        pending = parts[::-1]
        find, directories = self._find, self._directories
        while pending:
            part = pending.pop()
            if part in _NO_NAMES:
                if part == b"..":
                    self._climb()
                continue
            entry = find(directories[-1], part, self._prefix)
            if isinstance(entry, HardLink):
                entry = entry.inode
            if isinstance(entry, Directory):
                self._prefix += part + b"/"
                if len(directories) > MAX_DEPTH or len(self._prefix) > MAX_PATH + 1:
                    raise self._too_deep()
                directories.append(entry)
            elif isinstance(entry, Symlink):
                pending.extend(self._jump(part, entry))
            else:
                return None
        return directories[-1]

    def _climb(self) -> None:
        if len(self._directories) > 1:
            self._directories.pop()
            self._prefix = self._prefix[: self._prefix.rfind(b"/", 0, -1) + 1]

    def _too_deep(self) -> LimitExceeded:
        if len(self._directories) > MAX_DEPTH:
            return LimitExceeded(f"directories nested deeper than {MAX_DEPTH}")
        return LimitExceeded(f"the path without its symbolic links is longer than {MAX_PATH} bytes")

    def _jump(self, name: bytes, link: Symlink) -> list[bytes]:
        """Follow *link*: the components of its target, in reverse order."""
        self._hops += 1
        path = self._prefix + name
        if self._hops > MAX_HOPS:
            raise OciError("too many symbolic links in the path", where=shown(path))
        self._follow(path, link)
        parts = link.target.split(b"/")[::-1]
        self._spend(len(parts))
        if link.target.startswith(b"/"):
            del self._directories[1:]
            self._prefix = b""
        return parts
