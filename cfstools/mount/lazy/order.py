"""Which objects are fetched before anybody asks for them, and in which order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

GROUP_OBJECTS = 64
GROUP_BYTES = 8 << 20
"""What is planned together: so much fits in one range of a layer."""

MAX_AHEAD = 8 << 20
"""Larger objects are not read ahead."""

_NEAR = 256
"""A reader who goes back by at most so many objects goes through a directory from its end."""


class Order:
    """The objects in *sizes*, sizes by digest in the order of the tree. Thread-safe."""

    def __init__(self, sizes: Mapping[bytes, int]) -> None:
        self._sizes = sizes
        self._lock = threading.Lock()
        self._wanted: list[Iterator[bytes]] = []
        self._ahead: set[bytes] = set()
        self._last = -1  # the place of the object asked about last
        self._step = 1  # or -1: which way the reader goes
        self._pending: bytes | None = None  # did not fit into the last group
        self._round = 0  # how often what was added was forgotten

    @cached_property
    def _digests(self) -> list[bytes]:
        return list(self._sizes)

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {digest: place for place, digest in enumerate(self._digests)}

    def following(self, digest: bytes, count: int, *, missed: bool) -> list[bytes]:
        """So many objects behind one on a reader's way, without large ones, and without those named before.

        For one that was *missed*, or that was named itself and now is half of the way behind. The way is that of the
        tree, or its reverse: tmpfs, and so what users mount over it, lists directories from their end (Linux 6.18).
        """
        if not count:
            return []
        with self._lock:
            place = self._places[digest]
            if place != self._last:
                self._step = -1 if 0 < self._last - place <= _NEAR else 1
                self._last = place
            if not (missed or digest in self._ahead):
                return []
            onward = slice(place + 1, place + 1 + count)
            window = self._digests[onward] if self._step > 0 else self._digests[max(place - count, 0) : place][::-1]
            names = [one for one in window if self._sizes[one] <= MAX_AHEAD and one not in self._ahead]
            if not missed and len(names) < -(-len(window) // 2):
                return []
            self._ahead.update(names)
            return names

    def add(self, digests: Iterable[bytes]) -> None:
        """Fetch these behind what was added before. What is no object is ignored when it is its turn."""
        with self._lock:
            self._wanted.append(iter(digests))

    def forget(self) -> bool:
        """Fetch nothing of what was added; whether there was something."""
        with self._lock:
            had = bool(self._wanted) or self._pending is not None
            self._wanted, self._pending = [], None
            self._round += 1
            return had

    def is_forgotten(self, number: int) -> bool:
        """Whether the groups of this round are fetched no more."""
        return number != self._round

    def next_group(self) -> tuple[int, Sequence[bytes]]:
        """The number of this round and the next objects that were added; none at the end."""
        with self._lock:
            group: dict[bytes, None] = {}
            room = GROUP_BYTES
            while len(group) < GROUP_OBJECTS and (digest := self._next()) is not None:
                size = self._sizes[digest]
                if group and size > room:
                    self._pending = digest
                    break
                group[digest] = None
                room -= size
            return self._round, list(group)

    def _next(self) -> bytes | None:
        if self._pending is not None:
            digest, self._pending = self._pending, None
            return digest
        while self._wanted:
            for digest in self._wanted[0]:
                if digest in self._sizes:
                    return digest
            del self._wanted[0]
        return None
