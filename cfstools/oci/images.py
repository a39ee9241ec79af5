"""Containers of images: OCI layouts, docker archives and bare layer tars, over files in any place.

Every container answers three questions: which images does it have, which config and layers has this image, and what
are the bytes of this layer (docs/oci.md, "What is read").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol

from cfstools.errors import CfsError, CheckFailed, LimitExceeded, OciError
from cfstools.oci.archive import ArchiveFiles, member_path
from cfstools.oci.content import Content, LayoutContent, blob_path, check_there, read_checked
from cfstools.oci.descriptor import Descriptor, Digest, Kind, Platform
from cfstools.oci.files import BlobFiles, MemoryFiles, missing, read_all
from cfstools.oci.jsontext import Fields, parse_json, within
from cfstools.oci.manifest import ImageConfig, Index, NoImage, parse_config, parse_index, parse_manifest
from cfstools.oci.select import ANY, Candidate, Catalogue, Selector, State, choose, is_named, platform_rank
from cfstools.streams.buffered import Read
from cfstools.streams.limits import MAX_JSON, MAX_LAYERS, MAX_LOOKED_AT, MAX_NAMES_COMPARED
from cfstools.text import quoted, shown_path
from cfstools.values import Value

_BLOB_PATH = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_CONFIG_PATH = re.compile(r"(?:.*/)?(?:sha256:)?([0-9a-f]{64})(?:\.json)?", re.DOTALL)
_ONE_FORM_HINT = (
    "oci-archive: before the path takes what the index says, docker-archive: what manifest.json says; @DIGEST behind "
    "it takes one image"
)

_Configs = list[tuple[tuple[str, ...], Digest]]


class LayerSource(Value):
    """One layer before it is read: its path, and the digests, size and type promised for it (``None``: not stated).

    *blob* is its descriptor, if it has one.
    """

    path: str
    digest: Digest | None = None
    size: int | None = None
    media_type: str | None = None
    diff_id: Digest | None = None
    blob: Descriptor | None = None


class ImageSource(Value):
    """One image before its layers are read; bare layers have neither manifest nor config.

    *warnings* are pairs of place and text about what was accepted or skipped.
    """

    layers: tuple[LayerSource, ...]
    names: tuple[str, ...] = ()
    manifest: Descriptor | None = None
    config_digest: Digest | None = None
    config: ImageConfig | None = None
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def platform(self) -> Platform | None:
        """The platform that the config states, or ``None``."""
        return self.config.platform if self.config is not None and self.config.platform.os else None


class ImageContainer(Protocol):
    """Something that holds images. ``kind`` names its form."""

    kind: str
    places: int
    """How many places have the same layers; after :class:`CheckFailed` in a layer, opening it uses the next place."""
    at_once: int
    """How many layers may be open at the same time, each read by a thread of its own."""

    def names(self) -> list[str]:
        """The images, as text for people."""

    def image(self, selector: Selector = ANY) -> ImageSource:
        """The image that *selector* means, with manifest and config read and checked. Raises OciError, CheckFailed."""

    def open_layer(self, layer: LayerSource) -> AbstractContextManager[Read]:
        """A layer's bytes as stored."""

    def close(self) -> None:
        """Close what is open."""


