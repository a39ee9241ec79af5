"""How objects are fetched when they are read, and what was counted."""

from __future__ import annotations

from cfstools.errors import UsageError
from cfstools.store.base import FsVerity, Sync
from cfstools.values import Value

LEAST = 64 << 10
"""Bytes that must come while a source is waited for as long as one attempt may take."""


class LazyOptions(Value):
    """How objects come.

    So many ``connections`` fetch at a time. On each miss ``readahead`` more objects are fetched, in the order of the
    tree. A source gets ``timeout`` seconds to give :data:`LEAST` bytes or all that is left, and all sources are asked
    up to ``attempts`` times. ``cache_size`` bytes are kept in temporary files where nothing can be published. The other
    fields are for new objects in the store.
    """

    connections: int = 8
    readahead: int = 8
    timeout: float = 30
    attempts: int = 3
    cache_size: int = 1 << 30
    object_mode: int = 0o644
    fs_verity: FsVerity = "auto"
    sync: Sync = "auto"

    def _check(self) -> None:
        if self.connections < 1 or self.attempts < 1 or self.timeout <= 0:
            raise UsageError("connections, attempts and timeout of lazy stores are positive")
        if self.readahead < 0 or self.cache_size < 0:
            raise UsageError("readahead and cache size of lazy stores are not negative")

    @property
    def deadline(self) -> float:
        """Seconds after which a reader that waits gets an error."""
        return self.attempts * self.timeout + 1


class FillCounters(Value):
    """What a filler did. Sizes are in bytes.

    ``objects`` of ``bytes`` were fetched whole, ``parts`` of ``part_bytes`` out of objects that are not; ``ahead`` of
    the objects before anybody asked for them. ``hits`` are opens that did not have to wait, ``misses`` those that did,
    ``failures`` those that ended in an error; ``waiting`` wait now. ``published`` objects are in the store, ``kept``
    ones only in temporary files.
    """

    objects: int = 0
    bytes: int = 0
    parts: int = 0
    part_bytes: int = 0
    ahead: int = 0
    hits: int = 0
    misses: int = 0
    failures: int = 0
    waiting: int = 0
    published: int = 0
    kept: int = 0
