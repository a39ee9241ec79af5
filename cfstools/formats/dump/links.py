"""Hard links of a dump, resolved once the whole text was read (composefs format, section 6.3)."""

from __future__ import annotations

from typing import NamedTuple

from cfstools.errors import DumpError
from cfstools.formats.dump.fields import show
from cfstools.tree.model import Directory, Entry, Fifo, HardLink, Leaf

# Placeholders for the inode of a link that is unresolved, or being resolved.
_UNKNOWN = Fifo(mode=0)
_BEING_FOLLOWED = Fifo(mode=0)


class _Line(NamedTuple):
    number: int
    target: bytes


class Links:
    """Collects the hard links of one text, and resolves them at its end."""

    def __init__(self) -> None:
        self._lines: dict[HardLink, _Line] = {}

    def add(self, number: int, target: bytes) -> HardLink:
        """Add a link from line *number* to the path *target*; :meth:`resolve` fills in its inode."""
        link = HardLink(_UNKNOWN)
        self._lines[link] = _Line(number, target)
        return link

    def resolve(self, directories: dict[bytes, Directory]) -> None:
        """Set the inode of every link; links may refer to links.

        *directories* maps the plain path of every directory to it (``b""`` is the root). Raises :class:`DumpError` for
        targets that are missing or directories, and for cycles.
        """
        for link, line in self._lines.items():
            trail = []
            entry: Entry = link
            try:
                while isinstance(entry, HardLink) and entry.inode is _UNKNOWN:
                    entry.inode = _BEING_FOLLOWED
                    trail.append(entry)
                    entry = _look_up(directories, self._lines[entry].target)
                inode = _leaf(entry, line.target)
            except DumpError as error:
                error.where = f"line {line.number}, field PAYLOAD"
                raise
            for followed in trail:
                followed.inode = inode
        self._lines.clear()


def _look_up(directories: dict[bytes, Directory], path: bytes) -> Entry:
    """The entry at *path*, whose parent must be a directory."""
    parts = [part for part in path.split(b"/") if part]
    if not parts:
        return directories[b""]
    parent = directories.get(b"".join([b"/" + part for part in parts[:-1]]))
    entry = parent.entries.get(parts[-1]) if parent else None
    if entry is None:
        raise DumpError(f"the target of the hard link, {show(path)}, does not exist")
    return entry


def _leaf(entry: Entry, target: bytes) -> Leaf:
    if isinstance(entry, Directory):
        raise DumpError(f"the target of the hard link, {show(target)}, is a directory")
    if not isinstance(entry, HardLink):
        return entry
    if entry.inode is _BEING_FOLLOWED:
        raise DumpError(f"the hard link leads back to itself by way of {show(target)}")
    return entry.inode