class OciImages:
    """The images of an OCI *content*: all of them, or those that *name* resolves to. Closes *content* in the end."""

    def __init__(self, content: Content, kind: str = "oci", name: str | None = None) -> None:
        self.kind = kind
        self.at_once = content.at_once
        self.places = content.places
        self._content = content
        self._looks: dict[tuple[Digest, int], tuple[State, Digest | None]] = {}
        self._looks_left = MAX_LOOKED_AT
        self._root, root = content.resolve(name)
        with within(self._root):
            if root.kind is Kind.INDEX:
                self._index = parse_index(read_checked(content, root))
            else:
                self._index = Index(manifests=(root,))

    @property
    def content(self) -> Content:
        """The content that the images are in."""
        return self._content

    def names(self) -> list[str]:
        """The images, each with its tag or digest and its platform."""
        return [str(one) for one in self._catalogue.images]

    def image(self, selector: Selector = ANY) -> ImageSource:
        """The image that *selector* means, read and checked."""
        found = choose(self._catalogue, selector, self._look)
        chosen = found.candidate
        with within(f"manifest {chosen.manifest.digest}"):
            manifest = parse_manifest(read_checked(self._content, chosen.manifest))
        with within(f"config {manifest.config.digest}"):
            config = parse_config(read_checked(self._content, manifest.config), len(manifest.layers))
            check_platform(config, selector)
        return ImageSource(
            names=chosen.names,
            manifest=chosen.manifest,
            config_digest=manifest.config.digest,
            config=config,
            layers=tuple(
                self._layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
            ),
            warnings=(
                *((self._root, note) for note in found.notes),
                *((f"manifest: {where}", text) for where, text in manifest.warnings),
                *((f"config: {where}", text) for where, text in config.warnings),
            ),
        )

    def configs(self) -> _Configs:
        """Names and config digest of each complete image. Raises as :meth:`image` does."""
        found = []
        for one in self._catalogue.images:
            state, config = self._looked_at(one)
            if state is State.IMAGE:
                if config is None:  # damaged: read it again for the error
                    with within(f"manifest {one.manifest.digest}"):
                        config = parse_manifest(read_checked(self._content, one.manifest)).config.digest
                found.append((one.names, config))
        return found

    def open_layer(self, layer: LayerSource) -> AbstractContextManager[Read]:
        """A layer's bytes as stored."""
        assert layer.blob is not None
        if layer.blob.data is not None:
            return MemoryFiles({layer.path: layer.blob.data}).open(layer.path)
        return self._content.open(layer.blob)

    def close(self) -> None:
        """Close the content."""
        self._content.close()

    def _layer(self, layer: Descriptor, diff_id: Digest) -> LayerSource:
        layer.digest.hasher()
        if layer.data is None:
            check_there(self._content, layer)
        return LayerSource(
            path=blob_path(layer.digest),
            digest=layer.digest,
            size=layer.size,
            media_type=layer.media_type,
            diff_id=diff_id,
            blob=layer,
        )

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self._index, self._load)

    def _look(self, candidate: Candidate) -> State:
        """What a candidate is. A damaged one counts as an image, so that selecting it reports the damage."""
        return self._looked_at(candidate)[0]

    def _looked_at(self, candidate: Candidate) -> tuple[State, Digest | None]:
        """The state, and the config digest if the manifest can be read. A manifest with many entries is read once."""
        manifest = candidate.manifest
        key = manifest.digest, manifest.size
        found = self._looks.get(key)
        if found is None:
            found = self._looks[key] = self._state(manifest)
        return found

    def _state(self, descriptor: Descriptor) -> tuple[State, Digest | None]:
        try:
            if not self._has(descriptor):
                return State.ABSENT, None
        except CfsError:
            return State.IMAGE, None
        if descriptor.size <= MAX_JSON:  # longer ones are refused without reading
            self._looks_left = _less(self._looks_left, descriptor.size, "manifests")
        try:
            manifest = parse_manifest(read_checked(self._content, descriptor))
        except NoImage:
            return State.ARTIFACT, None
        except CfsError:
            return State.IMAGE, None
        try:
            whole = all(map(self._has, (manifest.config, *manifest.layers)))
        except CfsError:
            whole = True
        return State.IMAGE if whole else State.ABSENT, manifest.config.digest

    def _has(self, descriptor: Descriptor) -> bool:
        return descriptor.data is not None or self._content.size(descriptor) is not None

    def _load(self, descriptor: Descriptor) -> Index:
        with within(f"index {descriptor.digest}"):
            return parse_index(read_checked(self._content, descriptor))


def layout_images(files: BlobFiles, kind: str = "oci") -> OciImages:
    """The images of the OCI layout in *files*."""
    return OciImages(LayoutContent(files), kind)


class _DockerImage(Value):
    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


