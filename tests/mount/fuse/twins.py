"""Nodes and contents as plain objects in memory: slow, simple, and right, to compare the real ones with."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Any

from cfstools.tree import NO_XATTRS, Directory, External, RegularFile, Symlink, Xattrs
from cfstools.view.nodes import Node, View

FOREVER = 2**31 - 1


class InlinePool:
    """Runs at once what a pool would run in its threads."""

    def submit(self, function: Callable[..., Any], *words: object) -> None:
        function(*words)


class MemoryNodes:
    """The nodes of a view by number, numbered as the real ones are."""

    def __init__(self, view: View, size: int = 0) -> None:
        self.view = view
        self.size = size
        self.nodes: list[Node] = [view.root]
        self.above = {1: 1}
        self.names: dict[int, list[tuple[bytes, int]]] = {}
        pending = [(1, view.root)]
        while pending:
            number, directory = pending.pop()
            self.names[number] = []
            below = []
            for name, node in view.children(directory):
                child = next((at + 1 for at, known in enumerate(self.nodes) if known is node), 0)
                if not child:
                    self.nodes.append(node)
                    child = len(self.nodes)
                    if isinstance(node, Directory):
                        self.above[child] = number
                        below.append((child, node))
                self.names[number].append((name, child))
            pending += reversed(below)
        self.count = len(self.nodes)
        self.has_xattrs = any(self.xattrs(number) for number in range(1, self.count + 1))

    def _node(self, number: int) -> Node:
        if not 1 <= number <= self.count:
            raise KeyError(number)
        return self.nodes[number - 1]

    def find(self, node: int, name: bytes) -> int:
        self._node(node)
        return dict(self.names.get(node, [])).get(name, 0)

    def parent(self, node: int) -> int:
        self._node(node)
        return self.above.get(node, 0)

    def entry(self, node: int) -> bytes:
        found = self.view.attributes(self._node(node))
        seconds, nanoseconds = found.mtime_sec % 2**64, min(found.mtime_nsec, 999_999_999)
        blocks = (found.size + 4095) // 4096 * 8
        attributes = [node, found.size, blocks, *[seconds] * 3, *[nanoseconds] * 3, found.mode, found.nlink]
        owner = [found.uid, found.gid, found.rdev, 4096, 0]
        return struct.pack("=4Q2I6Q10I", node, 0, FOREVER, FOREVER, 0, 0, *attributes, *owner)

    def listing(self, node: int, start: int = 0) -> Iterator[tuple[bytes, int]]:
        self._node(node)
        return iter(self.names.get(node, [])[start:])

    def records(self, node: int, start: int, room: int) -> bytes:
        found = b""
        for offset, (name, child) in enumerate(self.listing(node, start), start + 3):
            entry = self.entry(child)
            kind = struct.unpack_from("=I", entry, 100)[0] >> 12
            record = entry + struct.pack("=2Q2I", child, offset, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if len(found) + len(record) > room:
                break
            found += record
        return found

    def target(self, node: int) -> bytes | None:
        found = self._node(node)
        return found.target if isinstance(found, Symlink) else None

    def xattrs(self, node: int) -> Xattrs:
        found = self._node(node).xattrs
        return {key: value for key, value in found.items() if not key.startswith(b"trusted.")} if found else NO_XATTRS


class MemoryContents:
    """The contents of files of memory nodes; objects by digest. Nothing is at hand unless it is asked for twice."""

    def __init__(self, nodes: MemoryNodes, objects: dict[bytes, bytes]) -> None:
        self._nodes = nodes
        self._objects = objects
        self._asked: set[int] = set()

    def at_hand(self, node: int, offset: int, size: int) -> bytes | None:
        if node not in self._asked:
            self._asked.add(node)
            return None
        try:
            return self.wait(node, offset, size)
        except OSError:
            return None

    def wait(self, node: int, offset: int, size: int) -> bytes:
        found = self._nodes._node(node)
        if not isinstance(found, RegularFile) or not stat.S_ISREG(found.mode):
            raise OSError(errno.EINVAL, "is no file")
        content = found.content
        if isinstance(content, External):
            assert content.digest is not None
            content = self._objects[content.digest]
        assert isinstance(content, bytes)
        return content[offset : offset + size]
