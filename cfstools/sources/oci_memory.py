"""Cached layers of images in registries: a layer that was read once is not fetched again.

A record is used only while all objects of the layer are in the stores, and only by the same version of the package with
the same options. The objects of a layer are published as soon as its digests are verified; until an image refers to
them they are garbage that ``gc`` collects.
"""

from __future__ import annotations

import hashlib

from cfstools import __version__
from cfstools.errors import FormatError, StoreError
from cfstools.lifetime import Closable
from cfstools.oci.images import LayerSource
from cfstools.oci.layer_record import LayerRecord, unpack
from cfstools.sources.oci_request import OciOptions
from cfstools.store import StoreWriter
from cfstools.store.cache.blobs import RememberedBlobs


class LayerMemory(Closable):
    """Layers that were read into the stores of *writer*; records are in the user's cache *directory*."""

    def __init__(self, directory: bytes, writer: StoreWriter) -> None:
        self._blobs = RememberedBlobs(directory)
        self._writer = writer

    def find(self, source: LayerSource, options: OciOptions) -> LayerRecord | None:
        """The record of a layer; ``None`` if there is none or an object is missing."""
        key = self._key(source, options)
        data = None if key is None else self._blobs.find(key)
        if data is None:
            return None
        try:
            record = unpack(data)
            missing = any(not self._writer.has(digest, size) for digest, size in record.objects().items())
        except (FormatError, StoreError):
            return None
        return None if missing else record

    def keep(self, source: LayerSource, options: OciOptions, record: LayerRecord) -> None:
        """Publish the objects of a verified layer and write its record. Raises :class:`StoreError`."""
        key = self._key(source, options)
        if key is None:
            return
        # Serialize before the layer is applied: applying fills its directories.
        packed = record.pack()
        self._writer.publish(record.objects())
        if packed is not None:
            self._blobs.keep(key, packed)

    def close(self) -> None:
        """Close the directory."""
        self._blobs.close()

    def _key(self, source: LayerSource, options: OciOptions) -> bytes | None:
        """The key of a layer's record; ``None`` for a layer without digest or DiffID."""
        if source.digest is None or source.diff_id is None:
            return None
        chosen = (options.mapping, options.kept_xattrs, options.tar_limits, options.decompression_limits)
        words = (__version__, source.digest, source.diff_id, *chosen, options.skip_unknown, self._writer.params)
        return hashlib.sha256("\0".join(map(str, words)).encode()).digest()
