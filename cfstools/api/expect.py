"""Which choices of ``build`` give the digest that somebody expects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from cfstools.api.build import BuildOptions
from cfstools.errors import naming
from cfstools.formats.base import Format, PlanOptions
from cfstools.formats.registry import COMPOSEFS
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.oci_request import OciRequest
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, load
from cfstools.text import shown_path
from cfstools.tree import Device, Directory, HardLink
from cfstools.tree.copying import copy_tree
from cfstools.tree.filters import drop_devices, keep_xattrs, split_hardlinks, use_epoch
from cfstools.tree.walk import iter_inodes, iter_names
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import ObjectId, Params

if TYPE_CHECKING:
    from cfstools.oci.registry.reference import RegistryOptions

_Change = Callable[[Directory], object]


class BuildChoice(Enum):
    """Something that ``build`` can be told to do, or that another tool does."""

    VERSION_0 = "format version 0"
    VERSION_1 = "format version 1"
    NO_DEVICES = "no devices"
    NO_XATTRS = "no xattrs"
    USER_XATTRS = "only user.* xattrs"
    NO_HARDLINKS = "hard links split"
    EPOCH = "all mtimes 0"
    SECONDS = "mtimes in whole seconds"


_Way = tuple[BuildChoice | None, _Change | None]  # the choice (None: the default), and what it does to the tree
_DEFAULT: _Way = (None, None)
_VERSIONS: tuple[tuple[PlanOptions, BuildChoice | None], ...] = (
    (PlanOptions(min_version=0, max_version=0), BuildChoice.VERSION_0),
    (PlanOptions(min_version=1, max_version=1), BuildChoice.VERSION_1),
)


class ExpectReport(Report):
    """Whether an image of *path* can have the expected digest.

    ``choices`` are what has to be chosen besides the defaults; ``format`` is that of the image that has the digest,
    ``None`` if none of the ``tried`` ones has.
    """

    path: str
    digest: str
    found: bool
    format: str | None
    choices: tuple[BuildChoice, ...]
    tried: int


def expect(
    path: bytes,
    digest: ObjectId,
    *,
    format: Format = COMPOSEFS,
    threads: int = 1,
    stdin: BinaryIO | None = None,
    registries: RegistryOptions | None = None,
    progress: Progress = SILENT,
) -> ExpectReport:
    """Try what ``build`` can make of *path* in *format* until an image has *digest*.

    *registries* are the options for a source in a registry. The defaults come first, then fewer choices before more; a
    choice that the tree gives no room for is not tried. Raises CfsError as :func:`~cfstools.api.build.build` does.
    """
    algorithm, wanted = digest
    with recognise(path) as source:
        default = BuildOptions(algorithm=algorithm).plan_options(source.kind)
        oci = OciRequest(registries=registries)
        reading = Reading(algorithm=algorithm, oci=oci, stdin=stdin, progress=progress)
        root = load(source, reading, threads=threads).root
    seen: set[bytes] = set()
    for choices in _combinations(root):
        chosen = [choice for choice, _ in choices if choice is not None]
        tree = _changed(root, choices)
        default_version = -1
        for options, version in ((default, None), *_VERSIONS):
            if options.min_version == options.max_version == default_version:
                continue
            with naming(path):
                plan = format.plan(tree, options._replace(algorithm=algorithm))
                found = plan.digest(Params(algorithm=algorithm))
            default_version = plan.version if default_version < 0 else default_version
            seen.add(found)
            if found == wanted:
                return ExpectReport(
                    path=shown_path(path),
                    digest=wanted.hex(),
                    found=True,
                    format=plan.word,
                    choices=tuple(chosen if version is None else [version, *chosen]),
                    tried=len(seen),
                )
    return ExpectReport(
        path=shown_path(path), digest=wanted.hex(), found=False, format=None, choices=(), tried=len(seen)
    )


def _combinations(root: Directory) -> Iterator[Sequence[_Way]]:
    """Every combination of choices that can change this tree, those with the fewest first."""
    axes = [[_DEFAULT, *choices] for choices in _axes(root)]
    yield from sorted(itertools.product(*axes), key=lambda choices: sum(choice is not _DEFAULT for choice in choices))


def _axes(root: Directory) -> Iterator[list[_Way]]:
    """The choices that exclude each other, in the order in which ``build`` applies them."""
    inodes = list(iter_inodes(root))
    if any(isinstance(inode, Device) for inode in inodes):
        yield [(BuildChoice.NO_DEVICES, drop_devices)]
    keys = {key for inode in inodes for key in inode.xattrs}
    if keys:
        nothing: _Way = (BuildChoice.NO_XATTRS, _no_xattrs)
        user = {key for key in keys if key.startswith(b"user.")}
        yield [(BuildChoice.USER_XATTRS, _user_xattrs), nothing] if set() < user < keys else [nothing]
    if any(isinstance(entry, HardLink) for _, _, entry in iter_names(root)):
        yield [(BuildChoice.NO_HARDLINKS, split_hardlinks)]
    if any(inode.mtime_sec or inode.mtime_nsec for inode in inodes):
        epoch: _Way = (BuildChoice.EPOCH, use_epoch)
        seconds: _Way = (BuildChoice.SECONDS, _whole_seconds)
        yield [epoch, seconds] if any(inode.mtime_nsec for inode in inodes) else [epoch]


def _no_xattrs(root: Directory) -> None:
    keep_xattrs(root, XattrPolicy.NONE)


def _user_xattrs(root: Directory) -> None:
    keep_xattrs(root, XattrPolicy.USER)


def _whole_seconds(root: Directory) -> None:
    for inode in iter_inodes(root):
        inode.mtime_nsec = 0


def _changed(root: Directory, choices: Sequence[_Way]) -> Directory:
    tree = copy_tree(root)
    for _, change in choices:
        if change is not None:
            change(tree)
    return tree
