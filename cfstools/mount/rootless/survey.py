"""What a tree would take in memory, counted before any of it is made."""

from __future__ import annotations

import os
from typing import NamedTuple

from cfstools.errors import InputError, Phrase, Remedy, Unsupported
from cfstools.linux.memory import available_memory
from cfstools.tree import Content, Directory, External, HardLink, Leaf, Located, RegularFile, Symlink, Unread, Xattrs
from cfstools.tree.objects import blobs_text
from cfstools.tree.walk import iter_directories

MAX_NAMES = 500_000
"""The most names that are put into memory."""

_SHARE = 4  # the kernel cannot reclaim what the tree takes: it may take a quarter of the memory that is available
_NAME = 512
_INODE = 1024
_XATTR = 128
# Longer targets take a page; shorter ones are in the inode.
_SHORT_TARGET = 127


class Survey(NamedTuple):
    """Names and bytes of a tree: ``pages`` are those of contents and long targets, ``memory`` is all that it takes.

    ``linked`` are the inodes with several names.
    """

    names: int
    pages: int
    memory: int
    linked: frozenset[Leaf]


def survey(root: Directory) -> Survey:
    """Count what *root* takes as files in memory. Raises InputError for contents that no object of their own holds."""
    page = os.sysconf("SC_PAGE_SIZE")
    names = 1
    pages = 0
    linked: set[Leaf] = set()
    attributes = _Attributes()
    for directory in iter_directories(root):
        names += len(directory.entries)
        if directory.xattrs:
            attributes.add(directory.xattrs)
        for entry in directory.entries.values():
            if isinstance(entry, HardLink):
                linked.add(entry.inode)
                continue
            if type(entry) is RegularFile:
                pages += -(-_bytes_in_image(entry.content) // page) * page
            elif type(entry) is Symlink:
                pages += page if len(entry.target) > _SHORT_TARGET else 0
            elif type(entry) is Directory:
                continue
            if entry.xattrs:
                attributes.add(entry.xattrs)
    return Survey(names, pages, names * (_NAME + _INODE) + attributes.space + pages, frozenset(linked))


def fits(root: Directory) -> bool:
    """Whether *root* can be kept in memory: all its contents have objects of their own, and it is not too large."""
    try:
        check_fits(survey(root))
    except (InputError, Unsupported):
        return False
    return True


def check_fits(found: Survey) -> None:
    """Raise Unsupported for a tree that is too large to be kept in memory that nobody can reclaim."""
    hint = Phrase("{} takes more", Remedy.METHOD_FUSE)
    if found.names > MAX_NAMES:
        raise Unsupported(f"the image has {found.names} names, the method overlay takes {MAX_NAMES}", hint=hint)
    available = available_memory()
    if available is not None and found.memory > available // _SHARE:
        what = f"the names of the image would take {_mib(found.memory)} of memory, of which {_mib(available)} are free"
        raise Unsupported(what, hint=hint)


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _bytes_in_image(content: Content) -> int:
    match content:
        case bytes():
            return len(content)
        case External() if content.digest is not None or content.payload is not None:
            return 0
        case Located():
            raise InputError(f"contents of files lie in pieces of {blobs_text(content)}, not in objects of their own")
        case External() | Unread():
            raise InputError("contents of a file are unknown: no object is named")


class _Attributes:
    """The space of extended attributes. Inodes may share them in the image, but not as files."""

    def __init__(self) -> None:
        self.space = 0
        self._known: dict[int, int] = {}

    def add(self, xattrs: Xattrs) -> None:
        """Count the attributes of one more inode."""
        # The tree keeps its mappings alive, so no number is used twice.
        space = self._known.get(id(xattrs))
        if space is None:
            space = sum(_XATTR + len(key) + len(value) for key, value in xattrs.items())
            self._known[id(xattrs)] = space
        self.space += space
