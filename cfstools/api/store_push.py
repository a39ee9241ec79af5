"""Verb ``store push``: objects into another store, where only what it lacks is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from cfstools.errors import InputError, ObjectMissing, Phrase, Remedy
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.image_file import image_needs
from cfstools.store.base import FsVerity, Store, Sync
from cfstools.store.chain import StoreChain
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, in_turn
from cfstools.store.open import StorePlace, open_directory, open_stores
from cfstools.store.place import is_remote, local_path
from cfstools.store.write.sending import Sent, send_leaves, send_to_directory, send_to_target
from cfstools.text import counted, shown_path, without_secrets
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.objects import CONNECTIONS
from cfstools.transport.open import DEFAULT_NETWORK, NetworkOptions, open_target
from cfstools.values import Value
from cfstools.verity import object_path

_THREADS = 4


class SendOptions(Value):
    """How objects are sent. ``connections`` go to object storage at once; the others are for new objects in a
    directory, as those of ``build``."""

    connections: int = CONNECTIONS
    object_mode: int = 0o644
    fs_verity: FsVerity = "auto"
    sync: Sync = "auto"
    waiting: Waiting = PATIENT


DEFAULT_SENDING = SendOptions()


class StorePushReport(Report):
    """What ``place`` has now of the objects of ``images``, or of all. Sizes are in bytes.

    ``objects`` of ``bytes`` in all were wanted there; ``objects_sent`` of them were not there yet.
    """

    place: str
    images: tuple[str, ...]
    objects: int
    bytes: int
    objects_sent: int
    bytes_sent: int


def push_objects(
    stores: Sequence[StorePlace],
    place: bytes,
    images: Sequence[bytes] = (),
    *,
    options: SendOptions = DEFAULT_SENDING,
    network: NetworkOptions | None = None,
    progress: Progress = SILENT,
) -> StorePushReport:
    """Put the objects of *images*, or all that *stores* have, into the store at *place*: a path, or a URL.

    Only what is not there is sent, and nothing appears there that has not the contents its digest names.

    Raises InputError for objects of the images that no store has, ImageError, StoreError, ContentsWrong for an object
    of *stores* that is damaged, NetworkError, Unsupported.
    """
    with ExitStack() as stack:
        chain = StoreChain(stack.enter_context(reading(stores, options.waiting)))
        wanted = _needed(images, chain) if images else _all(chain)
        sent = send(chain, wanted, place, options=options, network=network, progress=progress)
    return StorePushReport(
        place=without_secrets(shown_path(place)),
        images=tuple(map(shown_path, images)),
        objects=len(wanted),
        bytes=sum(wanted.values()),
        objects_sent=sent.objects,
        bytes_sent=sent.size,
    )


@contextmanager
def reading(stores: Sequence[StorePlace], waiting: Waiting) -> Iterator[tuple[Store, ...]]:
    """Open *stores* and keep others from removing objects of those that are directories."""
    with ExitStack() as stack:
        opened = stack.enter_context(open_stores(stores))
        for store in opened:
            if isinstance(store, DirectoryStore):
                stack.enter_context(in_turn(store, exclusive=False, waiting=waiting))
        yield opened


def send(
    chain: StoreChain,
    wanted: Mapping[bytes, int],
    place: bytes,
    prefix: str = "",
    *,
    options: SendOptions,
    network: NetworkOptions | None,
    progress: Progress,
) -> Sent:
    """Send the objects *wanted*, sizes by digest, of *chain* to the store at *prefix* of *place*."""
    if is_remote(place):
        with open_target(place, network or DEFAULT_NETWORK) as target:
            connections = options.connections
            sent = send_to_target(chain, wanted, target, prefix, connections=connections, progress=progress)
            send_leaves(chain, wanted, target, prefix, connections=connections, progress=progress)
            return sent
    directory = os.path.join(place, os.fsencode(prefix)) if prefix else place
    with open_directory(directory, create=True) as there:
        sent = send_to_directory(
            chain,
            wanted,
            there,
            threads=_THREADS,
            object_mode=options.object_mode,
            fs_verity=options.fs_verity,
            sync=options.sync,
            waiting=options.waiting,
            progress=progress,
        )
    target = DirectoryTarget(local_path(directory))
    try:
        send_leaves(chain, wanted, target, connections=_THREADS, progress=progress)
    finally:
        target.close()
    return sent


def check_there(sizes: Mapping[bytes, int], chain: StoreChain, image: bytes) -> None:
    """Every object must be there, and as long as the image says, before anything is sent. Raises InputError."""
    lacking = [digest for digest, size in sizes.items() if chain.size(digest) != size]
    if lacking:
        first = object_path(min(lacking)).decode()
        what = f"{counted(len(lacking), 'object')} of {len(sizes)} are missing in the stores or have another size"
        raise InputError(
            f"{what}, first {first}", subject=shown_path(image), hint=Phrase("{} tells all", Remedy.VERIFY)
        )


def _needed(images: Sequence[bytes], chain: StoreChain) -> dict[bytes, int]:
    """The objects of *images* with their sizes."""
    wanted: dict[bytes, int] = {}
    for image in images:
        sizes = image_needs(image).objects
        check_there(sizes, chain, image)
        wanted |= sizes
    return wanted


def _all(chain: StoreChain) -> dict[bytes, int]:
    """All objects of the stores with their sizes."""
    wanted: dict[bytes, int] = {}
    for digest in chain.objects():
        size = chain.size(digest)
        if size is None:
            raise ObjectMissing("vanished while the stores were read", subject=chain.describe(digest))
        wanted[digest] = size
    return wanted
