"""Which choices of ``build`` give the digest that somebody expects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from cfstools.api.build import BuildOptions
from cfstools.errors import naming, shown_path
from cfstools.formats.base import PlanOptions
from cfstools.formats.registry import COMPOSEFS
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.directory import WalkOptions
from cfstools.sources.find import find_image
from cfstools.sources.oci_request import ImagePlace
from cfstools.sources.open import open_source
from cfstools.store.ingest import ingest
from cfstools.tree import Device, Directory, HardLink
from cfstools.tree.copying import copy_tree
from cfstools.tree.filters import drop_devices, keep_xattrs, split_hardlinks, use_epoch
from cfstools.tree.walk import iter_inodes, iter_names
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm, Params

_Change = Callable[[Directory], object]
_Choice = tuple[str, _Change | None]  # in words (empty: the default), and what it does to the tree
_DEFAULT: _Choice = ("", None)
_VERSIONS = (
    (0, 0, "format version 0 (--max-version 0)"),
    (1, 1, "format version 1 (--min-version 1)"),
)


class ExpectReport(Report):
    """Whether an image of *path* can have the expected digest.

    ``choices`` are what has to be chosen besides the defaults, in words with the option of ``build`` where there is
    one; ``format`` is that of the image that has the digest, ``None`` if none of the ``tried`` ones has.
    """

    path: str
    digest: str
    found: bool
    format: str | None
    choices: tuple[str, ...]
    tried: int


def expect(
    path: bytes, digest: bytes, *, threads: int = 1, stdin: BinaryIO | None = None, progress: Progress = SILENT
) -> ExpectReport:
    """Try what ``build`` can make of *path* until an image has *digest* (32 bytes for SHA-256, 64 for SHA-512).

    The defaults come first, then fewer choices before more; a choice that the tree gives no room for is not tried.
    Raises CfsError as :func:`~cfstools.api.build.build` does, UsageError for a digest of another length.
    """
    algorithm = Algorithm.from_digest_size(len(digest))
    place = find_image(path)
    default = BuildOptions().versions(container=place is not None)
    root = _load(path, place, algorithm, threads=threads, stdin=stdin, progress=progress)
    seen: set[bytes] = set()
    for choices in _combinations(root):
        words = [word for word, _ in choices if word]
        tree = _changed(root, choices)
        default_version = -1
        for minimum, maximum, word in ((*default, ""), *_VERSIONS):
            if minimum == maximum == default_version:
                continue
            with naming(path):
                plan = COMPOSEFS.plan(tree, PlanOptions(algorithm, minimum, maximum))
                found = plan.digest(Params(algorithm=algorithm))
            default_version = plan.version if default_version < 0 else default_version
            seen.add(found)
            if found == digest:
                return ExpectReport(
                    path=shown_path(path),
                    digest=digest.hex(),
                    found=True,
                    format=plan.word,
                    choices=tuple(words if not word else [word, *words]),
                    tried=len(seen),
                )
    return ExpectReport(
        path=shown_path(path), digest=digest.hex(), found=False, format=None, choices=(), tried=len(seen)
    )


def _load(
    path: bytes,
    place: ImagePlace | None,
    algorithm: Algorithm,
    *,
    threads: int,
    stdin: BinaryIO | None,
    progress: Progress,
) -> Directory:
    with open_source(
        path, place=place, options=WalkOptions(), algorithm=algorithm, stdin=stdin, progress=progress
    ) as source:
        if source.blobs is not None:
            params = Params(algorithm=algorithm)
            ingest(source.root, source.blobs, None, params=params, threads=threads, progress=progress)
    return source.root


def _combinations(root: Directory) -> Iterator[Sequence[_Choice]]:
    """Every combination of choices that can change this tree, those with the fewest first."""
    axes = [[_DEFAULT, *choices] for choices in _axes(root)]
    yield from sorted(itertools.product(*axes), key=lambda choices: sum(choice is not _DEFAULT for choice in choices))


def _axes(root: Directory) -> Iterator[list[_Choice]]:
    """The choices that exclude each other, in the order in which ``build`` applies them."""
    inodes = list(iter_inodes(root))
    if any(isinstance(inode, Device) for inode in inodes):
        yield [("no devices (--skip-devices)", drop_devices)]
    keys = {key for inode in inodes for key in inode.xattrs}
    if keys:
        nothing: _Choice = ("no xattrs (--skip-xattrs)", _no_xattrs)
        user = {key for key in keys if key.startswith(b"user.")}
        yield [("only user.* xattrs (--user-xattrs)", _user_xattrs), nothing] if set() < user < keys else [nothing]
    if any(isinstance(entry, HardLink) for _, _, entry in iter_names(root)):
        yield [("hard links split (--no-hardlinks)", split_hardlinks)]
    if any(inode.mtime_sec or inode.mtime_nsec for inode in inodes):
        epoch: _Choice = ("all mtimes 0 (--use-epoch)", use_epoch)
        seconds: _Choice = ("mtimes in whole seconds", _whole_seconds)
        yield [epoch, seconds] if any(inode.mtime_nsec for inode in inodes) else [epoch]


def _no_xattrs(root: Directory) -> None:
    keep_xattrs(root, XattrPolicy.NONE)


def _user_xattrs(root: Directory) -> None:
    keep_xattrs(root, XattrPolicy.USER)


def _whole_seconds(root: Directory) -> None:
    for inode in iter_inodes(root):
        inode.mtime_nsec = 0


def _changed(root: Directory, choices: Sequence[_Choice]) -> Directory:
    tree = copy_tree(root)
    for _, change in choices:
        if change is not None:
            change(tree)
    return tree
