"""The extended attributes that overlayfs reads in a composefs image; versions, and the one-word name of the format.

Rules: composefs format, sections 1.4 and 4.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfstools.errors import UsageError
from cfstools.formats.erofs import layout as fmt
from cfstools.tree import Xattrs
from cfstools.tree.xattrs import check_xattr_space
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from cfstools.formats.erofs.xattrs import Pair

OVERLAY = b"trusted.overlay."
ESCAPED = b"trusted.overlay.overlay."
METACOPY_KEY = b"trusted.overlay.metacopy"
REDIRECT_KEY = b"trusted.overlay.redirect"
OPAQUE_KEY = b"trusted.overlay.opaque"
SELINUX_KEY = b"security.selinux"
ACL_KEYS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
WHITEOUT_MARKS = ((ESCAPED + b"whiteout", b""), (b"user.overlay.whiteout", b""))
PARENT_MARKS = ((ESCAPED + b"whiteouts", b""), (b"user.overlay.whiteouts", b""))
PARENT_MARKS_V1 = (*PARENT_MARKS, (ESCAPED + b"opaque", b"x"), (b"user.overlay.opaque", b"x"))
# Automatic whiteouts in the root, which hide the directories of a store.
HIDING_NAMES = [b"%02x" % number for number in range(256)]
METACOPY_HEADERS = {
    algorithm: fmt.METACOPY.pack(0, fmt.METACOPY.size + algorithm.digest_size, 0, algorithm.number)
    for algorithm in Algorithm
}


def format_word(version: int, algorithm: Algorithm) -> str:
    """Version, algorithm and log2 of the block size, which decide the bytes of an image: ``v0-sha256-12``."""
    return f"v{version}-{algorithm.value}-{fmt.BLOCK_BITS}"


def select_version(minimum: int, maximum: int, *, has_whiteout: bool) -> int:
    """Select the composefs version to write (section 1.4). Raises UsageError for versions that do not exist."""
    for option, version in (("minimum", minimum), ("maximum", maximum)):
        if not 0 <= version <= fmt.MAX_COMPOSEFS_VERSION:
            raise UsageError(f"{option} format version {version} does not exist: 0 and 1 do")
    if has_whiteout and minimum < 1 <= maximum:
        return 1
    return minimum


def rewrite_xattrs(xattrs: Xattrs) -> list[Pair]:
    """Escape and sort the attributes of an inode as an image stores them. Raises TreeError if they do not fit."""
    check_xattr_space(xattrs)
    return sorted([(escape_key(key), value) for key, value in xattrs.items()])


def escape_key(key: bytes) -> bytes:
    """Insert one more ``overlay.`` into a key that overlayfs would act on, so that it does not (section 4.5)."""
    return ESCAPED + key[len(OVERLAY) :] if key.startswith(OVERLAY) else key
