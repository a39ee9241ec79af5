"""The large objects of which only parts are there, few enough for the descriptors and the room of this machine."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack

from cfstools.errors import CfsError
from cfstools.lifetime import Closable
from cfstools.linux.files import fd_limit
from cfstools.mount.lazy.fetching import Fetcher
from cfstools.mount.lazy.ranges import Counted, RangedFile, RangedObject, Submit, fetch_leaves
from cfstools.mount.lazy.shelf import Shelf

_DESCRIPTORS = 512


class LargeObjects(Closable):
    """Begins large objects, and puts them on *shelf* when they are complete. Thread-safe.

    Those that nobody has open go, the ones opened longest ago first, when there are too many or when those that cannot
    be published have more than *limit* bytes.
    """

    def __init__(self, fetcher: Fetcher, shelf: Shelf, limit: int, *, submit: Submit, counted: Counted) -> None:
        self._fetcher = fetcher
        self._shelf = shelf
        self._limit = limit
        self._submit = submit
        self._counted = counted
        self._files: OrderedDict[bytes, RangedFile] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, digest: bytes) -> bool:
        """Whether an object is begun."""
        return digest in self._files

    def begin(self, digest: bytes, size: int) -> bool:
        """Fetch the leaves of an object; ``False`` where no source gives leaves, or no parts.

        Raises ``StoreError``, ``Exhausted``.
        """
        if digest in self._files:
            return True
        with ExitStack() as stack:
            leaves = fetch_leaves(digest, size, self._fetcher, self._shelf)
            if leaves is None:
                return False
            stack.callback(leaves.close)
            file = self._shelf.new_file()
            stack.callback(file.close)
            ranged = RangedFile(
                digest,
                size,
                self._fetcher,
                file=file,
                leaves=leaves,
                submit=self._submit,
                done=self._complete,
                counted=self._counted,
            )
            stack.callback(ranged.close)
            if not ranged.probe():
                return False
            stack.pop_all()
        with self._lock:
            self._files[digest] = ranged
            dropped = self._surplus()
        for one in dropped:
            one.close()
        return True

    def open(self, digest: bytes) -> RangedObject | None:
        """An object that is begun."""
        with self._lock:
            ranged = self._files.get(digest)
            if ranged is None:
                return None
            self._files.move_to_end(digest)
            ranged.users += 1
        return RangedObject(ranged, self._release)

    def fetch_rest(self, digest: bytes, goes_on: Callable[[], bool]) -> None:
        """Fetch what is missing of an object that is begun, as long as *goes_on* says so and nothing fails."""
        opened = self.open(digest)
        if opened is None:
            return
        try:
            for job in opened.file.fetch_rest():
                job()
                if not goes_on() or opened.file.has_failed:
                    return
        finally:
            opened.close()

    def close(self) -> None:
        """Forget all of them. Closing twice is allowed."""
        with self._lock:
            files = list(self._files.values())
            self._files.clear()
        for ranged in files:
            if not ranged.users:
                ranged.close()

    def _release(self, ranged: RangedFile) -> None:
        with self._lock:
            ranged.users -= 1
            gone = not ranged.users and self._files.get(ranged.digest) is not ranged
            dropped = [ranged] if gone else self._surplus()
        for one in dropped:
            one.close()

    def _complete(self, ranged: RangedFile) -> None:
        """All of an object is there, and each block was compared: so is its digest."""
        try:
            self._shelf.put_file(ranged.digest, ranged.hand_over(), ranged.size)
        except CfsError:
            return  # what is open stays readable, and the next access fetches it again
        finally:
            with self._lock:
                if self._files.get(ranged.digest) is ranged:
                    del self._files[ranged.digest]
                gone = not ranged.users
            if gone:
                ranged.close()

    def _surplus(self) -> list[RangedFile]:
        """Those that have to go, taken out; the one opened last stays."""
        dropped: list[RangedFile] = []
        most = min(_DESCRIPTORS, fd_limit() // 8)
        size = sum(one.bytes for one in self._files.values() if not one.in_store)
        for digest, one in list(self._files.items())[:-1]:
            if len(self._files) <= most and size <= self._limit:
                break
            if not one.users:
                del self._files[digest]
                size -= 0 if one.in_store else one.bytes
                dropped.append(one)
        return dropped
