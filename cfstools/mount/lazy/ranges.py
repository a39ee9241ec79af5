"""Parts of a large object, fetched when they are read, each block compared with the leaves of the Merkle tree.

The leaves come first, into a file without a name: if their root is not the object's digest, nothing is believed. What
is read goes into another one, which has holes where nothing was read yet. When all is there it is the object, and gets
a name; others may be able to change it then, so from there on every read is compared with the leaves.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from time import monotonic

from cfstools import native
from cfstools.errors import CfsError, ContentsWrong, FormatError, InputError, StoreError
from cfstools.mount.lazy.cache import read_only
from cfstools.mount.lazy.fetching import Failures, Fetcher
from cfstools.mount.lazy.jobs import Urgency
from cfstools.mount.lazy.receiving import write
from cfstools.mount.lazy.shelf import NewFile, Shelf
from cfstools.mount.lazy.waiting import again, wait_until
from cfstools.store.base import store_error
from cfstools.streams.buffered import Read, read_up_to
from cfstools.transport.base import Span
from cfstools.verity import MerkleHasher, ObjectId, object_path
from cfstools.verity.merkle import leaves_size

CHUNK = 128 << 10
"""What is fetched at once at least."""

MAX_WINDOW = 64
"""Chunks that are fetched ahead of a reader who goes on."""

_PIECE = 1 << 20

Submit = Callable[[Urgency, Callable[[], None]], None]
Counted = Callable[[int], None]


class RangedFile:
    """An object of which some chunks are there, in *file*; *leaves* has its leaves. Thread-safe.

    *submit* runs jobs, *done* is called once, when all of it is there, and *counted* with the bytes of each chunk.
    """

    def __init__(
        self,
        digest: bytes,
        size: int,
        fetcher: Fetcher,
        *,
        file: NewFile,
        leaves: NewFile,
        submit: Submit,
        done: Callable[[RangedFile], None],
        counted: Counted,
    ) -> None:
        self.digest = digest
        self.size = size
        self.in_store = file.in_store
        self._file: NewFile | None = file
        self._leaves = leaves
        self.users = 0  # open objects; its owner counts
        self.bytes = 0
        self._fetcher = fetcher
        self._submit = submit
        self._done = done
        self._counted = counted
        self._params = ObjectId.of(digest).params
        self._reader = read_only(file.fd)
        self._chunks = -(-size // CHUNK)
        self._here = bytearray(self._chunks)
        self._left = self._chunks
        self._asked: set[int] = set()
        self._errors: dict[int, CfsError] = {}
        self._changed = threading.Condition()
        self._next = 0  # where a reader who goes on is expected
        self._window = 1
        self._done_once = False

    @property
    def is_complete(self) -> bool:
        """Whether all of it is there."""
        return not self._left

    def hand_over(self) -> NewFile:
        """The file, which is the object now, and not closed with this any more."""
        file, self._file = self._file, None
        assert file is not None
        return file

    @property
    def has_failed(self) -> bool:
        """Whether something that was asked for did not come."""
        return bool(self._errors)

    def close(self) -> None:
        """Forget it: what was fetched is gone, unless it was handed over."""
        if self._file is not None:
            self._file.close()
        self._leaves.close()
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end; what is missing is fetched first.

        Raises ``StoreError``, ``Interrupted``.
        """
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        chunks = range(offset // CHUNK, (offset + count - 1) // CHUNK + 1)
        with self._changed:
            for chunk in chunks:
                self._errors.pop(chunk, None)
        seconds = self._fetcher.options.deadline
        end = monotonic() + seconds
        while True:
            self._ask(chunks)
            if not wait_until(self._changed, lambda: self._is_settled(chunks), end - monotonic()):
                subject = f"object {object_path(self.digest).decode()}"
                raise StoreError(f"did not come within {seconds:.0f} s", subject=subject)
            with self._changed:
                missing = [chunk for chunk in chunks if not self._here[chunk]]
                errors = [self._errors[chunk] for chunk in missing if chunk in self._errors]
            if not missing:
                return self._checked(offset, count) if self.is_complete else self._pread(offset, count)
            if errors:
                raise again(errors[0])

    def fetch_rest(self) -> Iterator[Callable[[], None]]:
        """Jobs that fetch what nobody asked for yet, one after the other."""
        at = 0
        while at < self._chunks:
            with self._changed:
                run = self._runs(range(at, min(self._chunks, at + MAX_WINDOW)))
                for chunks in run:
                    self._asked.update(chunks)
            for chunks in run:
                yield self._job(chunks)
            at += MAX_WINDOW

    def _is_settled(self, chunks: range) -> bool:
        """Whether all of these are here, or one failed, or is not on its way any more."""
        missing = [chunk for chunk in chunks if not self._here[chunk]]
        return not missing or any(chunk in self._errors or chunk not in self._asked for chunk in missing)

    def _pread(self, offset: int, count: int) -> bytes:
        data = b""
        try:
            while len(data) < count:
                part = os.pread(self._reader, count - len(data), offset + len(data))
                if not part:
                    break
                data = data + part if data else part
        except OSError as error:
            raise store_error(error, "cannot read", f"object {object_path(self.digest).decode()}") from error
        return data

    def _checked(self, offset: int, count: int) -> bytes:
        """What lies in a file that others may be able to change. Raises ``StoreError`` where they did."""
        block = self._params.block_size
        start = offset // block * block
        data = self._pread(start, min(self.size, -(-(offset + count) // block) * block) - start)
        if not self._is_right(start, data):
            raise StoreError("was changed after it was checked", subject=f"object {object_path(self.digest).decode()}")
        return data[offset - start : offset - start + count]

    def _is_right(self, start: int, data: bytes) -> bool:
        """Whether the blocks of *data* at *start* have the digests that the leaves say."""
        params = self._params
        found = native.hash_blocks(params.algorithm.value, data, params.block_size, b"")
        try:
            return found == os.pread(
                self._leaves.fd, len(found), start // params.block_size * params.algorithm.digest_size
            )
        except OSError as error:
            raise store_error(error, "cannot read", "temporary file") from error

    # What is asked for

    def _ask(self, chunks: range) -> None:
        """Fetch what is missing of *chunks*, and what a reader who goes on reads next."""
        with self._changed:
            end = self._ahead(chunks)
            runs = self._runs(range(chunks.start, end))
            for run in runs:
                self._asked.update(run)
        for run in runs:
            urgency = Urgency.MISS if run.start < chunks.stop else Urgency.AHEAD
            try:
                self._submit(urgency, self._job(run))
            except StoreError as error:
                self._fail(run, error, run)

    def _ahead(self, chunks: range) -> int:
        """Where to stop fetching for a reader of *chunks*: behind them, or ahead where that goes on."""
        if self._next - self._window <= chunks.start < chunks.stop <= self._next:
            return chunks.stop  # still there, or out of order
        if chunks.start in (self._next, self._next - 1):
            self._window = min(MAX_WINDOW, max(2 * self._window, len(chunks)))
        else:
            self._window = 0
        self._next = chunks.stop
        # Half of the window is read while the other half is fetched.
        half = min(self._chunks, chunks.stop + self._window // 2)
        if self._runs(range(chunks.start, half)):
            return min(self._chunks, chunks.stop + self._window)
        return chunks.stop

    def _runs(self, chunks: range) -> list[range]:
        """What is neither here nor asked for, as runs of at most the largest window."""
        runs: list[range] = []
        for chunk in chunks:
            if self._here[chunk] or chunk in self._asked:
                continue
            if runs and runs[-1].stop == chunk and len(runs[-1]) < MAX_WINDOW:
                runs[-1] = range(runs[-1].start, chunk + 1)
            else:
                runs.append(range(chunk, chunk + 1))
        return runs

    def _job(self, run: range) -> Callable[[], None]:
        def job() -> None:
            self._fetch(run)

        return job

    # Fetching

    def probe(self) -> bool:
        """Fetch the first chunk, which most readers begin with; ``False`` if no source gives parts.

        Raises ``StoreError`` and ``Exhausted``.
        """
        with self._changed:
            self._asked.add(0)
        failures = self._fetch(range(1))
        if self._here[0]:
            return True
        if failures.are_refusals:
            return False
        raise again(self._errors[0])

    def _fetch(self, run: range) -> Failures:
        """Fetch a run of chunks, from whichever sources."""
        failures = Failures(self._fetcher, self.digest)
        at = run.start
        error: CfsError | None = None
        try:
            for one in failures.tries():
                source = one.standing.source
                try:
                    span = self._span(range(at, run.stop))
                    with source.part(self.digest, self.size, span) as read:
                        watched = self._fetcher.paced(read, span.size)
                        while at < run.stop:
                            self._take(at, watched)
                            at += 1
                except (ContentsWrong, FormatError, InputError) as failed:
                    failures.note(one, failed)
                else:
                    one.standing.did_well()
                    break
        except CfsError as failed:
            error = failed
        finally:
            if at < run.stop:
                # What is wrong says nothing about the chunks behind it; they are asked for anew by whoever wants them.
                these = range(at, at + 1 if failures.is_damage else run.stop)
                self._fail(these, error or failures.error(), run)
        if self.is_complete:
            self._complete()
        return failures

    def _span(self, chunks: Sequence[int]) -> Span:
        return Span(chunks[0] * CHUNK, min(self.size, (chunks[-1] + 1) * CHUNK))

    def _take(self, chunk: int, read: Read) -> None:
        """Take one chunk. Raises ``ContentsWrong``, ``StoreError``, and what *read* raises."""
        span = self._span([chunk])
        data = read_up_to(read, span.size)
        if len(data) != span.size:
            raise ContentsWrong(f"only {len(data)} bytes at {span.start}")
        if not self._is_right(span.start, data):
            raise ContentsWrong(f"its bytes from {span.start} on do not have the digests of their blocks")
        try:
            os.pwrite(self._writer(), data, span.start)
        except OSError as error:
            raise store_error(error, "cannot keep an object in it", "temporary file") from error
        with self._changed:
            self._asked.discard(chunk)
            self._errors.pop(chunk, None)
            if not self._here[chunk]:
                self._here[chunk] = 1
                self._left -= 1
                self.bytes += len(data)
            self._changed.notify_all()
        self._counted(len(data))

    def _writer(self) -> int:
        file = self._file
        if file is None or file.fd < 0:
            raise OSError(errno.EBADF, "is closed")
        return file.fd

    def _fail(self, failed: range, error: CfsError, run: range) -> None:
        """These do not come; nothing more of their *run* is on its way."""
        with self._changed:
            for chunk in failed:
                self._errors[chunk] = error
            for chunk in range(failed.start, run.stop):
                self._asked.discard(chunk)
            self._changed.notify_all()

    def _complete(self) -> None:
        with self._changed:
            if self._done_once:
                return
            self._done_once = True
        self._done(self)


class RangedObject:
    """An open :class:`RangedFile`, as an object of a store; *release* is called when it is closed."""

    __slots__ = ("_is_open", "_release", "file", "size")

    checked = True

    def __init__(self, file: RangedFile, release: Callable[[RangedFile], None]) -> None:
        self.file = file
        self._release = release
        self._is_open = True
        self.size = file.size

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end. Raises ``StoreError``, ``Interrupted``."""
        return self.file.read(offset, count)

    def fileno(self) -> None:
        """``None``: the file has holes."""
        return

    def close(self) -> None:
        """Close the object. Closing twice is allowed."""
        if self._is_open:
            self._is_open = False
            self._release(self.file)


def fetch_leaves(digest: bytes, size: int, fetcher: Fetcher, shelf: Shelf) -> NewFile | None:
    """A file that has the leaves of an object; ``None`` where no source has them.

    Raises ``StoreError`` where there may be some, and ``Exhausted``.
    """
    failures = Failures(fetcher, digest)
    length = leaves_size(size, ObjectId.of(digest).params)
    for one in failures.tries():
        with ExitStack() as stack:
            file = shelf.new_file()
            stack.callback(file.close)
            try:
                with one.standing.source.leaves(digest, size, length) as read:
                    _take_leaves(digest, size, fetcher.paced(read, length), file)
            except (ContentsWrong, FormatError, InputError) as error:
                failures.note(one, error)
                continue
            one.standing.did_well()
            stack.pop_all()
            return file
    if failures.are_missing:
        return None
    raise failures.error()


def _take_leaves(digest: bytes, size: int, read: Read, file: NewFile) -> None:
    params = ObjectId.of(digest).params
    hasher = MerkleHasher(params)
    left = leaves_size(size, params)
    while left:
        part = read_up_to(read, min(_PIECE, left))
        if len(part) < min(_PIECE, left):
            raise ContentsWrong(f"its leaves end {left - len(part)} bytes too soon")
        left -= len(part)
        blocks = len(part) // params.algorithm.digest_size
        hasher.update_hashed(part, blocks * params.block_size if left else size - hasher.size)
        write(file.fd, part)
    if hasher.digest() != digest:
        raise ContentsWrong("its leaves are those of another object")
