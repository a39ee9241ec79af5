"""Images as sources: streamed layer by layer into a tree and an object store, every digest checked on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cfstools.errors import CheckFailed, FormatError
from cfstools.oci.choices import Mapping
from cfstools.oci.descriptor import Digest
from cfstools.oci.images import ImageContainer, ImageSource, LayerSource
from cfstools.oci.layer import LayerOptions, LayerReport, read_layer
from cfstools.oci.mapping import XattrKeeper, apply_canonical
from cfstools.oci.select import ANY, Choice
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.report import Report
from cfstools.sources.oci_contents import LayerContents
from cfstools.sources.oci_request import DEFAULT_OPTIONS, OciOptions
from cfstools.store import StoreWriter
from cfstools.streams.buffered import Read
from cfstools.streams.limits import DecompressionLimits
from cfstools.tree.layers import MAX_WARNINGS, LayeredTree
from cfstools.tree.model import Directory
from cfstools.tree.resolve import shown
from cfstools.values import Value
from cfstools.verity import DEFAULT, Params

_DISK_SYMLINK_MODE = 0o777


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
    choice: Choice = ANY,
    options: OciOptions = DEFAULT_OPTIONS,
    writer: StoreWriter | None = None,
    params: Params = DEFAULT,
    progress: Progress = SILENT,
) -> OciTree:
    """Read the image meant, base layer first, in one pass; progress counts bytes of layers as stored.

    Contents over 64 bytes go to *writer* while they arrive; without one only their digests, by *params*, are
    computed. A writer should be ``deferred`` and be told to commit the tree's ``object_digests`` afterwards, so
    that nothing is published for an image that turns out wrong, nor for files a later layer removes.

    Raises :class:`CheckFailed` for a manifest, config, layer or DiffID that does not have its digest,
    :class:`FormatError` for anything malformed, :class:`InputError`, :class:`StoreError`.
    """
    image = container.image(choice)
    layers = []
    with (
        running_stage(progress, "layers", _total(image), "B") as stage,
        LayerContents(writer, writer.params if writer is not None else params) as contents,
    ):
        reading = _Reading(options, contents)
        for where, text in image.warnings:
            reading.warn("", where, text)
        for number, source in enumerate(image.layers, 1):
            with container.open_layer(source) as read:
                layers.append(reading.layer(f"layer {number}", source, read, stage))
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


class _Reading:
    """One image on its way to a tree."""

    def __init__(self, options: OciOptions, contents: LayerContents) -> None:
        self._plain = options.mapping is Mapping.PLAIN
        self._contents = contents
        self._tree = LayeredTree(options.rules)
        self._growth = _Growth(options.decompression_limits)
        self._layer_options = LayerOptions(
            xattrs=XattrKeeper(options.kept_xattrs),
            symlink_mode=_DISK_SYMLINK_MODE if self._plain else None,
            safe_modes=self._plain,
            tar_limits=options.tar_limits,
            skip_unknown=options.skip_unknown,
        )
        self.warnings: list[OciWarning] = []
        self.dropped = 0

    def layer(self, label: str, source: LayerSource, read: Read, stage: Stage) -> LayerReport:
        """Read one layer and apply it."""
        staged = self._tree.layer(label)
        with _in_layer(label):
            report = read_layer(
                read,
                source,
                staged,
                options=self._layer_options,
                limits=self._growth.limits(source),
                content=self._contents,
                progress=stage,
                on_warning=lambda where, text: self.warn(label, where, text),
            )
            self._growth.take(source, report)
            staged.apply()
        return report

    def finish(self) -> Directory:
        """The finished tree, mapped."""
        tree = self._tree
        if not self._plain:
            for path, text in apply_canonical(tree.root):
                tree.warn("mapping", path, text)
        for warning in tree.warnings:
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
    stands in the image once more brings no bytes that would let it grow.
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
        """Count a layer that was read."""
        self._unpacked += report.uncompressed_size
        if _identity(source) not in self._seen:
            self._seen.add(_identity(source))
            self._stored += report.size


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