class DockerImages:
    """A docker archive: ``manifest.json`` and the files it names. Closes *files* in the end."""

    places = 1
    at_once = 1

    def __init__(self, files: BlobFiles, kind: str = "docker-archive") -> None:
        self.kind = kind
        self._files = files
        value = _json(files, "manifest.json")
        if not isinstance(value, list):
            raise OciError("not an array of images", where="manifest.json")
        with within("manifest.json"):
            self._images = [self._entry(Fields(item, f"[{number}]")) for number, item in enumerate(value)]

    def names(self) -> list[str]:
        """The images, each by its first name, or its number."""
        return [image.tags[0] if image.tags else f"@{number}" for number, image in enumerate(self._images)]

    def image(self, selector: Selector = ANY) -> ImageSource:
        """The image that *selector* means, read and checked; the name ``@N`` means image number N, counted from 0."""
        chosen = self._chosen(selector)
        data, digest = self._config(chosen)
        with within(shown_path(chosen.config)):
            config = parse_config(data, len(chosen.layers))
            check_platform(config, selector)
        layers = zip(chosen.layers, config.diff_ids, strict=True)
        return ImageSource(
            names=chosen.tags,
            config_digest=digest,
            config=config,
            layers=tuple(self._layer(path, diff_id) for path, diff_id in layers),
            warnings=tuple((f"config: {where}", text) for where, text in config.warnings),
        )

    def configs(self) -> _Configs:
        """Names and config of each image. Raises :class:`OciError`, :class:`CheckFailed`, :class:`LimitExceeded`."""
        digests: dict[str, Digest] = {}
        left = MAX_LOOKED_AT
        for image in self._images:
            if image.config not in digests:
                left = _less(left, self._files.size(image.config) or 0, "configs")
                digests[image.config] = self._config(image)[1]
        return [(image.tags, digests[image.config]) for image in self._images]

    def open_layer(self, layer: LayerSource) -> AbstractContextManager[Read]:
        """A layer's bytes as stored."""
        return self._files.open(layer.path)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _config(self, image: _DockerImage) -> tuple[bytes, Digest]:
        """The bytes of an image's config and their digest. Raises CheckFailed if its name has another digest."""
        data = read_all(self._files, image.config, MAX_JSON)
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        named = _CONFIG_PATH.fullmatch(image.config)
        if named is not None and named[1] != digest.encoded:
            what = f"the contents have digest {digest}, not the one in the name"
            raise CheckFailed(what, where=shown_path(image.config))
        return data, digest

    def _entry(self, fields: Fields) -> _DockerImage:
        layers = fields.texts("Layers")
        if len(layers) > MAX_LAYERS:
            raise LimitExceeded(f"{len(layers)} layers are more than {MAX_LAYERS}", where=fields.place("Layers"))
        return _DockerImage(
            config=_inside(fields.required_text("Config"), fields.place("Config")),
            tags=tuple(fields.texts("RepoTags")),
            layers=tuple(_inside(path, f"{fields.place('Layers')}[{at}]") for at, path in enumerate(layers)),
        )

    def _layer(self, path: str, diff_id: Digest) -> LayerSource:
        size = self._files.size(path)
        if size is None:
            raise missing(path)
        named = _BLOB_PATH.fullmatch(path)
        return LayerSource(path=path, digest=Digest("sha256", named[1]) if named else None, size=size, diff_id=diff_id)

    def _chosen(self, selector: Selector) -> _DockerImage:
        if selector.digest is not None:
            raise OciError(f"a docker archive has no manifest digests; there is {', '.join(self.names()[:12])}")
        found = self._images
        if selector.name is not None:
            number = re.fullmatch(r"@([0-9]{1,6})", selector.name)
            if number:
                found = found[int(number[1]) : int(number[1]) + 1]
            else:
                found = [one for one in found if any(is_named(tag, selector.name) for tag in one.tags)]
        if len({(one.config, one.layers) for one in found}) != 1:
            missed = "no image" if selector.name is None else f"no image {quoted(selector.name)}"
            what = f"{len(found)} images match" if found else missed
            there = f"; there is {', '.join(self.names()[:12])}" if self._images else ""
            raise OciError(what + there, hint="name one with :NAME, or give its number with :@N")
        return found[0]


