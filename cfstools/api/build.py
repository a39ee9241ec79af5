"""Verb ``build``: any source to a composefs image, its contents into a store."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from cfstools.errors import Phrase, Remedy, naming
from cfstools.formats.base import Format, ImagePlan, PlanOptions
from cfstools.formats.image_output import output_image
from cfstools.formats.registry import COMPOSEFS
from cfstools.lifetime import keep_until_exit
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.oci_request import DEFAULT_REQUEST, OciRequest
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, Source, SourceKind, SourceTree, WalkOptions
from cfstools.store import Ingest, RootedBlobs
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.place import local_path
from cfstools.text import shown_path
from cfstools.tree import Directory
from cfstools.tree.filters import clamp_mtime
from cfstools.tree.xattrs import XattrPolicy
from cfstools.values import Value
from cfstools.verity import Algorithm, Params

if TYPE_CHECKING:
    from cfstools.signing.new_image import ImageSignature, Signing
    from cfstools.sources.oci import OciReport
    from cfstools.store import Blobs, StoreWriter
    from cfstools.store.base import FsVerity, Sync
    from cfstools.store.cache.digest_cache import DigestCache
    from cfstools.store.open import StorePlace
    from cfstools.store.write.publisher import StoreReport


class BuildOptions(Value):
    """What decides the bytes of an image besides its source.

    Versions that are ``None`` follow the reference tool of the source. For a directory or a dump neither given means 0
    to 1, else the one not given is 0; for a container image neither given means 1.
    ``clamp_mtime`` is in seconds since the epoch; ``exclude`` holds patterns as in ``cfstools.tree.globs``.
    ``strict`` refuses dump texts that only the reference's leniency accepts. Options that do not
    apply to the source are ignored.
    """

    algorithm: Algorithm = Algorithm.SHA256
    min_version: int | None = None
    max_version: int | None = None
    use_epoch: bool = False
    skip_devices: bool = False
    xattrs: XattrPolicy = XattrPolicy.ALL
    hardlinks: bool = True
    clamp_mtime: int | None = None
    exclude: tuple[bytes, ...] = ()
    from_file: bool = False
    strict: bool = False
    oci: OciRequest = DEFAULT_REQUEST

    def plan_options(self, kind: SourceKind) -> PlanOptions:
        """The algorithm, and the lowest and highest version allowed for a source of this *kind*."""
        if self.min_version is None and self.max_version is None:
            lowest = 1 if kind is SourceKind.CONTAINER else 0
            return PlanOptions(algorithm=self.algorithm, min_version=lowest)
        return PlanOptions(
            algorithm=self.algorithm, min_version=self.min_version or 0, max_version=self.max_version or 0
        )

    def reading(self, **means: Any) -> Reading:
        """How the source is read, with the *means* of :class:`Reading`."""
        walk = WalkOptions(
            use_epoch=self.use_epoch,
            skip_devices=self.skip_devices,
            xattrs=self.xattrs,
            hardlinks=self.hardlinks,
            exclude=self.exclude,
        )
        return Reading(walk=walk, algorithm=self.algorithm, strict=self.strict, oci=self.oci, **means)


class ObjectOptions(Value):
    """How new objects are stored: their mode, and whether fs-verity is turned on (``auto``: where it can be).

    ``cache`` is the directory of the digest cache, which must be the user's own (``docs/store.md``), or is made.
    Without it every file is read, and nothing is remembered.
    ``waiting`` says how long to wait for someone who removes objects from a store.
    ``sync`` says how objects are brought to stable storage; ``none`` is for stores that need not survive a power cut.
    """

    mode: int = 0o644
    fs_verity: FsVerity = "auto"
    cache: bytes | None = None
    waiting: Waiting = PATIENT
    sync: Sync = "auto"


class BuildReport(Report):
    """What a build made. Sizes are in bytes; ``image`` and ``store`` are paths as text.

    ``inodes`` leaves out the whiteouts that every image gets for the directories of a store, as ``inspect`` does.
    ``objects_missing`` counts objects a dump or an image names that none of the stores has; ``source`` is there for
    container images, ``signature`` (the file that holds it) and ``key_ids`` where the image was signed. ``cache_hits``
    counts files that were not read because the digest cache knew them.
    """

    image: str | None
    format: str
    digest: str
    image_size: int
    inodes: int
    store: str | None = None
    objects_new: int = 0
    objects_shared: int = 0
    bytes_new: int = 0
    bytes_shared: int = 0
    objects_missing: int = 0
    source: OciReport | None = None
    signature: str | None = None
    key_ids: tuple[str, ...] = ()
    cache_hits: int = 0
    warnings: tuple[str, ...] = ()


_NOTHING = Directory(mode=stat.S_IFDIR | 0o755)


def build(
    source: bytes,
    image: bytes | BinaryIO | None,
    *,
    stores: Sequence[StorePlace] = (),
    options: BuildOptions | None = None,
    objects: ObjectOptions | None = None,
    signing: Signing | None = None,
    format: Format = COMPOSEFS,
    threads: int = 1,
    stdin: BinaryIO | None = None,
    accept: Callable[[SourceKind], object] | None = None,
    progress: Progress = SILENT,
) -> BuildReport:
    """Build the image of *source* in *format*.

    *image* is a path, replaced once the new image is whole and durable, or a stream, or ``None`` to compute the
    digest only. Contents go into the first of *stores*, unless one of them has the object; without stores they are
    only digested; new ones are stored as *objects* says. *stdin* is what a source of ``-`` is read from. Objects are
    durable before the image appears, and a running build keeps ``store gc`` waiting until it does. With *signing* it
    appears together with its signature. *accept* is told what the source is before anything is written, and may raise.

    Raises InputError, SourceChanged, FormatError, TreeError, StoreError and UsageError, each naming its file.
    """
    options, objects = options or BuildOptions(), objects or ObjectOptions()
    signature = _signature(image, signing)
    params = Params(algorithm=options.algorithm)
    _refuse_remote(stores)
    with ExitStack() as stack:
        found = stack.enter_context(_recognise(source, options, accept))
        choices = options.plan_options(found.kind)
        format.plan(_NOTHING, choices)  # a version that does not exist is found out before any work
        writer = stack.enter_context(_writer(stores, params, objects, deferred=found.kind is SourceKind.CONTAINER))
        contents = stack.enter_context(
            closing(_Contents(writer, params, objects, options.xattrs, threads=threads, progress=progress))
        )
        targets = _targets(image, stores, objects)
        cache = objects.cache if objects.sync != "none" else None
        reading = options.reading(
            writer=writer, reader=contents.start, stdin=stdin, targets=targets, progress=progress, cache=cache
        )
        tree = stack.enter_context(found.open(reading))
        keep_until_exit(tree)
        contents.finish()
        if accept is not None and tree.kind is not found.kind:
            accept(tree.kind)
        with naming(source):
            plan = _plan(tree, format, options, choices)
        if writer is not None:
            writer.commit(_wanted(tree))
        digest = output_image(plan, image, params, signature)
    stored = writer.report if writer is not None else None
    built = _Built(tree, plan, digest, signature, stored, contents.cache_hits)
    return _report(built, image, stores)


def _signature(image: bytes | BinaryIO | None, signing: Signing | None) -> ImageSignature | None:
    """The signature that is wanted. What cannot be signed is refused here, before any work."""
    if signing is None:
        return None
    from cfstools.signing.new_image import ImageSignature

    return ImageSignature(image, signing)


def _recognise(
    source: bytes, options: BuildOptions, accept: Callable[[SourceKind], object] | None
) -> AbstractContextManager[Source]:
    """What is at *source*, if it is to be accepted."""
    limits, layered = options.oci.options.decompression_limits, bool(options.oci.layers)
    return recognise(source, from_file=options.from_file, layered=layered, limits=limits, accept=accept)


def _refuse_remote(stores: Sequence[StorePlace]) -> None:
    """What a store elsewhere has must not be left out here: the image could not be mounted. Raises UsageError."""
    if stores:
        from cfstools.store.open import refuse_remote

        refuse_remote(stores, Phrase("build into a directory, then send its objects there with {}", Remedy.STORE_PUSH))


def _targets(image: bytes | BinaryIO | None, stores: Sequence[StorePlace], objects: ObjectOptions) -> tuple[bytes, ...]:
    """The paths that a build writes to."""
    places = [local_path(place) for place in stores if isinstance(place, bytes)]
    paths = (image, *places, objects.cache if stores else None)
    return tuple(path for path in paths if isinstance(path, bytes))


def _plan(tree: SourceTree, format: Format, options: BuildOptions, choices: PlanOptions) -> ImagePlan:
    if options.clamp_mtime is not None:
        clamp_mtime(tree.root, options.clamp_mtime)
    return format.plan(tree.root, choices)


class _Built(NamedTuple):
    """The results of the steps of a build."""

    tree: SourceTree
    plan: ImagePlan
    digest: bytes
    signature: ImageSignature | None
    stored: StoreReport | None
    cache_hits: int


def _report(built: _Built, image: bytes | BinaryIO | None, stores: Sequence[StorePlace]) -> BuildReport:
    tree, plan, digest, signature, stored, cache_hits = built
    missing = _count_missing(tree, stores)
    return BuildReport(
        image=shown_path(image) if isinstance(image, bytes) else None,
        format=plan.word,
        digest=digest.hex(),
        image_size=plan.size,
        inodes=plan.inode_count,
        store=shown_path(local_path(stores[0])) if stores and isinstance(stores[0], bytes) else None,
        objects_new=stored.objects_new if stored else 0,
        objects_shared=stored.objects_shared if stored else 0,
        bytes_new=stored.bytes_new if stored else 0,
        bytes_shared=stored.bytes_shared if stored else 0,
        objects_missing=missing,
        source=tree.image,
        signature=signature.name if signature else None,
        key_ids=signature.key_ids if signature else (),
        cache_hits=cache_hits,
        warnings=tuple(_warnings(tree, missing)),
    )


class _Contents:
    """Reads the files of a directory while it is still being walked."""

    def __init__(
        self,
        writer: StoreWriter | None,
        params: Params,
        objects: ObjectOptions,
        xattrs: XattrPolicy,
        *,
        threads: int,
        progress: Progress,
    ) -> None:
        self._writer = writer
        self._all_xattrs = xattrs is XattrPolicy.ALL
        self._params = params
        self._cache_path = objects.cache
        self._remember = objects.sync != "none"
        self._threads = threads
        self._progress = progress
        self._cache: DigestCache | None = None
        self._run: Ingest | None = None

    def start(self, blobs: Blobs) -> Ingest:
        """Return the reader that is handed the files."""
        if self._writer is not None and self._cache_path is not None and isinstance(blobs, RootedBlobs):
            from cfstools.store.cache.digest_cache import DigestCache

            self._cache = DigestCache.open(
                self._cache_path, blobs.root_fd, self._params.algorithm, all_xattrs=self._all_xattrs
            )
            if self._cache is not None and not self._remember:
                self._cache.forgo()
        self._run = Ingest(
            blobs,
            self._writer,
            params=self._params,
            threads=self._threads,
            cache=self._cache,
            progress=self._progress,
        )
        return self._run

    def finish(self) -> None:
        """Wait until all files are read. Raises what is wrong with the first that could not be."""
        if self._run is not None:
            self._run.finish()

    @property
    def cache_hits(self) -> int:
        """How many files the digest cache knew."""
        return self._cache.hits if self._cache is not None else 0

    def close(self) -> None:
        """Save the digest cache, also when the build failed."""
        if self._cache is not None:
            self._cache.close()


def _warnings(tree: SourceTree, missing: int) -> Iterator[str]:
    if missing:
        yield f"{missing} objects of the image are in none of the stores"
    yield from tree.warnings
    if tree.image is not None:
        yield from map(str, tree.image.warnings)
        if tree.image.warnings_dropped:
            yield f"{tree.image.warnings_dropped} more warnings like these"


def _count_missing(tree: SourceTree, stores: Sequence[StorePlace]) -> int:
    """Count the objects that a dump or an image names and no store has; 0 without stores."""
    if not stores or tree.kind not in {SourceKind.DUMP, SourceKind.IMAGE}:
        return 0
    from cfstools.store.chain import missing_objects
    from cfstools.tree.objects import packed_objects, payload_sizes

    packed = packed_objects(tree.root)
    if packed is not None:
        return len(missing_objects(stores, {}, [packed]))
    return len(missing_objects(stores, payload_sizes(tree.root, {})))


def _wanted(tree: SourceTree) -> Collection[bytes] | None:
    """The objects to keep, ``None`` for all: a later layer or a filter may have taken some out of the tree."""
    if tree.kind is not SourceKind.CONTAINER:
        return None
    from cfstools.tree.objects import object_digests

    return object_digests(tree.root)


@contextmanager
def _writer(
    stores: Sequence[StorePlace], params: Params, objects: ObjectOptions, *, deferred: bool
) -> Iterator[StoreWriter | None]:
    if not stores:
        yield None
        return
    from cfstools.store.open import open_to_write
    from cfstools.store.write.writer import StoreWriter

    with (
        open_to_write(stores) as (first, others),
        StoreWriter(
            first,
            params=params,
            others=others,
            deferred=deferred,
            object_mode=objects.mode,
            fs_verity=objects.fs_verity,
            sync=objects.sync,
            waiting=objects.waiting,
        ) as writer,
    ):
        yield writer
