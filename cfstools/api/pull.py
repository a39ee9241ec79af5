"""Verb ``pull``: an image from elsewhere, and of its objects those that the stores lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from cfstools.api.offered import Judged, examine, judge_offer, missing_objects
from cfstools.api.plan import FetchCost, fetch_cost
from cfstools.errors import Phrase, Remedy, naming
from cfstools.formats.base import OpenImage
from cfstools.linux.contents import file_type
from cfstools.oci.descriptor import Platform
from cfstools.oci.registry.reference import RegistryOptions
from cfstools.output.files import output_file
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.signing import ImageDigests, SignatureReport, Verifier, judge
from cfstools.signing.files import envelope_path
from cfstools.sources.elsewhere import Elsewhere
from cfstools.sources.offers import Offer
from cfstools.store.base import FsVerity, Store, Sync
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.open import StorePlace, open_stores, open_to_write, refuse_remote
from cfstools.store.place import local_path
from cfstools.store.write.arriving import ArrivingObjects
from cfstools.store.write.writer import StoreWriter
from cfstools.text import shown_path, without_secrets
from cfstools.transport.fetch import ObjectSource, fetch_all
from cfstools.transport.open import NetworkOptions
from cfstools.values import Value
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes, object_path

# What comes slowly is published often: whoever is killed has to fetch no more than this again.
_BATCH_FILES = 500
_BATCH_BYTES = 32 << 20


class PullOptions(Value):
    """What must hold of a pulled image, and how it is fetched.

    With ``keys`` signatures of ``threshold`` of them must hold, with ``digest`` it must be this image: before either
    does, nothing of the image is interpreted. ``mirrors`` are stores that have its objects, paths and URLs: those are
    asked in this order, before the layers of a container image, and instead of ``objects`` beside a file.
    ``connections`` are so many to each of them; ``None`` is what serves each best.
    """

    keys: Sequence[Verifier] = ()
    threshold: int = 1
    digest: ObjectId | None = None
    platform: Platform | None = None
    mirrors: Sequence[bytes] = ()
    connections: int | None = None
    scratch: bytes | None = None
    object_mode: int = 0o644
    fs_verity: FsVerity = "auto"
    sync: Sync = "auto"
    waiting: Waiting = PATIENT


class PullReport(Report):
    """What was pulled. Sizes are in bytes.

    ``manifest`` is the digest of that of a container image. ``objects`` counts those of the image, ``objects_fetched``
    those that the stores lacked; with a dry run these would be fetched, and ``cost`` has more about it.
    ``bytes_fetched`` are bytes of layers or of objects, in ``requests`` requests. What vouches for the image is its
    ``signature``, its digest if ``digest_checked``, or nothing.
    """

    image: str | None
    place: str
    manifest: str | None
    digest: str
    format: str
    size: int
    objects: int
    objects_fetched: int
    bytes_fetched: int
    requests: int
    signature: SignatureReport
    digest_checked: bool
    signature_path: str | None
    cost: FetchCost | None


def pull(
    place: bytes,
    image: bytes | None,
    *,
    stores: Sequence[StorePlace],
    options: PullOptions | None = None,
    registries: RegistryOptions | None = None,
    network: NetworkOptions | None = None,
    warn: Callable[[str], None] = lambda _text: None,
    progress: Progress = SILENT,
) -> PullReport:
    """Pull the image at *place* to the path *image*.

    *place* is that of an image that was pushed (``docker://HOST/NAME``, ``oci:DIR``, ``oci-archive:FILE``), or of an
    image file: a path or URL (``https://``, ``s3://``, ``gs://``, ``az://``, ``file://``).

    Objects that none of *stores* has go into the first. The image appears when all of them are durable, its signature
    as ``IMAGE.sig`` just before. With *image* ``None`` nothing is fetched: the report says what would be. Nothing of
    what comes is trusted: the image is judged as *options* say, each object by its digest.

    Raises NetworkError and InputError for what cannot be had, CheckFailed (SignatureInvalid, ContentsWrong) for what is
    wrong, OciError, ImageError, StoreError, UsageError. Objects that came before an error stay in the store.
    """
    options = options or PullOptions()
    refuse_remote(stores, Phrase("to fetch objects from there, use {}", Remedy.MIRRORS))
    judge(None, ImageDigests(size=0), options.keys, threshold=options.threshold)  # found out before any work
    shown = without_secrets(shown_path(place))
    with ExitStack() as stack:
        elsewhere = stack.enter_context(Elsewhere(registries, network=network, scratch=options.scratch, warn=warn))
        offer = stack.enter_context(elsewhere.offer(place, options.platform, options.mirrors))
        with naming(shown):
            judged = judge_offer(offer, keys=options.keys, threshold=options.threshold, digest=options.digest)
            opened, sizes = examine(offer)
            sources = offer.sources(sizes)
        cost = None
        if image is None:
            there = stack.enter_context(open_stores(_existing(stores)))
            cost = fetch_cost(opened.tree(), missing_objects(sizes, there), sources)
            fetched = _Fetched(cost.objects, cost.bytes_fetched, cost.requests)
        else:
            first, others = stack.enter_context(open_to_write(stores))
            writer = stack.enter_context(_writer(first, others, opened.algorithm or Algorithm.SHA256, options))
            wanted = missing_objects(sizes, (first, *others))
            with naming(shown):
                fetched = _fetch(sources, wanted, writer, options, progress)
            _place(image, offer, judged)
        pulled = _Pulled(offer, opened, judged, fetched, len(sizes), cost)
    return _report(shown, image, pulled, digest_checked=options.digest is not None)


def _existing(stores: Sequence[StorePlace]) -> list[StorePlace]:
    """Those of *stores* that are there: before the first pull there is none."""
    return [store for store in stores if not isinstance(store, bytes) or file_type(local_path(store))]


class _Fetched(NamedTuple):
    """What was fetched, or would be."""

    objects: int
    received: int
    requests: int


def _writer(first: DirectoryStore, others: Sequence[Store], algorithm: Algorithm, options: PullOptions) -> StoreWriter:
    return StoreWriter(
        first,
        params=Params(algorithm=algorithm),
        others=others,
        batch_files=_BATCH_FILES,
        batch_bytes=_BATCH_BYTES,
        object_mode=options.object_mode,
        fs_verity=options.fs_verity,
        sync=options.sync,
        waiting=options.waiting,
    )


def _fetch(
    sources: Sequence[ObjectSource],
    wanted: Mapping[bytes, int],
    writer: StoreWriter,
    options: PullOptions,
    progress: Progress,
) -> _Fetched:
    """Fetch what is missing and publish it, also what came before something went wrong."""
    arriving = ArrivingObjects(writer)
    try:
        done = fetch_all(sources, wanted, arriving, connections=options.connections, progress=progress)
    finally:
        arriving.finish()
        writer.commit()
    error = done.error(lambda digest: object_path(digest).decode())
    if error is not None:
        raise error
    return _Fetched(done.objects, done.received, done.requests)


def _place(image: bytes, offer: Offer, judged: Judged) -> None:
    """Write the image, and its signature just before it appears."""
    with output_file(image) as file:
        file.write(offer.data)
        if judged.envelope is not None:
            file.sync()
            with output_file(envelope_path(image)) as beside:
                beside.write(judged.envelope)


class _Pulled(NamedTuple):
    """What came out of the steps of a pull."""

    offer: Offer
    opened: OpenImage
    judged: Judged
    fetched: _Fetched
    objects: int
    cost: FetchCost | None


def _report(place: str, image: bytes | None, pulled: _Pulled, *, digest_checked: bool) -> PullReport:
    offer, opened, judged, fetched, objects, cost = pulled
    algorithm = opened.algorithm or Algorithm.SHA256
    beside = image is not None and judged.envelope is not None
    return PullReport(
        image=None if image is None else shown_path(image),
        place=place,
        manifest=offer.manifest,
        digest=digest_bytes(offer.data, Params(algorithm=algorithm)).hex(),
        format=opened.word(algorithm),
        size=len(offer.data),
        objects=objects,
        objects_fetched=fetched.objects,
        bytes_fetched=fetched.received,
        requests=fetched.requests,
        signature=judged.report,
        digest_checked=digest_checked,
        signature_path=shown_path(envelope_path(image)) if image is not None and beside else None,
        cost=cost,
    )
