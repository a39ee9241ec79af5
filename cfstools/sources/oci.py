"""Images as sources: streamed layer by layer into a tree and an object store, every digest checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfstools.errors import CheckFailed, FormatError, LimitExceeded
from cfstools.oci.descriptor import Digest
from cfstools.oci.images import ImageContainer, ImageSource, LayerSource
from cfstools.oci.layer import LayerOptions, LayerReport, read_layer
from cfstools.oci.layer_record import LayerRecord, Recorder
from cfstools.oci.mapping import OciMapping, XattrKeeper, apply_canonical
from cfstools.oci.select import ANY, Selector
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.report import Report
from cfstools.sources.oci_contents import LayerContents
from cfstools.sources.oci_request import DEFAULT_OPTIONS, OciOptions
from cfstools.store import StoreWriter
from cfstools.streams.buffered import READ_SIZE, Read
from cfstools.streams.decompress import Compression
from cfstools.streams.limits import DecompressionLimits
from cfstools.streams.zstd_frames import TRUST_HINT
from cfstools.threadpool import Abandoned, ThreadPool
from cfstools.tree.layers import MAX_WARNINGS, Layer, LayeredTree, SharedTree
from cfstools.tree.model import Directory
from cfstools.tree.resolve import shown
from cfstools.values import Value
from cfstools.verity import DEFAULT, Params

if TYPE_CHECKING:
    from cfstools.sources.oci_memory import LayerMemory

_DISK_SYMLINK_MODE = 0o777
_LARGE_PIECE = 1 << 20


class OciWarning(Report):
    """Something accepted that other tools see differently: layer (or empty), place in it, and what."""

    layer: str
    where: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.layer, self.where, self.text) if part)


class OciReport(Report):
    """An image as read: where it came from, what it is, its layers, and where other tools would differ."""

    kind: str
    names: tuple[str, ...]
    platform: str | None
    manifest: str | None
    config: str | None
    created: str | None
    mapping: str
    xattrs: str
    layers: tuple[LayerReport, ...]
    warnings: tuple[OciWarning, ...]
    warnings_dropped: int


class OciTree(Value):
    """The tree of an image, and the report of how it came about."""

    root: Directory
    report: OciReport


def read_oci(
    container: ImageContainer,
    *,
    selector: Selector = ANY,
    options: OciOptions = DEFAULT_OPTIONS,
    writer: StoreWriter | None = None,
    params: Params = DEFAULT,
    memory: LayerMemory | None = None,
    progress: Progress = SILENT,
) -> OciTree:
    """Read the image meant in one pass, several layers at once where the container can give them.

    Progress counts bytes of layers as stored.

    Contents over 64 bytes go to *writer* while they arrive; without one only their digests, by *params*, are
    computed. A writer should be ``deferred`` and be told to commit the tree's ``object_digests`` afterwards, so
    that nothing is published for an image that turns out wrong, nor for files a later layer removes. With a *memory*
    of layers in earlier runs those are not fetched, and others are published and remembered as soon as they were read.

    Raises :class:`CheckFailed` for a manifest, config, layer or DiffID that does not have its digest,
    :class:`FormatError` for anything malformed, :class:`InputError`, :class:`StoreError`.
    """
    image = container.image(selector)
    params = writer.params if writer is not None else params
    with running_stage(progress, "layers", _total(image), "B") as stage:
        reading = _Reading(options, shared=container.at_once > 1)
        for where, text in image.warnings:
            reading.warn("", where, text)
        if container.at_once > 1 or memory is not None:
            layers = _Together(container, reading, partial(LayerContents, writer, params), memory, stage).read(image)
        else:
            with LayerContents(writer, params) as contents:
                layers = _read_in_turn(container, image, reading, contents, stage)
                contents.finish()
    root = reading.finish()
    config = image.config
    return OciTree(
        root=root,
        report=OciReport(
            kind=container.kind,
            names=image.names,
            platform=str(image.platform) if image.platform else None,
            manifest=str(image.manifest.digest) if image.manifest else None,
            config=str(image.config_digest) if image.config_digest else None,
            created=config.created if config else None,
            mapping=options.mapping.value,
            xattrs=options.kept_xattrs.value,
            layers=tuple(layers),
            warnings=tuple(reading.warnings),
            warnings_dropped=reading.dropped,
        ),
    )


def _total(image: ImageSource) -> int | None:
    total = 0
    for layer in image.layers:
        if layer.size is None:
            return None
        total += layer.size
    return total


def _read_in_turn(
    container: ImageContainer, image: ImageSource, reading: _Reading, contents: LayerContents, stage: Stage
) -> list[LayerReport]:
    layers = []
    for number, source in enumerate(image.layers, 1):
        with container.open_layer(source) as read:
            layers.append(reading.apply(reading.stage(number, source, read, contents, stage)))
    return layers


class _Together:
    """Reads several layers concurrently, each into its own :class:`Layer`, and applies them in order.

    An error in one layer stops the others.
    """

    def __init__(
        self,
        container: ImageContainer,
        reading: _Reading,
        make_contents: Callable[[], LayerContents],
        memory: LayerMemory | None,
        stage: Stage,
    ) -> None:
        self._container = container
        self._reading = reading
        self._make_contents = make_contents
        self._memory = memory
        self._stage = stage
        self._failure = _Failure()

    def read(self, image: ImageSource) -> list[LayerReport]:
        """Read the layers of an image, and apply them."""
        failure = self._failure
        with ThreadPool(min(self._container.at_once, len(image.layers)), "layers") as pool:
            try:
                calls = [pool.submit(self._one, number, source) for number, source in enumerate(image.layers, 1)]
                return [self._reading.apply(call.result()) for call in calls]
            except BaseException as error:
                failure.note(error)
                self._container.close()  # unblocks threads that wait for data
                if isinstance(error, Abandoned):
                    failure.tell()
                raise

    def _one(self, number: int, source: LayerSource) -> _Staged:
        try:
            return self._remembered(number, source) or self._fetched(number, source)
        except BaseException as error:
            self._failure.note(error)
            raise

    def _remembered(self, number: int, source: LayerSource) -> _Staged | None:
        """The layer from its record, if there is one."""
        record = None if self._memory is None else self._memory.find(source, self._reading.options)
        if record is None:
            return None
        self._stage.advance(source.size or 0)
        return self._reading.replay(number, source, record)

    def _fetched(self, number: int, source: LayerSource) -> _Staged:
        """The layer as the container gives it, from the first place where its digests hold."""
        for _ in range(self._container.places - 1):
            try:
                return self._fetch(number, source)
            except CheckFailed:
                continue
        return self._fetch(number, source)

    def _fetch(self, number: int, source: LayerSource) -> _Staged:
        reading, memory = self._reading, self._memory
        recorder = None if memory is None else Recorder(reading.layer(number))
        with self._container.open_layer(source) as read, self._make_contents() as contents:
            watched = self._failure.watch(read)
            staged = reading.stage(number, source, watched, contents, self._stage, recorder=recorder)
            contents.finish()
        if memory is not None and recorder is not None:
            record = LayerRecord(staged.report, staged.notes, staged.notes_dropped, recorder.entries)
            memory.keep(source, reading.options, record)
        return staged


class _Failure:
    """The first error of several threads, which stops reading in all of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._first: BaseException | None = None

    def note(self, error: BaseException) -> None:
        """Keep *error* if it is the first."""
        with self._lock:
            if not isinstance(error, Abandoned):
                self._first = self._first or error

    def watch(self, read: Read) -> Read:
        """Wrap *read* to raise :class:`Abandoned` after an error elsewhere."""

        def watched(count: int) -> bytes:
            if self._first is not None:
                raise Abandoned
            return read(count)

        return watched

    def tell(self) -> NoReturn:
        """Raise the first error."""
        assert self._first is not None  # reading is only abandoned after an error
        raise self._first


