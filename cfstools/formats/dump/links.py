"""Hard link lines: what they point at is known only when the whole text was read (composefs format, section 6.3)."""

from __future__ import annotations

from typing import NamedTuple

from cfstools.errors import DumpError
from cfstools.formats.dump.fields import show
from cfstools.tree.model import Directory, Entry, Fifo, HardLink, Leaf

# Stand-ins for the inode of a link that is not resolved yet, or is being resolved.
_UNKNOWN = Fifo(mode=0)
_BEING_FOLLOWED = Fifo(mode=0)


class _Line(NamedTuple):
    number: int
    target: bytes


class Links:
    """The hard links of one text, to be resolved at its end."""

    def __init__(self) -> None:
        self._lines: dict[HardLink, _Line] = {}

    def add(self, number: int, target: bytes) -> HardLink:
        """A link that line *number* points at the path *target*; its inode is filled in by :meth:`resolve`."""
        link = HardLink(_UNKNOWN)
        self._lines[link] = _Line(number, target)
        return link

    def resolve(self, directories: dict[bytes, Directory]) -> None:
        """Give every link its inode, following links to links.

        *directories* are all directories by plain path (``b""`` is the root). Raises :class:`DumpError` for a
        target that is missing or a directory, and for links that lead back to themselves.
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
    """The entry at *path*; only directories given by their own line lead further down."""
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
