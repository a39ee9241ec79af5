"""Changes of a tree as reports: every value as text, names escaped as in dump texts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import overload

from cfstools.api.listing import type_name
from cfstools.formats.escape import escape_text
from cfstools.report import Report
from cfstools.tree import Device, Directory, External, Fifo, Leaf, Located, RegularFile, Socket, Symlink, Unread
from cfstools.tree.diff import Aspect, Change
from cfstools.tree.objects import pieces_text


class Difference(Report):
    """One aspect of a name, before and after, as text; ``None`` where there is nothing.

    For ``xattrs`` ``key`` names the attribute. For ``content`` the values are digests, or ``inline`` for contents
    inside the image, ``located`` for contents inside other blobs, and sizes in bytes are given as well.
    """

    aspect: str
    before: str | None
    after: str | None
    key: str | None = None
    size_before: int | None = None
    size_after: int | None = None


class ChangeReport(Report):
    """One name that was ``added``, ``removed`` or ``changed``. Paths are escaped as in dump texts.

    ``type`` is what it is now, or was. ``link_to`` is the first name of the inode where the name is a hard
    link.
    """

    path: str
    change: str
    type: str
    link_to: str | None = None
    differences: tuple[Difference, ...] = ()


class ChangeReports(Sequence[ChangeReport]):
    """Reports of changes, made on access: all paths of a deep tree at once would take much memory."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def __len__(self) -> int:
        return len(self._changes)

    @overload
    def __getitem__(self, index: int) -> ChangeReport: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ChangeReport]: ...

    def __getitem__(self, index: int | slice) -> ChangeReport | Sequence[ChangeReport]:
        if isinstance(index, slice):
            return ChangeReports(self._changes[index])
        return change_report(self._changes[index])


def change_kind(change: Change) -> str:
    """``added``, ``removed`` or ``changed``."""
    if change.old is None:
        return "added"
    return "removed" if change.new is None else "changed"


def change_report(change: Change) -> ChangeReport:
    """A change in words and numbers."""
    inode = change.new or change.old
    assert inode is not None
    differences: tuple[Difference, ...] = ()
    link = None
    if change.old is None or change.new is None:
        link = change.new_link or change.old_link
    else:
        differences = tuple(_differences(change, change.old, change.new))
    return ChangeReport(
        path=escape_text(change.path),
        change=change_kind(change),
        type=type_name(inode.mode),
        link_to=None if link is None else escape_text(link),
        differences=differences,
    )


def _differences(change: Change, old: Directory | Leaf, new: Directory | Leaf) -> Iterator[Difference]:
    for aspect in change.aspects:
        match aspect:
            case Aspect.XATTRS:
                for key in change.xattrs:
                    yield Difference(
                        aspect=aspect.value,
                        key=escape_text(key),
                        before=_optional(old.xattrs.get(key)),
                        after=_optional(new.xattrs.get(key)),
                    )
            case Aspect.LINKS:
                before, after = _link_texts(change, old, new)
                yield Difference(aspect=aspect.value, before=before, after=after)
            case Aspect.CONTENT | Aspect.DIGEST | Aspect.PAYLOAD:
                yield _content_difference(aspect, old, new)
            case _:
                yield Difference(aspect=aspect.value, before=_value(aspect, old), after=_value(aspect, new))


def _link_texts(change: Change, old: Directory | Leaf, new: Directory | Leaf) -> tuple[str, str]:
    if change.old_first is change.new_first:
        return _count_text(old.nlink, change.old_names), _count_text(new.nlink, change.new_names)
    before, after = (
        "an inode of its own" if link is None else f"a link to {escape_text(link)}"
        for link in (change.old_link, change.new_link)
    )
    return before, after


def _count_text(nlink: int, names: int) -> str:
    return f"link count {nlink} for {names} {'name' if names == 1 else 'names'}"


def _content_difference(aspect: Aspect, old: Directory | Leaf, new: Directory | Leaf) -> Difference:
    assert isinstance(old, RegularFile)
    assert isinstance(new, RegularFile)
    show = _payload_text if aspect is Aspect.PAYLOAD else _digest_text
    return Difference(aspect=aspect.value, before=show(old), after=show(new), size_before=old.size, size_after=new.size)


def _payload_text(file: RegularFile) -> str | None:
    match file.content:
        case External(payload=payload):
            return _optional(payload)
        case Located() as located:
            return pieces_text(located)
        case bytes() | Unread():
            return None


def _digest_text(file: RegularFile) -> str | None:
    match file.content:
        case External(digest=digest):
            return digest.hex() if digest else None
        case bytes():
            return "inline"
        case Located():
            return "located"
        case Unread():
            return None


def _value(aspect: Aspect, inode: Directory | Leaf) -> str:
    """The value of an aspect that is a single one."""
    match aspect:
        case Aspect.TYPE:
            value = type_name(inode.mode)
        case Aspect.MODE:
            value = f"{stat.S_IMODE(inode.mode):04o}"
        case Aspect.OWNER:
            value = f"{inode.uid}:{inode.gid}"
        case Aspect.MTIME:
            value = f"{inode.mtime_sec}.{inode.mtime_nsec:09d}"
        case _:
            value = _data_value(inode)
    return value


def _data_value(inode: Directory | Leaf) -> str:
    """What there is besides metadata: a target, a device number, or the size that dump texts can give."""
    match inode:
        case Symlink(target=target):
            return escape_text(target)
        case Device(rdev=rdev, size=size):
            return f"{os.major(rdev)},{os.minor(rdev)}" + (f" of size {size}" if size else "")
        case Fifo(size=size) | Socket(size=size):
            return str(size)
        case _:
            raise AssertionError(inode)


def _optional(data: bytes | None) -> str | None:
    return None if data is None else escape_text(data)