class _Staged(NamedTuple):
    """A layer that is staged and not yet applied; *notes* are warnings about it, places and texts."""

    label: str
    source: LayerSource
    layer: Layer
    report: LayerReport
    notes: Sequence[tuple[str, str]]
    notes_dropped: int


class _Notes:
    """Warnings about a layer; the first thousand are kept."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []
        self.dropped = 0

    def add(self, where: str, text: str) -> None:
        """Add a warning."""
        if len(self.kept) < MAX_WARNINGS:
            self.kept.append((where, text))
        else:
            self.dropped += 1


class _Reading:
    """One image on its way to a tree. With *shared* several threads may stage layers; one applies them."""

    def __init__(self, options: OciOptions, *, shared: bool) -> None:
        self.options = options
        self._plain = options.mapping is OciMapping.PLAIN
        self._tree = SharedTree(options.rules) if shared else LayeredTree(options.rules)
        self._growth = _Growth(options.decompression_limits)
        self._layer_options = LayerOptions(
            xattrs=XattrKeeper(options.kept_xattrs),
            symlink_mode=_DISK_SYMLINK_MODE if self._plain else None,
            safe_modes=self._plain,
            tar_limits=options.tar_limits,
            skip_unknown=options.skip_unknown,
            # Of layers that are read together each has pieces of its own.
            piece=READ_SIZE if shared else _LARGE_PIECE,
        )
        self._order: dict[str, int] = {}
        self.warnings: list[OciWarning] = []
        self.dropped = 0

    def layer(self, number: int) -> Layer:
        """Start staging layer *number*."""
        return self._tree.layer(_label(number))

    def stage(
        self,
        number: int,
        source: LayerSource,
        read: Read,
        contents: LayerContents,
        stage: Stage,
        *,
        recorder: Recorder | None = None,
    ) -> _Staged:
        """Read one layer; with a *recorder*, into its layer."""
        label, notes = _label(number), _Notes()
        layer = self.layer(number) if recorder is None else recorder.layer
        with _in_layer(label):
            report = read_layer(
                read,
                source,
                recorder or layer,
                options=self._layer_options,
                limits=self._growth.limits(source),
                content=contents,
                progress=stage,
                on_warning=notes.add,
            )
        return _Staged(label, source, layer, report, notes.kept, notes.dropped)

    def replay(self, number: int, source: LayerSource, record: LayerRecord) -> _Staged:
        """Stage a layer from its record."""
        label, layer = _label(number), self.layer(number)
        with _in_layer(label):
            record.replay(layer)
        return _Staged(label, source, layer, record.report, record.notes, record.notes_dropped)

    def apply(self, staged: _Staged) -> LayerReport:
        """Apply the next layer."""
        label = staged.label
        self._order[label] = len(self._order)
        for where, text in staged.notes:
            self.warn(label, where, text)
        self.dropped += staged.notes_dropped
        with _in_layer(label):
            self._growth.take(staged.source, staged.report)
            staged.layer.apply()
        return staged.report

    def finish(self) -> Directory:
        """The finished tree, mapped."""
        tree = self._tree
        if not self._plain:
            for path, text in apply_canonical(tree.root):
                tree.warn("mapping", path, text)
        # Threads interleave warnings: sort by layer, those about no layer last.
        for warning in sorted(tree.warnings, key=lambda one: self._order.get(one.layer, len(self._order))):
            self.warn(warning.layer, shown(warning.path), warning.text)
        self.dropped += tree.warnings_dropped
        return tree.finish()

    def warn(self, layer: str, where: str, text: str) -> None:
        """Add a warning to the report."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(OciWarning(layer=layer, where=where, text=text))
        else:
            self.dropped += 1


