"""Limits of extended attributes: their lengths, and the space that all of an inode may take.

The space is accounted exactly as the reference writer does it, oddities included (composefs format, section 10.1),
because that account decides which trees it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType

from cfstools.errors import TreeError
from cfstools.text import shown_path
from cfstools.tree.model import NO_XATTRS, Xattrs

MAX_KEY = 255
MAX_VALUE = 65535
MAX_SPACE = 32767
BASE_COST = 12
ENTRY_COST = 7

_WORD = 2**64


class XattrPolicy(Enum):
    """Which extended attributes of a source are kept."""

    ALL = "all"
    USER = "user"
    NONE = "none"

    @property
    def accepts(self) -> Callable[[bytes], bool]:
        """A predicate over whole attribute names (``b"user.mime_type"``)."""
        return _ACCEPTS[self]


_ACCEPTS: Mapping[XattrPolicy, Callable[[bytes], bool]] = {
    XattrPolicy.ALL: lambda key: True,  # noqa: ARG005 - a predicate has one parameter
    XattrPolicy.USER: lambda key: key.startswith(b"user."),
    XattrPolicy.NONE: lambda key: False,  # noqa: ARG005 - a predicate has one parameter
}


class XattrBuilder:
    """Collects the attributes of one inode and accounts for their space as the reference does.

    *existing* attributes are there from the start but not in the account, as in an inode that the reference copies and
    then rewrites. That is why it refuses to replace an attribute of such an inode by a shorter one (composefs format,
    section 10.3, Q5). A new inode starts with none.
    """

    __slots__ = ("_account", "_values")

    def __init__(self, existing: Xattrs = NO_XATTRS) -> None:
        self._values = dict(existing)
        self._account = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: bytes) -> bytes | None:
        """The value of *key* so far, or ``None``."""
        return self._values.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        """Set *key* to *value*, replacing what it had (composefs format, section 10.1).

        Raises :class:`TreeError` if the key is empty or too long, the value too long, or the space used up. The builder
        is of no use after an error.
        """
        check_xattr(key, value)
        values = self._values
        old = values.pop(key, None)
        if old is not None:
            # Unsigned 64-bit arithmetic: an account below zero becomes enormous and is caught below.
            self._account = (self._account - ENTRY_COST - len(key) - len(old)) % _WORD if values else 0
        need = ENTRY_COST + len(key) + len(value) + (0 if values else BASE_COST)
        account = (self._account + need) % _WORD
        if account > MAX_SPACE:
            raise _no_space(key)
        values[key] = value
        self._account = account

    def remove(self, key: bytes) -> None:
        """Remove *key* and its cost, if it is set."""
        old = self._values.pop(key, None)
        if old is not None:
            self._account = (self._account - ENTRY_COST - len(key) - len(old)) % _WORD if self._values else 0

    def build(self) -> Xattrs:
        """The attributes in the order they were set, as a read-only mapping."""
        return MappingProxyType(dict(self._values)) if self._values else NO_XATTRS


def check_xattr(key: bytes, value: bytes) -> None:
    """Raise :class:`TreeError` if the length of *key* or *value* is out of bounds."""
    if not 0 < len(key) <= MAX_KEY:
        raise TreeError(f"the name of an extended attribute is {len(key)} bytes long, allowed are 1 to {MAX_KEY}")
    if len(value) > MAX_VALUE:
        raise TreeError(
            f"extended attribute {shown_path(key)} has a value of {len(value)} bytes, allowed are {MAX_VALUE}"
        )


def xattr_space(xattrs: Xattrs) -> int:
    """The space that *xattrs* take in a new inode, in bytes of the account; 0 for none."""
    if not xattrs:
        return 0
    return BASE_COST + sum(ENTRY_COST + len(key) + len(value) for key, value in xattrs.items())


def check_xattr_space(xattrs: Xattrs) -> None:
    """Raise :class:`TreeError` unless *xattrs* fit into a new inode (composefs format, section 10.1)."""
    for key, value in xattrs.items():
        check_xattr(key, value)
    space = xattr_space(xattrs)
    if space > MAX_SPACE:
        largest = max(xattrs, key=lambda key: len(xattrs[key]))
        raise _no_space(largest)


def _no_space(key: bytes) -> TreeError:
    why = f"the attributes of one inode may take {MAX_SPACE} bytes in all"
    return TreeError(f"no room for extended attribute {shown_path(key)}: {why}")
