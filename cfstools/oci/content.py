"""The blobs of container images, wherever they are: the seam between where bytes lie and what they mean.

What asks for a blob holds its descriptor and checks what it gets: a content only finds and delivers. So a registry, a
directory and a dictionary are as good as each other, and none of them has to be trusted.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.descriptor import Descriptor, Digest
from cfstools.oci.files import BlobFiles, missing, read_all
from cfstools.oci.jsontext import Fields, parse_json, within
from cfstools.streams.buffered import Read
from cfstools.streams.limits import MAX_JSON
from cfstools.streams.spool import RandomAccess
from cfstools.text import quoted

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Resolved(NamedTuple):
    """What a name stands for, and how messages call it."""

    where: str
    descriptor: Descriptor


class Content(Protocol):
    """Blobs by their descriptors. Errors are :class:`OciError`, and :class:`InputError` for failed I/O."""

    def resolve(self, name: str | None) -> Resolved:
        """The index or manifest that *name* stands for; without a name, the one that leads to every image here."""

    def size(self, descriptor: Descriptor) -> int | None:
        """Length of the blob in bytes, whatever the descriptor says; ``None`` where there is no such blob."""

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """The whole of a small blob. Raises :class:`OciError` if it has more than *limit* bytes."""

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Read]:
        """The blob's bytes from its start; one blob at a time."""

    def ranges(self, descriptor: Descriptor) -> RandomAccess | None:
        """The blob at any offset, for the caller to close; ``None`` where it can only be read in order."""

    def close(self) -> None:
        """Release what is held open."""


class LayoutContent:
    """An OCI layout over *files*, be they in a directory, in an archive or in memory. Takes over *files*."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files

    def resolve(self, name: str | None) -> Resolved:
        """``index.json``, which holds the names itself. Raises :class:`OciError` for what is not a layout."""
        del name
        with within("oci-layout"):
            layout = Fields(parse_json(read_all(self._files, "oci-layout", MAX_JSON)), "oci-layout")
        version = layout.required_text("imageLayoutVersion")
        if not version.startswith("1."):
            raise OciError(f"layout version {quoted(version)} is not 1.*", where="oci-layout")
        with within("index.json"):
            data = read_all(self._files, "index.json", MAX_JSON)
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        return Resolved("index.json", Descriptor(media_type=INDEX_TYPE, digest=digest, size=len(data), data=data))

    def size(self, descriptor: Descriptor) -> int | None:
        """Length in bytes, or ``None``."""
        return self._files.size(blob_path(descriptor.digest))

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob."""
        return read_all(self._files, blob_path(descriptor.digest), limit)

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Read]:
        """The blob's bytes."""
        return self._files.open(blob_path(descriptor.digest))

    def ranges(self, descriptor: Descriptor) -> RandomAccess | None:
        """The blob at any offset."""
        return self._files.ranges(blob_path(descriptor.digest))

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def blob_path(digest: Digest) -> str:
    """Where a layout keeps a blob."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def check_there(content: Content, descriptor: Descriptor) -> None:
    """Raise :class:`OciError` unless the blob is there and as long as its descriptor says."""
    size = content.size(descriptor)
    if size is None:
        raise missing(blob_path(descriptor.digest))
    if size != descriptor.size:
        what = f"{size} bytes long, its descriptor says {descriptor.size}"
        raise OciError(what, where=blob_path(descriptor.digest))


def read_checked(content: Content, descriptor: Descriptor, limit: int = MAX_JSON) -> bytes:
    """A small blob whose size and digest hold, before anyone interprets it; one embedded in *descriptor* was checked.

    Raises :class:`LimitExceeded` above *limit* bytes, :class:`OciError`, :class:`CheckFailed`.
    """
    if descriptor.size > limit:
        raise LimitExceeded(f"{descriptor.size} bytes are more than {limit}", where=str(descriptor.digest))
    if descriptor.data is not None:
        return descriptor.data
    check_there(content, descriptor)
    return descriptor.check(content.read(descriptor, descriptor.size))
