"""What makes an EROFS image a composefs image: versions, overlay xattrs, whiteouts.

Rules: composefs format, sections 1.4 and 4.5 to 4.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cfstools import native
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.overlay import HIDING_NAMES, METACOPY_HEADERS, rewrite_xattrs, select_version
from cfstools.tree import Directory
from cfstools.tree.model import KINDS
from cfstools.verity import Algorithm

_CHUNK = 1 << 20


class Encoding(Protocol):
    """An image whose every byte is decided."""

    @property
    def header(self) -> fmt.ComposefsHeader:
        """Its first bytes."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def inode_count(self) -> int:
        """How many inodes it has."""

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes from front to back, in pieces of about 1 MiB."""


class _Encoded(NamedTuple):
    """An :class:`Encoding` that is in memory already."""

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


def write_image(
    root: Directory, *, min_version: int = 0, max_version: int = 1, algorithm: Algorithm = Algorithm.SHA256
) -> bytes:
    """The bytes of the composefs image of *root*; see :func:`plan_image` for errors."""
    return b"".join(plan_image(root, min_version=min_version, max_version=max_version, algorithm=algorithm).chunks())


def plan_image(
    root: Directory, *, min_version: int = 0, max_version: int = 1, algorithm: Algorithm = Algorithm.SHA256
) -> Encoding:
    """Decide every byte of the composefs image of *root*, to be emitted by ``chunks()``.

    Digests of external files must be of *algorithm*. The tree is not changed. Raises UsageError for versions that
    do not exist and TreeError, naming the path, for what the format cannot hold or the reference refuses.
    """
    # The native function leaves trees with whiteouts to us, and so decides nothing about versions.
    version = select_version(min_version, max_version, has_whiteout=False)
    encoded = native.encode_tree(
        root, KINDS, rewrite_xattrs, METACOPY_HEADERS[algorithm], algorithm.digest_size, version
    )
    if encoded is not None:
        return _Encoded(image=encoded[0], inode_count=encoded[1])
    # Most trees are encoded by now.
    from cfstools.formats.composefs_plan import place_tree  # noqa: PLC0415

    return place_tree(root, min_version=min_version, max_version=max_version, algorithm=algorithm)


def automatic_whiteouts(root: Directory) -> int:
    """How many inodes the image of *root* has that readers leave out of its tree again (section 4.7)."""
    return sum(name not in root.entries for name in HIDING_NAMES)
