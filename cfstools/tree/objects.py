"""The objects that a tree needs from a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import sub

from cfstools import native
from cfstools.errors import OciError
from cfstools.text import shown_path
from cfstools.tree.model import KINDS, Blob, Directory, External, Located, Piece, RegularFile, Unread
from cfstools.tree.walk import iter_inodes
from cfstools.verity import Algorithm, object_path
from cfstools.verity.object_id import digest_at

_SHOWN = 3

ObjectUse = tuple[bytes | None, bytes | None, int]
"""Payload and digest of an object, as those of :class:`~cfstools.tree.model.External`, and its size in bytes."""

PackedObjects = tuple[bytes, memoryview]
"""The digests of objects that all are at the paths made of them, back to back, and their cumulative sizes in bytes."""


def packed_objects(root: Directory) -> PackedObjects | None:
    """The objects that the tree needs, each once, as the native functions take them.

    ``None`` where some are not at the paths made of their digests or have several sizes, or without native functions.
    """
    for algorithm in Algorithm:
        packed = native.needed_objects(root, KINDS, algorithm.digest_size)
        if packed is not None:
            return packed[0], memoryview(packed[1]).cast("Q")
    return None


def sizes_of_packed(packed: PackedObjects) -> dict[bytes, int]:
    """The sizes of packed objects by their digests."""
    digests, ends = packed
    length = len(digests) // max(len(ends), 1) or 1
    each = (digests[at : at + length] for at in range(0, len(digests), length))
    return dict(zip(each, _sizes(ends), strict=True))


def unpacked_objects(packed: PackedObjects) -> Iterator[tuple[bytes, int]]:
    """Yield the paths and sizes of packed objects."""
    digests, ends = packed
    length = 2 * len(digests) // max(len(ends), 1)
    digits = digests.hex().encode()
    for start, size in zip(range(0, len(digits), length or 1), _sizes(ends), strict=True):
        yield b"%b/%b" % (digits[start : start + 2], digits[start + 2 : start + length]), size


def _sizes(ends: memoryview[int]) -> Iterator[int]:
    return map(sub, ends, chain((0,), ends))


def objects_of_file(file: RegularFile) -> Sequence[ObjectUse]:
    """The objects that one file needs: its own one, or the blobs that hold its pieces, each once."""
    match file.content:
        case External(payload=payload, digest=digest):
            return ((payload, digest, file.size),)
        case Located() as located:
            return [(blob.payload, blob.digest, blob.size) for blob in located.blobs if blob.number]
        case bytes() | Unread():
            return ()


def iter_objects(root: Directory) -> Iterator[ObjectUse]:
    """Yield the objects that each inode needs, depth-first in byte order; the same object may come several times."""
    for inode in iter_inodes(root):
        if type(inode) is RegularFile:
            content = inode.content
            if type(content) is External:  # the common case, without the cost of a call
                yield content.payload, content.digest, inode.size
            elif type(content) is Located:
                yield from objects_of_file(inode)


def objects_of(root: Directory) -> dict[bytes, int]:
    """The size in bytes of every object that the tree needs, by digest, or by payload where there is no digest."""
    objects: dict[bytes, int] = {}
    for payload, digest, size in iter_objects(root):
        name = digest or payload
        if size and name is not None:
            objects[name] = size
    return objects


def add_use(needed: dict[bytes, int], payload: bytes | None, digest: bytes | None, size: int) -> None:
    """Add to *needed*, sizes by digest, the objects of a file: both its digest and the place it names count."""
    if digest is not None:
        needed[digest] = size
        if payload == object_path(digest):
            return
    placed = digest_at(payload or b"")
    if placed is not None:
        needed[placed] = size


def payload_sizes(root: Directory, sizes: dict[bytes, int | None]) -> dict[bytes, int | None]:
    """Add the payload and size of every object to *sizes*; the size is ``None`` where files disagree about it."""
    for payload, _, size in iter_objects(root):
        if payload:
            add_size(sizes, payload, size)
    return sizes


def add_size(sizes: dict[bytes, int | None], payload: bytes, size: int) -> None:
    """Add an object to *sizes*; ``None`` where two sizes of the same one disagree."""
    sizes[payload] = size if sizes.get(payload, size) == size else None


def object_digests(root: Directory) -> set[bytes]:
    """The raw digests of all objects that the tree needs."""
    return {digest for _, digest, _ in iter_objects(root) if digest is not None}


def blobs_text(located: Located) -> str:
    """The blobs that contents lie in, the first few by name."""
    return _few(map(_blob_text, located.blobs), len(located.blobs)) or "no blob"


def pieces_text(located: Located) -> str:
    """Where each piece is: ``ab/cdef… 512+1000, hole 4096``; the first few."""
    return _few(map(_piece_text, located.pieces), len(located.pieces))


def _blob_text(blob: Blob) -> str:
    """The object's path, or else its number."""
    if not blob.number:
        return "the image itself"
    name = blob.payload or (None if blob.digest is None else object_path(blob.digest))
    return f"blob {blob.number}" if name is None else shown_path(name)


def _piece_text(piece: Piece) -> str:
    if piece.blob is None:
        return f"hole {piece.length}"
    return f"{_blob_text(piece.blob)} {piece.offset}+{piece.length}"


def _few(texts: Iterable[str], count: int) -> str:
    shown = [text for text, _ in zip(texts, range(_SHOWN), strict=False)]
    return ", ".join(shown) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")


def object_sizes(root: Directory) -> dict[bytes, int]:
    """The objects of a tree by digest. Raises :class:`OciError` for contents without one."""
    sizes: dict[bytes, int] = {}
    for inode in iter_inodes(root):
        if isinstance(inode, RegularFile) and inode.size and not isinstance(inode.content, bytes):
            content = inode.content
            if not isinstance(content, External) or content.digest is None:
                raise OciError("the image names an object without its digest")
            sizes[content.digest] = inode.size
    return sizes
