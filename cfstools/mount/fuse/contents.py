"""The contents of files for a FUSE mount, compared with the image as they are served.

Objects up to 1 MiB are read whole and hashed, and what is served comes from that buffer: there is no moment between
check and use. Larger ones are hashed once, at the first read of them, and later every read is compared with the hashes
kept of it. Bounded are the memory for both, and the descriptors that stay open.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Sequence

from cfstools.lifetime import Closable
from cfstools.mount.choose import Check
from cfstools.mount.fuse.base import Data, Files
from cfstools.mount.fuse.layout import MAX_READ
from cfstools.mount.fuse.nearby import Nearby
from cfstools.mount.fuse.open_files import OpenFile, OpenFiles
from cfstools.store.base import Store
from cfstools.store.chain import StoreChain
from cfstools.tree import Content, Directory, External, RegularFile
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.view.contents import PIECE
from cfstools.view.contents import Contents as FileContents
from cfstools.view.nodes import View

BODY_BYTES = 16 << 20
"""Bytes of small objects that stay in memory because the kernel asked for a part of them."""


_PARAMS = {algorithm.digest_size: Params(algorithm=algorithm) for algorithm in Algorithm}


class ObjectContents(Closable):
    """The contents of *files* in *stores*, of which the first that has an object counts; see :class:`Check`.

    Objects of a store that checks them itself (``Object.checked``) are not hashed again. Only directories at the
    beginning of *stores* are asked without waiting.
    """

    def __init__(self, files: Files, stores: Sequence[Store], *, check: Check = Check.READ) -> None:
        self._files = files
        self._view = View(Directory(mode=0), StoreChain(stores))
        self._check = check
        self._near = Nearby(stores, max(PIECE, 2 * MAX_READ))
        self._open = OpenFiles(self._open_file)
        self._bodies = _Bodies()
        # With Check.OPEN, which nodes were found right.
        self._right = bytearray(files.count + 1 if check is Check.OPEN else 0)

    def at_hand(self, node: int, offset: int, size: int) -> Data | None:
        """The bytes that :meth:`wait` would return, if that does not wait; valid until the next call.

        For one thread only.
        """
        body = self._bodies.get(node)
        if body is not None:
            return memoryview(body)[offset : offset + size]
        found = self._files.content(node)
        if found is None:
            return None
        length, content = found
        if type(content) is bytes:
            return content[offset : offset + size]
        if offset >= length:
            return b""
        if length > PIECE:
            return self._part_at_hand(node, offset, min(size, length - offset))
        return self._small_at_hand(node, length, content, offset, size)

    def wait(self, node: int, offset: int, size: int) -> Data:
        """Up to *size* bytes from *offset* on; raises ``CfsError``, and ``OSError`` for what is no file."""
        found = self._files.content(node)
        if found is None:
            raise OSError(errno.EINVAL, "is no file")
        length, content = found
        if length <= PIECE and not self._trusts(node):
            kept = self._bodies.get(node)  # another thread may have read it since it was not at hand
            if kept is not None:
                return memoryview(kept)[offset : offset + size]
            with self._open_content(node, length, content) as contents:
                body = memoryview(b"".join(contents.pieces()))
            self._note(node, body, offset, size)
            return body[offset : offset + size]
        return self._open.use(node, lambda opened: self._read(node, opened, offset, size))

    def close(self) -> None:
        """Close all objects, which nobody may be reading any more. Closing twice is allowed."""
        self._open.close()
        self._bodies.clear()

    def _small_at_hand(self, node: int, length: int, content: Content, offset: int, size: int) -> Data | None:
        digest = content.digest if type(content) is External else None
        if digest is None or len(digest) not in _PARAMS:
            return None
        data = self._near.whole(digest, length)
        if data is None:
            return None
        if not self._trusts(node):
            # If it is wrong, whoever may wait finds out how.
            if digest_bytes(data, _PARAMS[len(digest)]) != digest:
                return None
            self._note(node, data, offset, size)
        return data[offset : offset + size]

    def _part_at_hand(self, node: int, offset: int, size: int) -> Data | None:
        """Part of a large object that is open and was hashed."""
        opened = self._open.acquire(node)
        if opened is None:
            return None
        try:
            contents = opened.contents
            fd = contents.fileno()
            if fd is None or not (contents.is_prepared or self._trusts(node)):
                return None
            leaves = None if self._trusts(node) else contents.leaves
            if leaves is None:
                return self._near.part(fd, offset, size)
            start, end = offset - offset % leaves.group, offset + size
            length = min(end + -end % leaves.group, contents.size) - start
            data = self._near.part(fd, start, length) if length <= 2 * MAX_READ else None
            if data is None or not leaves.match(start, data):
                return None
            return data[offset - start : end - start]
        finally:
            self._open.release(opened)

    def _read(self, node: int, opened: OpenFile, offset: int, size: int) -> bytes:
        contents = opened.contents
        if self._trusts(node):
            return contents.read_unchecked(offset, size)
        contents.prepare(threads=opened.threads)
        if self._check is Check.OPEN:
            self._right[node] = 1
            return contents.read_unchecked(offset, size)
        return contents.read(offset, size)

    def _trusts(self, node: int) -> bool:
        """Whether nothing is to be compared any more."""
        if self._check is Check.READ:
            return False
        return self._check is not Check.OPEN or bool(self._right[node])

    def _note(self, node: int, body: memoryview, offset: int, size: int) -> None:
        """Keep the right *body* if only a part of it is read now."""
        if self._check is Check.OPEN:
            self._right[node] = 1
        elif offset or size < len(body):
            self._bodies.keep(node, bytes(body))

    def _open_file(self, node: int) -> FileContents:
        found = self._files.content(node)
        if found is None:
            raise OSError(errno.EINVAL, "is no file")
        return self._open_content(node, *found)

    def _open_content(self, node: int, length: int, content: Content) -> FileContents:
        return self._view.open(RegularFile(mode=0, size=length, content=content), b"inode %d" % node)


class _Bodies:
    """Small objects in memory, by node; the least recently used go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bodies: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, node: int) -> bytes | None:
        if node not in self._bodies:  # most are not
            return None
        with self._lock:
            body = self._bodies.get(node)
            if body is not None:
                self._bodies.move_to_end(node)
            return body

    def keep(self, node: int, body: bytes) -> None:
        with self._lock:
            self._bytes += len(body) - len(self._bodies.pop(node, b""))
            self._bodies[node] = body
            while self._bytes > BODY_BYTES:
                self._bytes -= len(self._bodies.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._bodies.clear()
            self._bytes = 0