class _Growth:
    """What the compressed layers of one image may grow to together.

    Each layer alone may grow by the ratio; what may come out beyond that is one budget for all, and a layer that
    stands in the image once more brings no bytes that would let it grow. Of layers that are read at the same time each
    has what was left when it began, and their sum is judged when they are applied.
    """

    def __init__(self, limits: DecompressionLimits) -> None:
        self._limits = limits
        self._seen: set[Digest | str] = set()
        self._stored = 0
        self._unpacked = 0

    def limits(self, source: LayerSource) -> DecompressionLimits:
        """The limits of the next layer."""
        limits = self._limits
        left = max(limits.ratio_from, limits.ratio * self._stored) - self._unpacked
        ratio = 0 if _identity(source) in self._seen else limits.ratio
        return limits._replace(ratio_from=max(0, left), ratio=ratio)

    def take(self, source: LayerSource, report: LayerReport) -> None:
        """Count a layer that was read. Raises :class:`LimitExceeded`: other layers may have been read beside it."""
        limits = self.limits(source)
        most = max(limits.ratio_from, limits.ratio * report.size)
        if report.compression != Compression.NONE.value and report.uncompressed_size > most:
            raise LimitExceeded(f"the layers grow more than {self._limits.ratio} times in all", hint=TRUST_HINT)
        self._unpacked += report.uncompressed_size
        if _identity(source) not in self._seen:
            self._seen.add(_identity(source))
            self._stored += report.size


def _label(number: int) -> str:
    return f"layer {number}"


def _identity(source: LayerSource) -> Digest | str:
    return source.diff_id or source.path


@contextmanager
def _in_layer(label: str) -> Iterator[None]:
    """Say in errors which layer they are about, unless they do."""
    try:
        yield
    except (FormatError, CheckFailed) as error:
        if error.where is None or not error.where.startswith(f"{label}: "):
            error.where = f"{label}: {error.where}" if error.where else label
        raise
