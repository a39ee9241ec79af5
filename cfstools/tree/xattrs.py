"""Rules of extended attributes: which there may be, and how much room they may take in one inode.

The space rule is the reference writer's own account (composefs format, section 10.1). It has to be followed to
the letter where a tree is read or rewritten, because it decides what is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType

from cfstools.errors import TreeError, shown_path
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
    """The attributes of one inode while they are set one by one, with the reference's account of their space.

    *existing* attributes are there from the start but not in the account: that is how the reference rewrites an
    inode it has copied, and the reason it refuses to replace an attribute of such an inode by a shorter one
    (composefs format, section 10.3, Q5). A new inode starts with none.
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

        Raises :class:`TreeError` for an empty or over-long key, an over-long value and for lack of space.
        The builder must not be used further after an error.
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
        """Remove *key* if it is there, and its cost from the account."""
        old = self._values.pop(key, None)
        if old is not None:
            self._account = (self._account - ENTRY_COST - len(key) - len(old)) % _WORD if self._values else 0

    def build(self) -> Xattrs:
        """The attributes as a read-only mapping in the order they were set."""
        return MappingProxyType(dict(self._values)) if self._values else NO_XATTRS


def check_xattr(key: bytes, value: bytes) -> None:
    """Raise :class:`TreeError` unless *key* and *value* have lengths an attribute may have."""
    if not 0 < len(key) <= MAX_KEY:
        raise TreeError(f"the name of an extended attribute is {len(key)} bytes long, allowed are 1 to {MAX_KEY}")
    if len(value) > MAX_VALUE:
        raise TreeError(
            f"extended attribute {shown_path(key)} has a value of {len(value)} bytes, allowed are {MAX_VALUE}"
        )


def xattr_space(xattrs: Xattrs) -> int:
    """What the account of a new inode stands at after all of *xattrs* were set (0 for none)."""
    if not xattrs:
        return 0
    return BASE_COST + sum(ENTRY_COST + len(key) + len(value) for key, value in xattrs.items())


def check_xattr_space(xattrs: Xattrs) -> None:
    """Raise :class:`TreeError` unless a new inode can be given all of *xattrs* (composefs format, section 10.1)."""
    for key, value in xattrs.items():
        check_xattr(key, value)
    space = xattr_space(xattrs)
    if space > MAX_SPACE:
        largest = max(xattrs, key=lambda key: len(xattrs[key]))
        raise _no_space(largest)


def _no_space(key: bytes) -> TreeError:
    why = f"the attributes of one inode may take {MAX_SPACE} bytes in all"
    return TreeError(f"no room for extended attribute {shown_path(key)}: {why}")
