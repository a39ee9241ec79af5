"""Small objects that stay in memory while the kernel asks for their parts."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cfstools.mount.fuse import contents as module
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.store.base import BytesObject
from cfstools.store.memory import MemoryStore
from cfstools.tree import Content, External
from cfstools.verity import digest_bytes

SIZE = 3 << 10


class Bodies:
    """Files of one size, by number."""

    count = 9

    def content(self, node: int) -> tuple[int, Content] | None:
        return SIZE, External(digest_bytes(body(node)), None)


def body(node: int) -> bytes:
    return bytes([node]) * SIZE


class Store(MemoryStore):
    """Holds the bodies of nine files, and counts how often one is opened; *before* is called at each."""

    def __init__(self, before: Callable[[], object] = int) -> None:
        super().__init__()
        self.opened = 0
        self._before = before
        for node in range(9):
            self.add(body(node))

    def open(self, digest: bytes) -> BytesObject:
        self.opened += 1
        self._before()
        return super().open(digest)


def test_two_readers_of_one_object_take_its_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES", 2 * SIZE)
    both = threading.Barrier(2)
    with ObjectContents(Bodies(), [Store(lambda: both.wait(timeout=30))]) as contents:
        for node in (1, 2, 3, 4):
            readers = [threading.Thread(target=contents.wait, args=(node, 0, 10)) for _ in range(2)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        assert [node for node in range(9) if contents.at_hand(node, 0, 1)] == [3, 4]


def test_what_came_meanwhile_is_not_read_again() -> None:
    store = Store()
    with ObjectContents(Bodies(), [store]) as contents:
        assert contents.wait(5, 1, 3) == contents.wait(5, SIZE - 3, 9) == b"\5\5\5"
    assert store.opened == 1
