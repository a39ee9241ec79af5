"""POSIX access control lists: as text in archives, and as Linux stores them in an extended attribute.

The mode of an inode with such a list has the list's *mask* as group permissions. If the list is lost, the group and the
named users get rights that they did not have; :meth:`Acl.safe_mode` is a mode without that effect.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cfstools.errors import OciError

ACCESS_KEY = b"system.posix_acl_access"
DEFAULT_KEY = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NAMED = (_USER, _GROUP)
_TAGS = {b"user": 0, b"u": 0, b"group": 1, b"g": 1, b"mask": 2, b"m": 2, b"other": 3, b"o": 3}
_BARE = (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER)
_PERMISSIONS = re.compile(rb"[r-]?[w-]?[x-]?")
_SEPARATORS = re.compile(rb"[,\n]")


class AclEntry(NamedTuple):
    """One entry; ``id`` is ``None`` for entries without a user or group, and for one known by name only."""

    tag: int
    permissions: int
    id: int | None = None


class Acl(NamedTuple):
    """An access control list, its entries in the kernel's order."""

    entries: tuple[AclEntry, ...]

    @property
    def is_extended(self) -> bool:
        """Whether it has more entries than the three that a mode expresses."""
        return len(self.entries) > 3

    @property
    def is_numeric(self) -> bool:
        """Whether every named user and group has a number."""
        return all(entry.id is not None for entry in self.entries if entry.tag in _NAMED)

    @property
    def mode(self) -> int:
        """The nine permission bits of an inode with this list."""
        return self._bits(self._of(_USER_OBJ), self._mask(), self._of(_OTHER))

    @property
    def mode_without_mask(self) -> int:
        """The same with the group's own permissions instead of the mask, as bsdtar writes into headers."""
        return self._bits(self._of(_USER_OBJ), self._of(_GROUP_OBJ), self._of(_OTHER))

    @property
    def safe_mode(self) -> int:
        """Permission bits that, without the list, give nobody more rights than the list did.

        Named users fall under group or others then, so these get no right that one of the named ones lacks.
        """
        mask = self._mask()
        group, other = self._of(_GROUP_OBJ) & mask, self._of(_OTHER)
        for entry in self.entries:
            if entry.tag == _USER:
                group &= entry.permissions & mask
            if entry.tag in _NAMED:
                other &= entry.permissions & mask
        return self._bits(self._of(_USER_OBJ), group, other)

    def encode(self) -> bytes:
        """The value of the extended attribute. Only for numeric lists."""
        return _VERSION.pack(2) + b"".join(
            _ENTRY.pack(entry.tag, entry.permissions, _NO_ID if entry.id is None else entry.id)
            for entry in self.entries
        )

    def _of(self, tag: int) -> int:
        return next(entry.permissions for entry in self.entries if entry.tag == tag)

    def _mask(self) -> int:
        return next((entry.permissions for entry in self.entries if entry.tag == _MASK), self._of(_GROUP_OBJ))

    @staticmethod
    def _bits(user: int, group: int, other: int) -> int:
        return user << 6 | group << 3 | other


def parse_acl_text(text: bytes) -> Acl:
    """Parse the text form of tar archives: ``user::rwx,user:NAME:r-x:NUMBER,…``, separated by commas or newlines.

    A number may also replace the name. Raises :class:`OciError`.
    """
    return _checked(_text_entries(text))


def parse_acl_value(value: bytes) -> Acl:
    """Parse the value of the kernel's extended attribute. Raises :class:`OciError`."""
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != 2 or (len(value) - 4) % _ENTRY.size:
        raise OciError("not an access control list of version 2")
    entries = []
    for tag, permissions, number in _ENTRY.iter_unpack(value[_VERSION.size :]):
        if tag not in {*_NAMED, *_BARE} or permissions > 7:
            raise OciError(f"an entry of the access control list has type {tag:#x} and permissions {permissions:#o}")
        entries.append(AclEntry(tag, permissions, number if tag in _NAMED else None))
    return _checked(entries)


def _text_entries(text: bytes) -> Iterator[AclEntry]:
    for line in _SEPARATORS.split(text):
        fields = [field.strip() for field in line.partition(b"#")[0].split(b":")]
        if fields == [b""]:
            continue
        if fields[0] in {b"default", b"d"}:
            del fields[0]
        kind = _TAGS.get(fields[0]) if fields else None
        if kind is None:
            raise OciError("an entry of the access control list is of no known kind")
        if len(fields) == 2 and kind > 1:  # mask and other have no name, and some writers omit the empty field
            fields.insert(1, b"")
        if not 3 <= len(fields) <= 4 or (kind > 1 and fields[1]):
            raise OciError("an entry of the access control list has too few or too many fields")
        permissions = _permissions(fields[2])
        if kind > 1 or not fields[1]:
            yield AclEntry(_BARE[kind], permissions)
        else:
            yield AclEntry(_NAMED[kind], permissions, _number(fields[1], fields[3:]))


def _permissions(text: bytes) -> int:
    if not text or not _PERMISSIONS.fullmatch(text):
        raise OciError("the permissions of an access control list are not written rwx")
    return 4 * (b"r" in text) | 2 * (b"w" in text) | (b"x" in text)


def _number(name: bytes, more: list[bytes]) -> int | None:
    text = more[0] if more and more[0] else name
    if not text.isdigit():
        if more and more[0]:
            raise OciError("an id in the access control list is not a number")
        return None
    if len(text) > 10 or int(text) >= _NO_ID:
        raise OciError("a number in the access control list is out of range")
    return int(text)


def _checked(found: Iterable[AclEntry]) -> Acl:
    """Sort the entries and check that they make a list: owner, group, others, and a mask if anybody is named."""
    entries = sorted(found, key=lambda entry: (entry.tag, -1 if entry.id is None else entry.id))
    tags = [entry.tag for entry in entries]
    if any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) or tags.count(_MASK) > 1:
        raise OciError("an access control list needs one entry each for the owner, the group and all others")
    if _MASK not in tags and (_USER in tags or _GROUP in tags):
        raise OciError("an access control list with named users or groups needs a mask")
    named = [(entry.tag, entry.id) for entry in entries if entry.tag in _NAMED and entry.id is not None]
    if len(set(named)) < len(named):
        raise OciError("a user or group is named twice in the access control list")
    return Acl(tuple(entries))
