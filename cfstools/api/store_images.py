"""Which objects of a store images need (part of the verbs that care for stores)."""

from __future__ import annotations

from typing import NamedTuple

from cfstools.api.input import read_image_file
from cfstools.errors import naming
from cfstools.formats.registry import open_image
from cfstools.store.base import digest_of
from cfstools.verity import digest_bytes


class ImageNeeds(NamedTuple):
    """What an image needs, with the sizes; the fs-verity digest (SHA-256) and the size of what is in its file."""

    objects: dict[bytes, int]
    digest: bytes
    size: int


def image_needs(path: bytes) -> ImageNeeds:
    """The digests of the objects that the image at *path* needs. Raises InputError and ImageError.

    Both the place that the image names for contents and the digest it gives count.
    """
    needed: dict[bytes, int] = {}
    with naming(path):
        data = read_image_file(path, devices=True)
        for use in open_image(data, allow_tail=True).objects():
            if use.digest is not None:
                needed[use.digest] = use.size
            digest = _digest_at(use.payload)
            if digest is not None:
                needed[digest] = use.size
    return ImageNeeds(needed, digest_bytes(data), len(data))


def needed_digests(path: bytes) -> dict[bytes, int]:
    """The digests alone, with the sizes of the objects. Raises as :func:`image_needs`."""
    return image_needs(path).objects


def _digest_at(payload: bytes | None) -> bytes | None:
    """The object that is at a place below a store; ``None`` for places that are no object's."""
    parts = [part for part in (payload or b"").split(b"/") if part]
    return digest_of(parts[0], parts[1]) if len(parts) == 2 else None
