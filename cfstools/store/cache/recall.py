"""What a walk takes from the digest cache: the digests of files of which nothing has to be read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cfstools.native import KNOWN_RECORD
from cfstools.tree.model import Stamp

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.native._names import Recall as Words

_END = 8  # bytes of one of the ends


class Taken:
    """Files that were found: digests and ends as ``native.find_objects`` takes them, and ``KNOWN_RECORD`` heads."""

    def __init__(self, digests: bytes, ends: bytes, heads: bytes) -> None:
        self.digests = digests
        self.ends = ends
        self.heads = heads

    def __len__(self) -> int:
        return len(self.ends) // _END

    @property
    def size(self) -> int:
        """Their size in bytes, all together."""
        return int.from_bytes(self.ends[-_END:], sys.byteorder)

    def stamp(self, device: int, number: int) -> Stamp:
        """The stamp of a file, which lies on *device*."""
        return Stamp(device, *KNOWN_RECORD.unpack_from(self.heads, number * KNOWN_RECORD.size)[:4])


class Recall:
    """The records of a digest cache for one walk, in one thread; ``words`` are for ``native.stat_names``.

    A record counts if it was *seen* since then and, where attributes are read, says that *bare* sees none.
    """

    def __init__(
        self, records: Buffer, device: int, *, digest_size: int, inline_threshold: int, seen: int, bare: int
    ) -> None:
        self.device = device
        self._digests, self._ends, self._heads = bytearray(), bytearray(), bytearray()
        found = self._digests, self._ends, self._heads
        self.words: Words = (records, device, digest_size, inline_threshold, seen, bare, *found)

    def __len__(self) -> int:
        """The number of files that were found and not taken yet."""
        return len(self._ends) // _END

    def take(self) -> Taken:
        """What was found since the last call."""
        taken = Taken(bytes(self._digests), bytes(self._ends), bytes(self._heads))
        for found in (self._digests, self._ends, self._heads):
            found.clear()
        return taken


__all__ = ["Recall", "Taken"]
