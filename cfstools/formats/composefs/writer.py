"""From a tree to a composefs image: natively where nothing in the tree is rare, else by :mod:`.plan`.

Rules: composefs format, sections 1.4 and 4.5 to 4.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cfstools import native
from cfstools.formats.composefs.overlay_xattrs import HIDING_NAMES, METACOPY_HEADERS, rewrite_xattrs, select_version
from cfstools.formats.erofs import layout as fmt
from cfstools.tree import Directory
from cfstools.tree.model import KINDS
from cfstools.verity import Algorithm

_CHUNK = 1 << 20


class Encoding(Protocol):
    """An image that is planned: every byte is decided, none is written."""

    @property
    def header(self) -> fmt.ComposefsHeader:
        """Its first bytes."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def inode_count(self) -> int:
        """Number of its inodes."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes from front to back, in pieces of about 1 MiB."""


class _Encoded(NamedTuple):
    """An :class:`Encoding` that the native encoder made whole, in memory."""

    image: bytes
    inode_count: int

    @property
    def header(self) -> fmt.ComposefsHeader:
        return fmt.ComposefsHeader._make(fmt.COMPOSEFS_HEADER.unpack_from(self.image))

    @property
    def size(self) -> int:
        return len(self.image)

    def chunks(self) -> Iterator[memoryview]:
        view = memoryview(self.image)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def plan_image(
    root: Directory, *, min_version: int = 0, max_version: int = 1, algorithm: Algorithm = Algorithm.SHA256
) -> Encoding:
    """Plan the composefs image of *root*; ``chunks()`` of the result yields its bytes.

    Digests of external files must be of *algorithm*. The tree is not changed. Raises UsageError for versions that
    do not exist and TreeError, naming the path, for what the format cannot hold or the reference refuses.
    """
    # The native function declines trees with whiteouts, the only ones for which the version depends on the tree.
    version = select_version(min_version, max_version, has_whiteout=False)
    encoded = native.encode_tree(
        root, KINDS, rewrite_xattrs, METACOPY_HEADERS[algorithm], algorithm.digest_size, version
    )
    if encoded is not None:
        return _Encoded(image=encoded[0], inode_count=encoded[1])
    # Imported late: most trees do not need it.
    from cfstools.formats.composefs.plan import place_tree  # noqa: PLC0415

    return place_tree(root, min_version=min_version, max_version=max_version, algorithm=algorithm)


def automatic_whiteouts(root: Directory) -> int:
    """Number of whiteouts that the writer adds to *root* and readers drop again (section 4.7)."""
    return sum(name not in root.entries for name in HIDING_NAMES)
