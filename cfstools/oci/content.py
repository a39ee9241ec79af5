"""The seam between the place of blobs and their meaning: a ``Content`` delivers blobs of container images.

The caller has the descriptor of a blob and checks what it gets. So a content need not be trusted, be it a registry, a
directory or a dictionary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple, Protocol

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.descriptor import Descriptor, Digest, read_descriptor
from cfstools.oci.files import BlobFiles, missing, read_all
from cfstools.oci.jsontext import Fields, parse_json, within
from cfstools.streams.buffered import Read
from cfstools.streams.limits import MAX_JSON, MAX_REFERRERS
from cfstools.streams.spool import RangeReader
from cfstools.text import quoted
from cfstools.transport.base import Open, Span

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Resolved(NamedTuple):
    """The descriptor that a name stands for, and its name in messages (``where``)."""

    where: str
    descriptor: Descriptor


class Content(Protocol):
    """Blobs by their descriptors. Errors are :class:`OciError`, and :class:`InputError` for failed I/O."""

    places: int
    """How many places have the same blobs; after :class:`CheckFailed` in a blob, opening it uses the next place."""
    at_once: int
    """How many blobs may be open at the same time, each read by a thread of its own."""

    def resolve(self, name: str | None) -> Resolved:
        """The index or manifest that *name* stands for; without a name, the index of all images here."""

    def size(self, descriptor: Descriptor) -> int | None:
        """Actual length of the blob in bytes; ``None`` if there is no such blob."""

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read a small blob whole. Raises :class:`OciError` if it has more than *limit* bytes."""

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Read]:
        """The blob's bytes from its start."""

    def spans(self, descriptor: Descriptor) -> Sequence[Open]:
        """How ranges of the blob are opened, from several threads: from wherever it is, the first to try first."""

    def referrers(self, subject: Descriptor) -> Iterator[bytes]:
        """The manifests of artifacts that may refer to *subject*, which whoever asks checks; a few at most."""

    def close(self) -> None:
        """Release what is held open; what other threads read ends. Closing twice is allowed."""


class LayoutContent:
    """An OCI layout over *files* in a directory, in an archive or in memory. Closes *files* in the end."""

    places = 1
    at_once = 1

    def __init__(self, files: BlobFiles) -> None:
        self._files = files

    def resolve(self, name: str | None) -> Resolved:
        """``index.json``, whose entries carry the names. Raises :class:`OciError` if this is not a layout."""
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

    def spans(self, descriptor: Descriptor) -> Sequence[Open]:
        """One way, which reads from the start where the files cannot be entered anywhere else."""

        @contextmanager
        def opened(span: Span) -> Iterator[Read]:
            place = self._files.ranges(blob_path(descriptor.digest))
            if place is None:
                with self.open(descriptor) as read:
                    _skip(read, span.start)
                    yield read
                return
            with closing(place):
                yield RangeReader(place, span.start, span.size).read

        return [opened]

    def referrers(self, subject: Descriptor) -> Iterator[bytes]:
        """The manifests in the index that have a subject."""
        left = MAX_REFERRERS
        for value in Fields(parse_json(read_all(self._files, "index.json", MAX_JSON)), "index.json").array("manifests"):
            descriptor = read_descriptor(Fields(value, "index.json"), typed=False)
            if not descriptor.artifact_type or descriptor.digest == subject.digest:
                continue
            if not left:
                return
            left -= 1
            yield read_checked(self, descriptor)

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def _skip(read: Read, count: int) -> None:
    while count and (piece := read(min(count, 1 << 18))):
        count -= len(piece)


def blob_path(digest: Digest) -> str:
    """Path of a blob in a layout."""
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def check_there(content: Content, descriptor: Descriptor) -> None:
    """Raise :class:`OciError` unless the blob exists with the size that its descriptor states."""
    size = content.size(descriptor)
    if size is None:
        raise missing(blob_path(descriptor.digest))
    if size != descriptor.size:
        what = f"{size} bytes long, its descriptor says {descriptor.size}"
        raise OciError(what, where=blob_path(descriptor.digest))


def read_checked(content: Content, descriptor: Descriptor, limit: int = MAX_JSON) -> bytes:
    """Read a small blob and check its size and digest; data embedded in *descriptor* were checked already.

    Raises :class:`LimitExceeded` above *limit* bytes, :class:`OciError`, :class:`CheckFailed`.
    """
    if descriptor.size > limit:
        raise LimitExceeded(f"{descriptor.size} bytes are more than {limit}", where=str(descriptor.digest))
    if descriptor.data is not None:
        return descriptor.data
    check_there(content, descriptor)
    return descriptor.check(content.read(descriptor, descriptor.size))
