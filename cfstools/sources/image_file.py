"""Image files, read into memory once, so that what is checked is what is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import CheckFailed, ImageError, naming, os_error
from cfstools.formats.base import HEAD
from cfstools.formats.registry import check_head, declared_length, open_image, read_tree
from cfstools.linux.contents import MAX_FILE, file_type, open_regular, read_regular, whole_file
from cfstools.linux.files import close, data_ranges
from cfstools.tree import Directory
from cfstools.tree.objects import sizes_of_packed
from cfstools.verity import Algorithm, MerkleHasher, Params, digest_bytes

if TYPE_CHECKING:
    from cfstools.signing.files import SignedFile
    from cfstools.tree.objects import PackedObjects

MAX_IMAGE_FILE = MAX_FILE
LARGE_IMAGE = 1 << 26
_BLOCKS = 1 << 20


def read_image_file(path: bytes, *, devices: bool = False) -> memoryview:
    """The image in the regular file *path*, or with *devices* block device, read exactly once; see :func:`read_image`.

    They stay the same when somebody writes to the file afterwards. Raises InputError, SourceChanged, and LimitExceeded
    for more than ``MAX_IMAGE_FILE`` bytes.
    """
    with opened_image(path, devices=devices) as fd:
        return read_image(fd).data


@contextmanager
def opened_image(path: bytes, *, devices: bool = False) -> Iterator[int]:
    """The regular file *path*, or with *devices* a block device, open for reading. Raises InputError.

    Errors inside the block are named after it.
    """
    with naming(path):
        try:
            fd = open_regular(path, devices=devices)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        try:
            yield fd
        finally:
            close(fd)


class ImageBytes(NamedTuple):
    """An image with the signature that may be behind it.

    ``left_out`` says how many bytes of its file or device follow; ``other_bytes`` whether they are not all zeros.
    """

    data: memoryview
    left_out: int = 0
    other_bytes: bool = False

    def whole_digest(self, algorithm: Algorithm) -> bytes:
        """The fs-verity digest of the file as it lies there, with a signature and zeros behind the image."""
        hasher = MerkleHasher(Params(algorithm=algorithm))
        hasher.update(self.data)
        hasher.update_zeros(self.left_out)
        return hasher.digest()


def read_image(fd: int) -> ImageBytes:
    """The image in the open file or block device *fd*, whose offset is not used.

    Files may be padded with zeros and devices are larger than what is on them, so the number of blocks in the
    superblock decides how many bytes are taken, if more are there. Where a regular file has anything but a signature
    and zeros behind that, all of it is taken, which is then no image. What comes behind on a device is no part of it.
    Raises InputError, SourceChanged and LimitExceeded.
    """
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        size = os.lseek(fd, 0, os.SEEK_END)
        own = declared_length(os.pread(fd, HEAD, 0))
        if own is None or own >= size or own > MAX_IMAGE_FILE:
            return ImageBytes(read_regular(fd, most=MAX_IMAGE_FILE, size=None if regular else size))
        # Only where there is more than an image: loading it takes longer than to list a small one.
        from cfstools.signing.attach import MAX_TRAILER, starts_trailer

        behind = _read_range(fd, own, min(size, own + MAX_TRAILER))
        end = own + len(behind.rstrip(b"\0"))
        other = end > own and not starts_trailer(behind)
        if regular and (other or end == size or not _is_zero(fd, own + len(behind), size)):
            return ImageBytes(read_regular(fd, most=MAX_IMAGE_FILE))
        if other:
            return ImageBytes(read_regular(fd, size=own), size - own, other_bytes=True)
        return ImageBytes(read_regular(fd, size=end), size - end)
    except OSError as error:
        raise os_error(error, "cannot read") from error


def read_signed(path: bytes, signature: bytes | None, *, trusted: bool) -> tuple[SignedFile, ImageBytes]:
    """Read the image at *path* once, and find its envelopes; see :func:`~cfstools.signing.files.signed_file`.

    Of a large file whose first block is that of no image no more is read, unless its bytes have to be *trusted* first.
    Raises CheckFailed for that, InputError, SourceChanged and LimitExceeded.
    """
    from cfstools.signing.files import signed_file

    with opened_image(path, devices=True) as fd:
        if not trusted:
            check_large_image(fd)
        found = read_image(fd)
    return signed_file(path, found.data, signature), found


def image_length(fd: int) -> int:
    """How many bytes the image in *fd* says it has, or else how many there are. Raises InputError."""
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        own = declared_length(os.pread(fd, HEAD, 0))
    except OSError as error:
        raise os_error(error, "cannot read") from error
    return size if own is None else min(own, size)


@contextmanager
def image_view(path: bytes) -> Iterator[memoryview]:
    """The bytes of :func:`read_image`, or all of a pipe; good inside the block. Raises as :func:`whole_file`."""
    with naming(path):
        if file_type(path) not in (stat.S_IFREG, stat.S_IFBLK):
            with whole_file(path) as data:
                yield data
            return
        with opened_image(path, devices=True) as fd:
            found = read_image(fd)
        yield found.data


def load_image(path: bytes, filters: Collection[bytes] = ()) -> Directory:
    """The tree of the image at *path*, or only the named children of its root. Raises InputError and ImageError."""
    with image_view(path) as data:
        return read_tree(data, filters, allow_tail=True)


def load_objects(path: bytes) -> PackedObjects | Directory:
    """The objects of the image at *path*, or its tree where they are not all of one kind. Raises as above."""
    with image_view(path) as data:
        image = open_image(data, allow_tail=True)
        packed = image.packed_objects()
        return image.tree() if packed is None else packed


def check_large_image(fd: int) -> None:
    """Look at the first block of the open file *fd* before all of it is read, if that would take long.

    Only where nothing has to hold before the image may be interpreted. Raises CheckFailed for what is no image, and
    InputError.
    """
    try:
        size = os.fstat(fd).st_size
        if LARGE_IMAGE < size <= MAX_IMAGE_FILE:  # what is larger may have zeros behind it, and is refused otherwise
            check_head(os.pread(fd, HEAD, 0), size)
    except OSError as error:
        raise os_error(error, "cannot read") from error
    except ImageError as error:
        raise CheckFailed(f"{error}; the rest of the file, of {size} bytes, was not read") from error


class ImageNeeds(NamedTuple):
    """What an image needs, with the sizes; the fs-verity digest (SHA-256) and the size of what is in its file."""

    objects: dict[bytes, int]
    digest: bytes
    size: int


def image_needs(path: bytes) -> ImageNeeds:
    """The digests of the objects that the image at *path* needs. Raises InputError and ImageError."""
    with naming(path):
        data = read_image_file(path, devices=True)
        image = open_image(data, allow_tail=True)
        packed = image.packed_objects()
        needed = image.objects() if packed is None else {}
    digest, size = digest_bytes(data), len(data)
    del data, image  # not in memory at the same time as a list of what is in them
    return ImageNeeds(needed if packed is None else sizes_of_packed(packed), digest, size)


def _read_range(fd: int, start: int, end: int) -> bytes:
    data = bytearray()
    while start + len(data) < end and (piece := os.pread(fd, end - start - len(data), start + len(data))):
        data += piece
    return bytes(data)


def _is_zero(fd: int, start: int, end: int) -> bool:
    """Whether a regular file has nothing but zeros there; holes are not read."""
    for first, last in data_ranges(fd, end):
        at = max(first, start)
        while at < last:
            piece = os.pread(fd, min(_BLOCKS, last - at), at)
            if not piece:
                break
            if piece.count(0) != len(piece):
                return False
            at += len(piece)
    return True
