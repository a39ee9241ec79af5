"""An image on its way out: its tree as layers, map and metadata, config and manifest (docs/distribution.md).

Each blob is written to a spool first, which gives its digest, so that nothing is sent that is there already. A delta is
only sent if a reader of layers makes the same image of it and the base; else the whole tree becomes one layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from typing import NamedTuple

from cfstools.errors import CfsError, CheckFailed
from cfstools.formats.base import OpenImage, PlanOptions
from cfstools.oci.content import Content
from cfstools.oci.descriptor import Descriptor, Digest, Platform
from cfstools.oci.mapping import apply_canonical
from cfstools.oci.pushed.delta import delta_tree, layered
from cfstools.oci.pushed.documents import describe, make_config, make_manifest
from cfstools.oci.pushed.layer import PIECE, ContentsOf, DataLayer, LayerForm, write_layer
from cfstools.oci.pushed.layout import (
    CONFIG,
    IMAGE_FORMAT,
    MANIFEST,
    MapLayer,
    MapObject,
    RangesRow,
    image_digest_key,
    merged_digest_key,
)
from cfstools.oci.pushed.map import ObjectMap
from cfstools.oci.pushed.metadata import Parts, pack_metadata
from cfstools.oci.pushed.ranges import RangeTable
from cfstools.oci.pushed.source import ObjectPlace, PushedImage
from cfstools.oci.sink import BlobSink
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.streams.buffered import Read
from cfstools.streams.readers import HashingReader
from cfstools.streams.spool import MakeFile, RangeReader, Spool
from cfstools.text import shown_path
from cfstools.transport.base import Body, BytesBody
from cfstools.tree.copying import settle_links
from cfstools.tree.diff import diff_trees
from cfstools.tree.model import Directory, RegularFile, copy_of
from cfstools.tree.objects import object_sizes
from cfstools.tree.walk import iter_inodes
from cfstools.values import Value
from cfstools.verity import Algorithm, Params, digest_bytes

MAX_DELTAS = 30
"""Data layers of a base at most: then comes a whole layer again."""


class Outgoing(Value):
    """What is pushed: the bytes of the composefs image, that image opened, and its signature as an envelope."""

    data: bytes
    image: OpenImage
    algorithm: Algorithm
    envelope: bytes | None = None

    @cached_property
    def digest(self) -> bytes:
        """The fs-verity digest of the image."""
        return digest_bytes(self.data, Params(algorithm=self.algorithm))


class PublishOptions(Value):
    """How it is pushed: the form of layers, the platform, a config to take the command and environment from."""

    form: LayerForm = LayerForm()
    platform: Platform
    config: bytes | None = None


class Base(Value):
    """An image pushed before, whose layers may serve again, with the tree it holds.

    Where it is in another place than the new image, *content* is what its layers are copied from.
    """

    pushed: PushedImage
    places: Mapping[bytes, ObjectPlace]
    root: Directory
    content: Content | None = None


class Published(Value):
    """What was pushed. *sent* counts the bytes that had to be sent, of *size* in all blobs.

    *layer_bytes* is the size of the new data layer, 0 where there is none. *fallback* says why there is no delta
    although there is a base. *notes* say what the layer holds otherwise than the tree.
    """

    manifest: Descriptor
    data: bytes
    layers: int
    delta: bool
    layer_bytes: int
    sent: int
    size: int
    fallback: str | None
    notes: tuple[str, ...]


class Means(NamedTuple):
    """What pushing needs: the contents of files, temporaries without names, and an observer."""

    contents: ContentsOf
    make_file: MakeFile
    progress: Progress = SILENT


def publish(
    outgoing: Outgoing, sink: BlobSink, options: PublishOptions, means: Means, *, base: Base | None = None
) -> Published:
    """Push an image through *sink*, on top of *base* where that saves bytes.

    Raises :class:`OciError` for a tree that no layer can hold, :class:`CheckFailed` where a reader of layers would make
    another tree of it, and what *means* and *sink* raise.
    """
    with ExitStack() as stack:
        return _Publishing(outgoing, sink, options, means, stack).publish(base)


class _Publishing:
    def __init__(
        self, outgoing: Outgoing, sink: BlobSink, options: PublishOptions, means: Means, stack: ExitStack
    ) -> None:
        self._outgoing = outgoing
        self._sink = sink
        self._options = options
        self._form = options.form._replace(algorithm=outgoing.algorithm)
        self._means = means
        self._stack = stack
        self._digest = outgoing.digest
        self._sent = 0
        self._notes: tuple[str, ...] = ()

    def publish(self, base: Base | None) -> Published:
        root = self._outgoing.image.tree()
        sizes = object_sizes(root)
        delta, fallback = self._delta(base, root, sizes) if base is not None else (None, None)
        used = base if base is not None and fallback is None else None
        new: tuple[DataLayer, Body] | None = None
        if used is None:
            self._check(layered(Directory(mode=0o40755), root), "as a layer")
            new = self._write(root, whiteouts=False)
        elif delta is not None:
            new = self._write(delta, whiteouts=True)
        return self._send(used, new, sizes, root, fallback)

    # Layers

    def _delta(self, base: Base, root: Directory, sizes: Mapping[bytes, int]) -> tuple[Directory | None, str | None]:
        """The tree of a delta layer, ``None`` where nothing differs; and why there can be none."""
        if len(base.pushed.layers) > MAX_DELTAS:
            return None, f"the base has more than {MAX_DELTAS} layers"
        if base.pushed.map.digest_size != self._outgoing.algorithm.digest_size:
            return None, "the base has digests of another algorithm"
        if any(layer.media_type != self._form.media_type for layer in base.pushed.layers):
            return None, "the base is compressed otherwise"
        if _mostly_unused(base, sizes):
            return None, "more than half of the base's layers would be unused"
        try:
            delta = delta_tree(base.root, root)
            made = base.root if delta is None else layered(base.root, delta)
            self._check(made, "as a delta")
        except CfsError as error:
            return None, str(error)
        return delta, None

    def _check(self, made: Directory, what: str) -> None:
        """Raise :class:`CheckFailed` unless *made* is the tree to push; note it where its image is another."""
        image, algorithm = self._outgoing.image, self._outgoing.algorithm
        plan = image.format.plan(
            made, PlanOptions(algorithm=algorithm, min_version=image.version, max_version=image.version)
        )
        if plan.digest(Params(algorithm=algorithm)) == self._digest:
            return
        change = next(diff_trees(image.tree(), made), None)
        if change is not None:
            raise CheckFailed(f"{what} the tree comes out different", where=shown_path(change.path))
        self._notes = ("an image that is built of the layers has another digest: this one was written by other rules",)

    def _write(self, root: Directory, *, whiteouts: bool) -> tuple[DataLayer, Body]:
        spool = self._stack.enter_context(closing(Spool(self._means.make_file)))
        total = sum(inode.size for inode in iter_inodes(root) if isinstance(inode, RegularFile))
        with running_stage(self._means.progress, "pack", total, "B") as stage:
            form = self._form._replace(whiteouts=whiteouts)
            layer = write_layer(root, self._means.contents, spool.write, form, stage)
        return layer, SpoolBody(spool)

    # Blobs

    def _send(
        self,
        base: Base | None,
        new: tuple[DataLayer, Body] | None,
        sizes: Mapping[bytes, int],
        root: Directory,
        fallback: str | None,
    ) -> Published:
        layers = list(base.pushed.layers) if base is not None else []
        diff_ids = list(base.pushed.diff_ids) if base is not None else []
        if new is not None:
            layers.append(_descriptor(new[0]))
            diff_ids.append(new[0].diff_id)
        places = _rows(layers, base, new[0] if new is not None else None, sizes)
        ranges = _range_rows(base, new[0] if new is not None else None, sizes)
        blob, annotations = pack_metadata(self._parts(layers, places, ranges), self._form.compression)
        metadata = describe(self._form.media_type, blob, annotations)
        config = make_config(self._options.platform, diff_ids, self._options.config)
        bodies: list[tuple[Descriptor, Body]] = [
            (metadata, BytesBody(blob)),
            (describe(CONFIG, config), BytesBody(config)),
        ]
        if new is not None:
            bodies.insert(0, (layers[-1], new[1]))
        if base is not None and base.content is not None:
            bodies[:0] = [(layer, BlobBody(base.content, layer)) for layer in base.pushed.layers]
        data = make_manifest(bodies[-1][0], [*layers, metadata], self._annotations(root))
        manifest = describe(MANIFEST, data)._replace(platform=self._options.platform)
        # A base in the same place is there with all that it names.
        if base is None or base.content is not None or base.pushed.manifest.digest != manifest.digest:
            self._put_all(bodies, manifest, data)
        return Published(
            manifest=manifest,
            data=data,
            layers=len(layers),
            delta=base is not None,
            layer_bytes=new[0].size if new is not None else 0,
            sent=self._sent,
            size=sum(layer.size for layer in layers) + len(blob) + len(config) + len(data),
            fallback=fallback,
            notes=self._notes + (new[0].notes if new is not None else ()),
        )

    def _put_all(self, bodies: Sequence[tuple[Descriptor, Body]], manifest: Descriptor, data: bytes) -> None:
        with running_stage(self._means.progress, "push", sum(body.size for _, body in bodies), "B") as stage:
            for descriptor, body in bodies:
                if self._sink.put(descriptor, body, stage.advance):
                    self._sent += body.size
        self._sink.finish(manifest, data)
        self._sent += len(data)

    def _parts(self, layers: Sequence[Descriptor], places: Sequence[MapObject], ranges: Sequence[RangesRow]) -> Parts:
        packed = ObjectMap(
            image=hashlib.sha256(self._outgoing.data).digest(),
            digest_size=self._outgoing.algorithm.digest_size,
            layers=tuple(MapLayer(bytes.fromhex(layer.digest.encoded), layer.size) for layer in layers),
            objects=places,
        ).pack()
        table = RangeTable(piece=PIECE, rows=ranges).pack() if ranges else None
        return Parts(image=self._outgoing.data, map=packed, signature=self._outgoing.envelope, ranges=table)

    def _annotations(self, root: Directory) -> dict[str, str]:
        """The manifest's: the image's digest, and the same under the name of others where theirs comes out equal."""
        algorithm, image = self._outgoing.algorithm, self._outgoing.image
        annotations = {image_digest_key(algorithm): self._digest.hex(), IMAGE_FORMAT: image.word(algorithm)}
        if image.version != 1:
            return annotations
        # From here on the tree is used up: settling its links changes directories that both share.
        mapped = copy_of(root, entries=dict(root.entries))
        run = mapped.entries.get(b"run")
        if isinstance(run, Directory):
            mapped.entries[b"run"] = copy_of(run, entries=dict(run.entries))
        apply_canonical(mapped)
        settle_links(mapped)
        plan = image.format.plan(mapped, PlanOptions(algorithm=algorithm, min_version=1, max_version=1))
        if plan.digest(Params(algorithm=algorithm)) == self._digest:
            annotations[merged_digest_key(algorithm)] = self._digest.hex()
        return annotations


class SpoolBody:
    """What a spool holds, as a body to send."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.size = spool.size

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read it from the start."""
        yield RangeReader(self._spool, 0, self.size).read


class BlobBody:
    """A blob of *content*, as a body to send; one that has another digest is never sent whole."""

    def __init__(self, content: Content, descriptor: Descriptor) -> None:
        self._content = content
        self._descriptor = descriptor
        self.size = descriptor.size

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read it from the start. Its last bytes come only if the digest holds, else :class:`CheckFailed`."""
        with self._content.open(self._descriptor) as read:
            checked = HashingReader(read, self._descriptor.digest.algorithm)

            def piece(count: int) -> bytes:
                data = checked.read(count)
                if data and checked.size >= self.size:
                    digest = self._descriptor.digest
                    digest.matches(checked.hexdigest(digest.algorithm), f"layer {digest}")
                return data

            yield piece


