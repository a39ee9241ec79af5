"""The extended attributes by which a composefs image talks to overlayfs, and the word for an image's format."""

from __future__ import annotations

from cfstools.formats.erofs import layout as fmt
from cfstools.verity import Algorithm

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
METACOPY_HEADERS = {Algorithm.SHA256: fmt.METACOPY_SHA256, Algorithm.SHA512: fmt.METACOPY_SHA512}


def format_word(version: int, algorithm: Algorithm) -> str:
    """What decides the bytes of an image in one word, like ``v0-sha256-12`` (12: the logarithm of the block size)."""
    return f"v{version}-{algorithm.value}-{fmt.BLOCK_BITS}"
