"""An envelope appended to the image that it signs, in one file (docs/signatures.md, "Attached").

The bytes of the image stay as they are; other readers stop at the size in its superblock. Layout, all numbers
little endian::

    image       multiple of 4096 bytes; only these bytes are signed
    start       8 bytes, _START
    envelope    the JSON
    padding     zero bytes, until the whole trailer is a multiple of 512 but not of 4096 bytes
    footer      24 bytes, _Footer

A multiple of 512, because loop devices end at whole sectors. Not of 4096, so that a truncated trailer shows: a file
whose size is not a multiple of 4096 and that does not end with a footer.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing.envelope import MAX_ENVELOPE

VERSION = 1
IMAGE_UNIT = 4096
_UNIT = 512
_START = b"cfs:sig\n"
_MAGIC = b"\ncfs:end"


class _Footer(NamedTuple):
    """The last bytes of the file."""

    image_size: int  # 0: u64
    envelope_size: int  # 8: u32
    version: int  # 12: u32
    magic: bytes  # 16: 8 bytes


_FOOTER = struct.Struct("<QII8s")

MAX_TRAILER = -(-(len(_START) + MAX_ENVELOPE + _FOOTER.size) // _UNIT) * _UNIT + _UNIT


class Attached(NamedTuple):
    """A file with an attached envelope: the size of its image, and the envelope."""

    image_size: int
    envelope: bytes


def make_trailer(image_size: int, envelope: bytes) -> bytes:
    """The trailer to append to an image of *image_size* bytes. Raises UsageError if it cannot have one."""
    if image_size <= 0 or image_size % IMAGE_UNIT:
        raise UsageError(f"an image of {image_size} bytes cannot carry a signature: not a multiple of {IMAGE_UNIT}")
    if len(envelope) > MAX_ENVELOPE:
        raise UsageError(f"an envelope of {len(envelope)} bytes is too large: at most {MAX_ENVELOPE}")
    if not envelope or envelope.endswith(b"\0"):
        raise UsageError("what is to be attached is not an envelope")
    used = len(_START) + len(envelope) + _FOOTER.size
    padding = _trailer_size(len(envelope)) - used
    footer = _FOOTER.pack(*_Footer(image_size, len(envelope), VERSION, _MAGIC))
    return _START + envelope + bytes(padding) + footer


def find_trailer(tail: bytes, file_size: int, *, unit: int = IMAGE_UNIT) -> Attached | None:
    """Find the envelope in *tail*, the last ``min(file_size, MAX_TRAILER)`` bytes of a file; None if it has none.

    Sizes of images of this format are multiples of *unit* bytes. Raises SignatureInvalid for a damaged trailer, and for
    a file of any other size without a footer: its trailer was truncated.
    """
    if len(tail) != min(file_size, MAX_TRAILER):
        raise UsageError(f"{len(tail)} bytes are not the tail of a file of {file_size} bytes")
    if not tail.endswith(_MAGIC):
        if file_size % unit:
            raise SignatureInvalid(
                f"the file has {file_size} bytes, no multiple of {unit}, and no whole signature behind the image",
                where="trailer",
                hint="its end was truncated, or it is not an image",
            )
        return None
    if len(tail) < _FOOTER.size:
        raise SignatureInvalid("its footer is truncated", where="trailer")
    footer = _Footer(*_FOOTER.unpack_from(tail, len(tail) - _FOOTER.size))
    if footer.version != VERSION:
        raise SignatureInvalid(f"version {footer.version} is not known", where="trailer")
    size = _trailer_size(footer.envelope_size)
    if footer.envelope_size > MAX_ENVELOPE or footer.image_size + size != file_size:
        raise SignatureInvalid(
            f"an image of {footer.image_size} bytes and an envelope of {footer.envelope_size} do not make "
            f"a file of {file_size} bytes",
            where="trailer",
        )
    if footer.image_size == 0 or footer.image_size % IMAGE_UNIT:
        raise SignatureInvalid(f"an image cannot have {footer.image_size} bytes", where="trailer")
    trailer = tail[len(tail) - size :]
    end, padded = len(_START) + footer.envelope_size, size - _FOOTER.size
    envelope = trailer[len(_START) : end]
    # An envelope ends with a brace, so its length cannot reach into the padding or stop short of the end.
    if not trailer.startswith(_START) or envelope[-1:] in (b"", b"\0") or any(trailer[end:padded]):
        raise SignatureInvalid("its start or its padding is damaged", where="trailer")
    return Attached(footer.image_size, envelope)


def starts_trailer(data: bytes) -> bool:
    """Whether *data*, which follows an image, begins as a trailer does; it may be truncated."""
    return data.startswith(_START)


def has_trailer_marks(tail: bytes, file_size: int) -> bool:
    """Whether *tail*, the end of a file, contains the start or the end of a trailer; zeros may follow."""
    if tail.rstrip(b"\0").endswith(_MAGIC):
        return True
    first = -(file_size - len(tail)) % IMAGE_UNIT
    return any(tail.startswith(_START, place) for place in range(first, len(tail), IMAGE_UNIT))


def _trailer_size(envelope_size: int) -> int:
    used = len(_START) + envelope_size + _FOOTER.size
    size = -(-used // _UNIT) * _UNIT
    return size if size % IMAGE_UNIT else size + _UNIT
