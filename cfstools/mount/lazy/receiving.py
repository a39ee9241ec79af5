"""What a source gives, compared with its digest before anybody sees it, and never more of it than there should be."""

from __future__ import annotations

from cfstools.errors import ContentsWrong, InputError, TransientError
from cfstools.linux.files import write_all
from cfstools.mount.lazy.options import LEAST
from cfstools.mount.lazy.shelf import Shelf
from cfstools.store.base import store_error
from cfstools.streams.buffered import Read, read_up_to
from cfstools.threadpool import give_up_if_stopped
from cfstools.transport.fetch import as_network_error
from cfstools.transport.retry import Clock
from cfstools.verity import MerkleHasher, ObjectId, digest_bytes

IN_MEMORY = 256 << 10
"""Objects up to this size are not written to a file before they are published."""

_PIECE = 1 << 18


def paced(read: Read, size: int, seconds: float, clock: Clock) -> Read:
    """*read*, as long as :data:`LEAST` bytes come in so many seconds of waiting, or the *size* bytes that are to come.

    Raises ``NetworkError`` and ``ContentsWrong``.
    """
    waited = 0.0
    came = 0
    left = size

    def watched(count: int) -> bytes:
        nonlocal waited, came, left
        give_up_if_stopped()
        before = clock.now()
        try:
            part = read(count)
        except InputError as error:
            raise as_network_error(error) from error
        waited += clock.now() - before
        came += len(part)
        left -= len(part)
        if waited >= seconds:
            if came < LEAST and left > 0:
                raise TransientError(f"only {came} bytes in {waited:.0f} s")
            waited, came = 0.0, 0
        return part

    return watched


def receive(digest: bytes, size: int, read: Read, shelf: Shelf) -> None:
    """Put the object of this *digest* and *size* on the shelf.

    Raises ``ContentsWrong`` for other contents, what *read* raises, ``StoreError`` and ``Exhausted``. At most one byte
    more than *size* is read, and nothing of what is wrong stays.
    """
    if size > IN_MEMORY:
        _to_file(digest, size, read, shelf)
        return
    data = read_up_to(read, size + 1)
    if len(data) != size:
        raise wrong_length(size, len(data))
    found = digest_bytes(data, ObjectId.of(digest).params)
    if found != digest:
        raise wrong_digest(found)
    shelf.put(digest, data)


def _to_file(digest: bytes, size: int, read: Read, shelf: Shelf) -> None:
    file = shelf.new_file()
    try:
        hasher = MerkleHasher(ObjectId.of(digest).params)
        while hasher.size <= size and (part := read(min(_PIECE, size + 1 - hasher.size))):
            hasher.update(part)
            write(file.fd, part)
        if hasher.size != size:
            raise wrong_length(size, hasher.size)
        found = hasher.digest()
        if found != digest:
            raise wrong_digest(found)
    except BaseException:
        file.close()
        raise
    shelf.put_file(digest, file, size)


def write(fd: int, data: bytes) -> None:
    """Append to a temporary file. Raises ``StoreError`` and ``Exhausted``."""
    try:
        write_all(fd, data)
    except OSError as error:
        raise store_error(error, "cannot keep an object in it", "temporary file") from error


def wrong_length(size: int, found: int) -> ContentsWrong:
    """Fewer or more bytes came than there should be."""
    return ContentsWrong(f"it has {'more' if found > size else found} bytes instead of {size}")


def wrong_digest(found: bytes) -> ContentsWrong:
    """Other bytes came."""
    return ContentsWrong(f"its fs-verity digest is {found.hex()}")
