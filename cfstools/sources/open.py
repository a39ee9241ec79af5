"""One door to everything that can be built: by option, by prefix, else by what the path holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from cfstools.errors import FormatError, InputError, UsageError, naming
from cfstools.formats.composefs_reader import TreeReader
from cfstools.formats.dump import parse_dump
from cfstools.formats.erofs.layout import COMPOSEFS_MAGIC
from cfstools.formats.erofs.reader import Image
from cfstools.linux.mapping import mapped_file
from cfstools.progress import SILENT, Progress
from cfstools.sources.directory import WalkOptions, open_directory
from cfstools.store import Blobs
from cfstools.tree import Directory
from cfstools.tree.filters import drop_devices, exclude, keep_xattrs, split_hardlinks, use_epoch
from cfstools.tree.globs import GlobSet
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm

_IMAGE_MAGIC = COMPOSEFS_MAGIC.to_bytes(4, "little")
_DUMP_START = b"/ "
_STDIN = b"-"


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """A source opened: its tree, and where contents still unread come from (``None``: there are none)."""

    root: Directory
    blobs: Blobs | None
    kind: str  # "directory", "dump" or "image"


@contextmanager
def open_source(
    path: bytes,
    *,
    options: WalkOptions,
    algorithm: Algorithm = Algorithm.SHA256,
    from_file: bool = False,
    strict: bool = False,
    stdin: BinaryIO | None = None,
    progress: Progress = SILENT,
) -> Iterator[SourceTree]:
    """Open *path* as a tree, with the *options* applied whatever kind of source it is.

    *from_file* says that it is a dump text, which may be ``b"-"`` for *stdin*; else a directory is walked, and an
    image or a dump text is recognised by how it starts. *strict* refuses lenient dump texts. *algorithm* is that of
    the digests in dumps and images.
    Raises InputError, FormatError and UsageError, naming the path.
    """
    if not from_file and os.path.isdir(path):
        with open_directory(path, options=options, progress=progress) as source:
            yield SourceTree(root=source.root, blobs=source, kind="directory")
        return
    if path == _STDIN and stdin is not None:
        with naming("standard input"):
            text = stdin.read()
            if not from_file and not text.startswith(_DUMP_START):
                raise InputError("is not a dump text", hint="add --from-file to read it as one")
            tree = SourceTree(root=parse_dump(text, algorithm=algorithm, strict=strict), blobs=None, kind="dump")
    else:
        with mapped_file(path) as data:
            tree = _from_bytes(data, algorithm=algorithm, from_file=from_file, strict=strict)
    _apply(tree.root, options)
    yield tree


def _from_bytes(data: memoryview, *, algorithm: Algorithm, from_file: bool, strict: bool) -> SourceTree:
    if from_file or data[: len(_DUMP_START)] == _DUMP_START:
        return SourceTree(root=parse_dump(data, algorithm=algorithm, strict=strict), blobs=None, kind="dump")
    if data[: len(_IMAGE_MAGIC)] != _IMAGE_MAGIC:
        raise FormatError("is neither a directory nor an image nor a dump text")
    reader = TreeReader(Image(data, allow_tail=True))
    root = reader.read()
    if reader.algorithm not in {None, algorithm}:
        raise UsageError(
            f"the objects of the image are not named by {algorithm.value}",
            hint="the names of objects come from their contents: extract the image and build the directory",
        )
    return SourceTree(root=root, blobs=None, kind="image")


def _apply(root: Directory, options: WalkOptions) -> None:
    """What a walk leaves out or sets by itself, for sources that come as whole trees."""
    if options.exclude:
        exclude(root, GlobSet(options.exclude))
    if options.skip_devices:
        drop_devices(root)
    if options.xattrs is not XattrPolicy.ALL:
        keep_xattrs(root, options.xattrs)
    if not options.hardlinks:
        split_hardlinks(root)
    if options.use_epoch:
        use_epoch(root)
