"""What an image is, without building it: its manifest, config and layers."""

from __future__ import annotations

from collections.abc import Mapping

from cfstools.oci.images import ImageContainer, LayerSource
from cfstools.oci.select import ANY, Selector
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.report import Report
from cfstools.streams.buffered import READ_SIZE
from cfstools.streams.decompress import open_compressed
from cfstools.streams.limits import DecompressionLimits
from cfstools.streams.readers import HashingReader


class LayerDescription(Report):
    """One layer: where it is, and digest and size as stored; the DiffID is that of its uncompressed bytes."""

    path: str
    media_type: str | None
    digest: str | None
    size: int | None
    diff_id: str | None


class ImageDescription(Report):
    """One image of a container, and what images there are."""

    kind: str
    images: tuple[str, ...]
    names: tuple[str, ...]
    manifest: str | None
    manifest_size: int | None
    config: str | None
    platform: str | None
    created: str | None
    author: str | None
    labels: Mapping[str, str]
    layers: tuple[LayerDescription, ...]
    warnings: tuple[str, ...] = ()


def describe(
    container: ImageContainer,
    *,
    selector: Selector = ANY,
    limits: DecompressionLimits | None = None,
    progress: Progress = SILENT,
) -> ImageDescription:
    """Describe the image meant.

    Manifest and config are read and checked. Layers are not read, except bare layer tars, of which nothing else
    tells digest and size. Raises as :func:`cfstools.sources.oci.read_oci` does for documents.
    """
    image = container.image(selector)
    with running_stage(progress, "layers", None, "B") as stage:
        layers = tuple(
            _promised(layer) if layer.diff_id is not None else _measured(container, layer, limits, stage)
            for layer in image.layers
        )
    config, manifest = image.config, image.manifest
    return ImageDescription(
        kind=container.kind,
        images=tuple(container.names()),
        names=image.names,
        manifest=str(manifest.digest) if manifest else None,
        manifest_size=manifest.size if manifest else None,
        config=str(image.config_digest) if image.config_digest else None,
        platform=str(image.platform) if image.platform else None,
        created=config.created if config else None,
        author=config.author if config else None,
        labels=config.labels if config else {},
        layers=layers,
        warnings=tuple(f"{where}: {text}" for where, text in image.warnings),
    )


def _promised(layer: LayerSource) -> LayerDescription:
    return LayerDescription(
        path=layer.path,
        media_type=layer.media_type,
        digest=str(layer.digest) if layer.digest else None,
        size=layer.size,
        diff_id=str(layer.diff_id),
    )


def _measured(
    container: ImageContainer, layer: LayerSource, limits: DecompressionLimits | None, stage: Stage
) -> LayerDescription:
    with container.open_layer(layer) as read:
        stored = HashingReader(read)
        plain = HashingReader(open_compressed(stored.read, limits=limits).read)
        told = 0
        while plain.read(READ_SIZE):
            stage.advance(stored.size - told)
            told = stored.size
    return LayerDescription(
        path=layer.path,
        media_type=None,
        digest=f"sha256:{stored.hexdigest()}",
        size=stored.size,
        diff_id=f"sha256:{plain.hexdigest()}",
    )
