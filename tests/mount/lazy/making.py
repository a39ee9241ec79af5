"""Objects, and sources of them that count, wait, fail and lie."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cfstools.errors import CfsError
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.options import LazyOptions
from cfstools.sources.places import store_objects
from cfstools.store import DirectoryStore
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, Version
from cfstools.transport.memory import MemoryTarget
from cfstools.transport.objects import PlaceObjects
from cfstools.transport.retry import Clock, RetryRules
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.object_id import leaves_name, object_name

ONCE = RetryRules(attempts=1)
QUICK = LazyOptions(attempts=2, timeout=5, readahead=0)
EAGER_CLOCK = Clock(sleep=lambda _seconds: None)


def make_objects(seed: int, *sizes: int, algorithm: Algorithm = Algorithm.SHA256) -> dict[bytes, bytes]:
    """Objects of these sizes by digest, in this order."""
    chance = random.Random(seed)
    contents = [chance.randbytes(size) for size in sizes]
    return {digest_bytes(data, Params(algorithm=algorithm)): data for data in contents}


def sizes_of(objects: Mapping[bytes, bytes]) -> dict[bytes, int]:
    return {digest: len(data) for digest, data in objects.items()}


def leaves_of(digest: bytes, data: bytes) -> bytes:
    """The digests of the blocks of an object, by hashlib alone."""
    import hashlib

    name = "sha256" if len(digest) == 32 else "sha512"
    blocks = [data[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(data), 4096)]
    return b"".join(hashlib.new(name, block).digest() for block in blocks)


class Place:
    """A place in memory. ``asked`` counts reads by name; *before* is called in each, and may wait or raise."""

    def __init__(
        self,
        objects: Mapping[bytes, bytes],
        *,
        leaves: bool = False,
        before: Callable[[str, Span | None], None] = lambda _name, _span: None,
    ) -> None:
        self.contents = {object_name(digest): data for digest, data in objects.items()}
        if leaves:
            self.contents |= {leaves_name(digest): leaves_of(digest, data) for digest, data in objects.items()}
        self.before = before
        self.asked: Counter[str] = Counter()
        self.spans: list[tuple[str, Span | None]] = []
        self.given = 0
        self._lock = threading.Lock()

    def size(self, name: str) -> int | None:
        data = self.contents.get(name)
        return None if data is None else len(data)

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        with self._lock:
            self.asked[name] += 1
            self.spans.append((name, span))
        self.before(name, span)
        with MemoryTarget(self.contents).read(name, span, version) as read:

            def counted(count: int) -> bytes:
                part = read(count)
                with self._lock:
                    self.given += len(part)
                return part

            yield counted

    def describe(self, name: str) -> str:
        return f"memory:{name}"

    def close(self) -> None:
        pass

    def source(self, shown: str = "memory") -> PlaceObjects:
        made = store_objects(self)
        return PlaceObjects(self, made._name_of, shown, leaves_of=made._leaves_of, rules=ONCE, clock=EAGER_CLOCK)


def failing(error: Callable[[], CfsError], times: int = 1 << 30) -> Callable[[str, Span | None], None]:
    """A ``before`` that raises so many times."""
    left = times
    lock = threading.Lock()

    def before(_name: str, _span: Span | None) -> None:
        nonlocal left
        with lock:
            if not left:
                return
            left -= 1
        raise error()

    return before


def filler(
    *places: Place,
    objects: Mapping[bytes, bytes],
    store: DirectoryStore | None = None,
    options: LazyOptions = QUICK,
    log: Callable[[str], None] = print,
    scratch: bytes = b"/tmp",
) -> Filler:
    return Filler(
        [place.source(f"place{number}") for number, place in enumerate(places)],
        sizes_of(objects),
        local=[store] if store is not None else [],
        store=store,
        options=options,
        scratch=scratch,
        log=log,
        clock=EAGER_CLOCK,
    )


def read_whole(store: Filler, digest: bytes) -> bytes:
    found = store.open(digest)
    try:
        data = b""
        while part := found.read(len(data), 1 << 20):
            data += part
        return data
    finally:
        found.close()