class LayerTars:
    """Layer tars in order, without manifest, config and digests; each is opened by its function when it is read."""

    kind = "layers"
    places = 1
    at_once = 1

    def __init__(
        self,
        layers: Sequence[tuple[str, Callable[[], AbstractContextManager[Read]]]],
        *,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._layers = tuple(layers)
        self._close = close

    def names(self) -> list[str]:
        """No names: the layers are the one image."""
        return []

    def image(self, selector: Selector = ANY) -> ImageSource:
        """The layers as an image."""
        if selector != ANY:
            raise OciError("layer tars have no names, digests or platforms to choose by")
        return ImageSource(layers=tuple(LayerSource(path=path) for path, _ in self._layers))

    def open_layer(self, layer: LayerSource) -> AbstractContextManager[Read]:
        """A layer's bytes as stored."""
        return next(opener for path, opener in self._layers if path == layer.path)()

    def close(self) -> None:
        """Close the layers that are open."""
        if self._close is not None:
            self._close()


def archive_images(files: ArchiveFiles) -> ImageContainer:
    """The images of an OCI archive, a docker archive or one that is both, with the same images in both indexes.

    Raises :class:`OciError` if the indexes disagree, and what :class:`OciImages` and :class:`DockerImages` raise.
    """
    if "manifest.json" not in files:
        return layout_images(files, "oci-archive")
    if "index.json" not in files or "oci-layout" not in files:
        return DockerImages(files)
    by_index, by_manifest = layout_images(files, "oci-archive"), DockerImages(files)
    there = by_index.configs()
    if not there:
        return by_manifest  # the index is empty, or its images are stored elsewhere
    _check_same(there, by_manifest.configs())
    return by_index


def _check_same(there: _Configs, named: _Configs) -> None:
    """Raise :class:`OciError` if an image in *named* (manifest.json) is not in *there* (index.json).

    Images are compared under the names that both have; an image without such a name may be any in *there*.
    """
    everything = {config for _, config in there}
    by_name: dict[str, set[Digest]] = {}
    for names, config in there:
        for name in names:
            by_name.setdefault(name, set()).add(config)
    if len(by_name) * sum(len(tags) for tags, _ in named) > MAX_NAMES_COMPARED:
        raise LimitExceeded("too many names in index.json and manifest.json to compare", hint=_ONE_FORM_HINT)
    for tags, config in named:
        same = [by_name[name] for name in by_name if any(is_named(name, tag) for tag in tags)] if tags else []
        if not any(config in configs for configs in same or [everything]):
            what = f"index.json does not have the image {config} that manifest.json names"
            raise OciError(what, hint=_ONE_FORM_HINT)


def _less(left: int, size: int, what: str) -> int:
    """Take *size* bytes from a budget; returns the rest. Raises :class:`LimitExceeded`."""
    if size > left:
        raise LimitExceeded(f"more than {MAX_LOOKED_AT} bytes of {what} to tell images apart", hint=_ONE_FORM_HINT)
    return left - size


def _inside(path: str, where: str) -> str:
    """*path* as its member is called in the archive. Raises :class:`OciError` for a path that leads out of it."""
    inside = member_path(path.encode())
    if inside is None:
        raise OciError(f"{quoted(path)} is no path in the archive", where=where)
    return inside


def check_platform(config: ImageConfig, selector: Selector) -> None:
    """Raise :class:`OciError` if the config states another platform than the selector."""
    offered = config.platform
    if selector.platform is not None and offered.os and platform_rank(offered, selector.platform) is None:
        raise OciError(f"the image is for {offered}, not for {selector.platform}")


def _json(files: BlobFiles, path: str) -> object:
    with within(path):
        return parse_json(read_all(files, path, MAX_JSON))
