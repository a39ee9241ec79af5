"""Verb ``plan``: what it would cost to have an image where another one and some stores are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from cfstools.api.offered import examine, missing_objects
from cfstools.errors import naming
from cfstools.oci.descriptor import Platform
from cfstools.oci.registry.reference import RegistryOptions
from cfstools.report import Report
from cfstools.sources.elsewhere import Elsewhere
from cfstools.store.open import StorePlace, open_stores
from cfstools.text import shown_path, without_secrets
from cfstools.transport.fetch import ObjectSource
from cfstools.transport.open import NetworkOptions
from cfstools.tree import Directory, External, RegularFile
from cfstools.tree.walk import iter_entries
from cfstools.values import Value

TOP = 10


class DirectoryCost(Report):
    """The missing objects of the files of a directory, without those below it; ``bytes`` are of contents."""

    path: str
    objects: int
    bytes: int


class FileCost(Report):
    """A file whose contents are missing: its first name, and its size in bytes."""

    path: str
    bytes: int


class FetchCost(Report):
    """What it costs to fetch the objects that are missing, beside the image itself.

    ``bytes`` are those of contents, ``bytes_fetched`` those that would come over the wire, in ``requests`` requests, if
    the first place that should have an object has it. ``unreachable`` objects are in no place that can be told before.
    ``directories`` and ``files`` are the largest. An object that several files share counts where it is first.
    """

    objects: int
    bytes: int
    bytes_fetched: int
    requests: int
    unreachable: int
    directories: tuple[DirectoryCost, ...]
    files: tuple[FileCost, ...]


class PlanReport(Report):
    """What an update costs from the image at ``old`` to that at ``new``, which has ``size`` bytes and ``objects``."""

    old: str
    new: str
    size: int
    objects: int
    cost: FetchCost


class PlanOptions(Value):
    """What is planned. ``mirrors`` are as those of ``pull``; ``top`` says how many directories and files are listed,
    ``None`` for all."""

    mirrors: Sequence[bytes] = ()
    platform: Platform | None = None
    scratch: bytes | None = None
    top: int | None = TOP


def plan(
    old: bytes,
    new: bytes,
    *,
    stores: Sequence[StorePlace] = (),
    options: PlanOptions | None = None,
    registries: RegistryOptions | None = None,
    network: NetworkOptions | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> PlanReport:
    """Say what ``pull`` of the image at *new* would fetch where the objects of the image at *old* and *stores* are.

    Both are places as ``pull`` takes them, so also image files. No object is fetched. The images are not judged: what
    is said of them is as good as the places that they are in.

    Raises NetworkError, InputError, ImageError, OciError, StoreError, UsageError.
    """
    options = options or PlanOptions()
    with ExitStack() as stack:
        elsewhere = stack.enter_context(Elsewhere(registries, network=network, scratch=options.scratch, warn=warn))
        with elsewhere.offer(old, options.platform) as offer, naming(_shown(old)):
            _, there = examine(offer)
        offer = stack.enter_context(elsewhere.offer(new, options.platform, options.mirrors))
        with naming(_shown(new)):
            opened, sizes = examine(offer)
            sources = offer.sources(sizes)
        opened_stores = stack.enter_context(open_stores(stores))
        wanted = missing_objects({digest: size for digest, size in sizes.items() if digest not in there}, opened_stores)
        cost = fetch_cost(opened.tree(), wanted, sources, top=options.top)
    return PlanReport(old=_shown(old), new=_shown(new), size=len(offer.data), objects=len(sizes), cost=cost)


def fetch_cost(
    root: Directory, wanted: Mapping[bytes, int], sources: Sequence[ObjectSource], *, top: int | None = TOP
) -> FetchCost:
    """What it costs to fetch *wanted*, sizes by digest, of the image with the tree *root*, from *sources*."""
    left = dict(wanted)
    received = requests = 0
    for source in sources:
        if left:
            for request in source.plan(left):
                received += request.size
                requests += request.requests
                for key in request.keys:
                    left.pop(key, None)
    directories, files = _by_path(root, wanted)
    return FetchCost(
        objects=len(wanted),
        bytes=sum(wanted.values()),
        bytes_fetched=received,
        requests=requests,
        unreachable=len(left),
        directories=tuple(sorted(directories, key=lambda one: (-one.bytes, one.path))[:top]),
        files=tuple(sorted(files, key=lambda one: (-one.bytes, one.path))[:top]),
    )


def _by_path(root: Directory, wanted: Mapping[bytes, int]) -> tuple[list[DirectoryCost], list[FileCost]]:
    """Where in the tree the wanted objects are, each at the first name of a file that has it."""
    left = set(wanted)
    sums: dict[bytes, tuple[int, int]] = {}
    files = []
    for path, _, entry in iter_entries(root):
        if not left:
            break
        if not isinstance(entry, RegularFile) or not isinstance(entry.content, External):
            continue
        digest = entry.content.digest
        if digest is None or digest not in left:
            continue
        left.discard(digest)
        size = wanted[digest]
        objects, total = sums.get(os.path.dirname(path), (0, 0))
        sums[os.path.dirname(path)] = objects + 1, total + size
        files.append(FileCost(path=shown_path(path), bytes=size))
    directories = [
        DirectoryCost(path=shown_path(path), objects=objects, bytes=total) for path, (objects, total) in sums.items()
    ]
    return directories, files


def _shown(place: bytes) -> str:
    return without_secrets(shown_path(place))
