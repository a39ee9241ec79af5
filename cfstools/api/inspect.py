"""Verb ``inspect``: what an image is, what it holds, and where its bytes went."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple

from cfstools.errors import InputError, naming
from cfstools.formats.base import Region
from cfstools.formats.escape import escape_text
from cfstools.formats.facts import ImageInfo
from cfstools.formats.registry import open_image, read_tree
from cfstools.lifetime import keep_until_exit
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.signing import ImageDigests
from cfstools.signing.files import PlacedSignature, signed_file
from cfstools.sources.oci_request import OciRequest
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading
from cfstools.text import shown_path
from cfstools.tree import Device, Directory, Entry, Leaf, RegularFile, Symlink
from cfstools.tree.walk import inode_of, iter_entries, lookup
from cfstools.verity import Algorithm, Params, digest_bytes

if TYPE_CHECKING:
    from cfstools.api.listing import EntryReport
    from cfstools.oci.descriptor import Platform
    from cfstools.oci.registry.reference import RegistryOptions
    from cfstools.sources.oci_describe import ImageDescription


class InspectReport(Report):
    """What an image is and holds.

    ``format`` is the word that decides the bytes, ``digest`` the fs-verity digest and ``sha256`` the plain one, both
    of the image without anything appended to it. ``contents`` counts what is inside. ``signatures`` has the envelope
    behind the image and the one in ``IMAGE.sig``, as far as they are there; they are read, not checked.
    """

    path: str
    format: str
    digest: str
    sha256: str
    contents: ImageInfo
    signatures: tuple[PlacedSignature, ...]


def inspect(path: bytes) -> InspectReport:
    """Read the whole image at *path* and say what it is. Raises InputError, ImageError and UsageError."""
    with _image(path) as data:
        return _inspect(path, data)


@contextmanager
def _image(path: bytes) -> Iterator[memoryview]:
    """The bytes of the image at *path*, which is looked at once. Raises UsageError for a container image."""
    with recognise(path) as source, naming(path), source.image() as data:
        yield data


def _inspect(path: bytes, data: memoryview) -> InspectReport:
    opened = open_image(data, allow_tail=True)
    keep_until_exit(opened)
    info = opened.facts()
    algorithm = info.algorithm or Algorithm.SHA256
    with data[: info.size] as image:
        digest = digest_bytes(image, Params(algorithm=algorithm))
        sha256 = hashlib.sha256(image).hexdigest()
    signatures = signed_file(path, data).judge(ImageDigests(size=info.size), (), threshold=1)
    return InspectReport(
        path=shown_path(path),
        format=opened.word(algorithm),
        digest=digest.hex(),
        sha256=sha256,
        contents=info,
        signatures=tuple(signatures),
    )


def describe_source(
    path: bytes,
    *,
    platform: Platform | None = None,
    stdin: BinaryIO | None = None,
    scratch: bytes | None = None,
    registries: RegistryOptions | None = None,
    progress: Progress = SILENT,
) -> InspectReport | ImageDescription:
    """What the image at *path* is, a composefs image or a container image. It is opened once.

    *platform*, *stdin* (which ``-`` stands for) and *scratch*, a directory for temporary files, are for container
    images, *registries* says how one is spoken to. Raises CfsError of all kinds.
    """
    request = OciRequest(platform=platform, scratch=scratch, registries=registries)
    with recognise(path) as source:
        described = source.describe(Reading(oci=request, stdin=stdin, progress=progress))
        if described is not None:
            return described
        with naming(path), source.image() as data:
            return _inspect(path, data)


class TreeLine(NamedTuple):
    """One name of a tree listing: ``depth`` below the place the listing starts at, columns as ``ls -l`` has them."""

    depth: int
    mode: str
    owner: str
    size: str
    name: str
    target: str | None


class TreeReport(Report):
    """The names at and below one place of an image, each as ``ls`` reports it, with its whole path."""

    schema: ClassVar[int] = 2

    names: tuple[EntryReport, ...]


def tree(path: bytes, start: bytes = b"/") -> Iterator[TreeLine]:
    """The names below *start* in the image at *path*. Raises InputError where there is no such name."""
    yield from _tree(_find(path, start)[1], start)


def tree_report(path: bytes, start: bytes = b"/") -> TreeReport:
    """The same names as :func:`tree`, with all that is known of them. Raises InputError likewise."""
    # Only where it is used, for it brings stores with it.
    from cfstools.api.listing import entries_below

    return TreeReport(names=tuple(entries_below(_find(path, start)[0], start)))


def _find(path: bytes, start: bytes) -> tuple[Directory, Entry]:
    """The root of the image at *path* and its entry *start*."""
    with _image(path) as data:
        root = read_tree(data, allow_tail=True)
    keep_until_exit(root)
    entry = lookup(root, start)
    if entry is None:
        raise InputError(f"no {escape_text(start)} in the image", subject=shown_path(path))
    return root, entry


def _tree(entry: Entry, start: bytes) -> Iterator[TreeLine]:
    if not isinstance(entry, Directory):
        yield _tree_line(0, start, inode_of(entry))
        return
    for path, name, below in iter_entries(entry):
        depth = 0 if path == b"/" else path.count(b"/")
        yield _tree_line(depth, name or start, inode_of(below))


def _tree_line(depth: int, name: bytes, inode: Directory | Leaf) -> TreeLine:
    target = None
    size = ""
    match inode:
        case RegularFile():
            size = str(inode.size)
        case Symlink():
            target = escape_text(inode.target)
        case Device():
            size = f"{os.major(inode.rdev)},{os.minor(inode.rdev)}"
        case _:
            pass
    return TreeLine(depth, stat.filemode(inode.mode), f"{inode.uid}:{inode.gid}", size, escape_text(name), target)


def layout(path: bytes) -> Iterator[Region]:
    """Every byte range of the image at *path*, named, from front to back. Raises InputError and ImageError."""
    with _image(path) as data:
        yield from open_image(data, allow_tail=True).regions()
