"""A store in another place: what comes from there is checked by its digest, so nobody there has to be trusted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from cfstools.errors import (
    CfsError,
    ContentsWrong,
    InputError,
    LimitExceeded,
    NetworkError,
    NotFound,
    ObjectMissing,
    RemoteObjectWrong,
    RemoteStoreError,
    TransientError,
    Unsupported,
    os_error,
)
from cfstools.lifetime import Closable
from cfstools.linux.files import close, unnamed_file, write_all
from cfstools.store.base import STAGE_PREFIX, BytesObject, FileObject, Object, digest_of
from cfstools.streams.buffered import Read, read_up_to
from cfstools.text import shown_path
from cfstools.threadpool import give_up_if_stopped
from cfstools.transport.base import Place, Span, Version
from cfstools.transport.reading import DEFAULT_RULES, SpanReader
from cfstools.transport.retry import REAL_TIME, Attempts, Clock, RetryRules
from cfstools.verity import MerkleHasher, ObjectId, digest_bytes
from cfstools.verity.object_id import object_name

IN_MEMORY = 1 << 20
"""Objects up to this size are not written to a file."""

MAX_OBJECT = 64 << 30
MAX_REMEMBERED = 1 << 16  # sizes
_PIECE = 1 << 18
_SCRATCH = (b"/var/tmp", b"/tmp")


class Keeper(Protocol):
    """Takes what was fetched and is right, so that it is not fetched again."""

    def add_bytes(self, data: bytes, wanted: ObjectId) -> None:
        """Keep an object in memory."""

    def add_file(self, fd: int, wanted: ObjectId) -> None:
        """Keep an object in a file."""


class RemoteStore(Closable):
    """The objects of *place*, by the names they have in a directory; *shown* is what messages call it.

    :meth:`open` fetches an object once, however many threads want it at the same moment, and checks it. *keep*, which
    may be set later, is given what was fetched. *scratch* is a directory for files without a name.
    """

    def __init__(
        self,
        place: Place,
        shown: str,
        *,
        keep: Keeper | None = None,
        scratch: int | None = None,
        rules: RetryRules = DEFAULT_RULES,
        clock: Clock = REAL_TIME,
    ) -> None:
        self.place = place
        self.shown = shown
        self.keep = keep
        self.scratch = scratch
        self._rules = rules
        self._clock = clock
        self._sizes: OrderedDict[bytes, int | None] = OrderedDict()
        self._lock = threading.Lock()
        self._flights: dict[bytes, threading.Lock] = {}

    def close(self) -> None:
        """Close the place."""
        self.place.close()

    def size(self, digest: bytes) -> int | None:
        """The object's length as the place tells it, asked for once. Raises ``RemoteStoreError``."""
        with self._lock:
            if digest in self._sizes:
                return self._sizes[digest]
        with self._translated(digest):
            size = self.place.size(object_name(digest))
        self._remember(digest, size)
        return size

    def open(self, digest: bytes) -> Object:
        """Fetch the object and check it. Raises ``ObjectMissing``, ``RemoteStoreError``, ``RemoteObjectWrong``."""
        with self._lock:
            flight = self._flights.setdefault(digest, threading.Lock())
        with flight:
            try:
                with self._translated(digest):
                    return self._fetch(ObjectId.of(digest))
            except ObjectMissing:
                self._remember(digest, None)
                raise
            finally:
                with self._lock:
                    self._flights.pop(digest, None)

    def open_path(self, path: bytes) -> Object:
        """Open the object at *path*, which must be one made of a digest: nothing else can be checked."""
        parts = [part for part in path.split(b"/") if part]
        digest = digest_of(*parts) if len(parts) == 2 else None
        if digest is None:
            raise ObjectMissing("has no digest to check what comes by", subject=f"{self.shown}/{shown_path(path)}")
        return self.open(digest)

    def objects(self) -> Iterator[bytes]:
        """Yield the digests that the place lists, in byte order. Raises ``Unsupported`` where it cannot."""
        names: Callable[[], Iterator[tuple[str, int]]] | None = getattr(self.place, "names", None)
        if names is None:
            raise Unsupported("cannot be listed: a web server does not tell what it has", subject=self.shown)
        found = []
        try:
            for name, size in names():
                prefix, _, rest = os.fsencode(name).partition(b"/")
                digest = digest_of(prefix, rest)
                if digest is not None:
                    found.append(digest)
                    self._remember(digest, size)
        except InputError as error:
            raise _store_error(error, self.shown) from error
        yield from sorted(found)

    def describe(self, digest: bytes) -> str:
        """The object's URL, without its query."""
        return self.place.describe(object_name(digest))

    def _remember(self, digest: bytes, size: int | None) -> None:
        with self._lock:
            self._sizes[digest] = size
            if len(self._sizes) > MAX_REMEMBERED:
                self._sizes.popitem(last=False)

    def _fetch(self, wanted: ObjectId) -> Object:
        """Fetch an object, into memory while it is small."""
        name = object_name(wanted.digest)
        version = Version()
        attempts = Attempts(self._rules, self._clock)
        while True:
            try:
                with self.place.read(name, None, version) as read:
                    head = read_up_to(read, IN_MEMORY + 1)
                    if len(head) > IN_MEMORY:
                        return self._to_file(wanted, head, read, version)
            except TransientError as error:
                attempts.failed(error)
                continue
            if digest_bytes(head, wanted.params) != wanted.digest:
                raise ContentsWrong("contents are wrong")
            self._remember(wanted.digest, len(head))
            if self.keep is not None:
                self.keep.add_bytes(head, wanted)
            return BytesObject(head, checked=True)

    def _to_file(self, wanted: ObjectId, head: bytes, read: Read, version: Version) -> Object:
        """Go on with a large object into a file, and resume what breaks."""
        fd = self._make_file()
        try:
            hasher = MerkleHasher(wanted.params)
            self._append(fd, hasher, head)
            try:
                self._copy(read, fd, hasher)
            except TransientError:
                self._resume(wanted, fd, hasher, version)
            if hasher.digest() != wanted.digest:
                raise ContentsWrong("contents are wrong")
            self._remember(wanted.digest, hasher.size)
            if self.keep is not None:
                self.keep.add_file(fd, wanted)
            return FileObject(fd, hasher.size, checked=True)
        except BaseException:
            close(fd)
            raise

    def _resume(self, wanted: ObjectId, fd: int, hasher: MerkleHasher, version: Version) -> None:
        name = object_name(wanted.digest)
        size = self.place.size(name)
        if size is None:
            raise NotFound("not found")
        if size < hasher.size:
            raise ContentsWrong("contents are wrong")
        span = Span(hasher.size, min(size, MAX_OBJECT + 1))
        opener = lambda span: self.place.read(name, span, version)  # noqa: E731 - has the type of an opener
        with SpanReader([opener], span, rules=self._rules, clock=self._clock) as reader:
            self._copy(reader.read, fd, hasher)

    def _copy(self, read: Read, fd: int, hasher: MerkleHasher) -> None:
        while part := read(_PIECE):
            self._append(fd, hasher, part)
            if hasher.size > MAX_OBJECT:
                raise LimitExceeded(f"is larger than {MAX_OBJECT} bytes")
            give_up_if_stopped()

    def _append(self, fd: int, hasher: MerkleHasher, data: bytes) -> None:
        hasher.update(data)
        try:
            write_all(fd, data)
        except OSError as error:
            raise os_error(error, "cannot keep an object in a temporary file") from error

    def _make_file(self) -> int:
        """A file without a name, in the store that keeps what is fetched or where temporaries are."""
        if self.scratch is not None:
            with suppress(OSError):
                return unnamed_file(self.scratch, STAGE_PREFIX)
        failure: OSError | None = None
        for directory in _SCRATCH:
            try:
                parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return unnamed_file(parent, STAGE_PREFIX)
                finally:
                    close(parent)
            except OSError as error:
                failure = failure or error
        assert failure is not None
        raise os_error(failure, "cannot make a temporary file") from failure

    @contextmanager
    def _translated(self, digest: bytes) -> Iterator[None]:
        """Errors of places as those of stores, naming the object."""
        try:
            yield
        except NotFound as error:
            raise ObjectMissing("no such object", subject=self.describe(digest)) from error
        except (InputError, ContentsWrong, LimitExceeded) as error:
            raise _store_error(error, self.describe(digest)) from error


def _store_error(error: CfsError, subject: str) -> RemoteStoreError | RemoteObjectWrong:
    if isinstance(error, ContentsWrong | LimitExceeded):
        return RemoteObjectWrong(error.what, subject=subject, hint=error.hint)
    subject = error.subject or subject if isinstance(error, NetworkError) else subject
    return RemoteStoreError(error.what, where=error.where, subject=subject, hint=error.hint)