def _mostly_unused(base: Base, sizes: Mapping[bytes, int]) -> bool:
    total = sum(layer.size for layer in base.pushed.layers)
    used = sum(place.length for digest, place in base.places.items() if digest in sizes)
    return 2 * used < total


def _descriptor(layer: DataLayer) -> Descriptor:
    return Descriptor(
        media_type=layer.media_type,
        digest=Digest("sha256", layer.sha256.hex()),
        size=layer.size,
        annotations=layer.annotations,
    )


def _rows(
    layers: Sequence[Descriptor], base: Base | None, new: DataLayer | None, sizes: Mapping[bytes, int]
) -> list[MapObject]:
    """The rows of the map: where the new layer has an object, else where the base has it."""
    numbers = {layer.digest: number for number, layer in enumerate(layers)}
    rows = []
    for digest in sorted(sizes):
        if new is not None and digest in new.objects:
            offset, length = new.objects[digest]
            number = len(layers) - 1
        else:
            assert base is not None
            place = base.places[digest]
            offset, length, number = place.offset, place.length, numbers[place.blob.digest]
        rows.append(MapObject(offset, length, number, bytes(6)))
    return rows


def _range_rows(base: Base | None, new: DataLayer | None, sizes: Mapping[bytes, int]) -> list[RangesRow]:
    """The rows of the table of ranges: as the map, for the large objects that can be read in parts."""
    rows = []
    for number, digest in enumerate(sorted(sizes)):
        if new is not None and digest in new.objects:
            offset = new.frames.get(digest)
        else:
            assert base is not None
            frames = base.places[digest].frames
            offset = frames.table.start if frames is not None and frames.piece == PIECE else None
        if offset is not None:
            rows.append(RangesRow(number, bytes(4), offset))
    return rows
