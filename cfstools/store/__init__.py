"""Object stores: content by fs-verity digest. A name is loaded with its module when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfstools.store.base import FsVerity, Store, contains
    from cfstools.store.chain import StoreChain
    from cfstools.store.directory import DirectoryStore
    from cfstools.store.memory import MemoryStore
    from cfstools.store.write.blobs import Blobs, MemoryBlobs, RootedBlobs, stamp
    from cfstools.store.write.ingest import INLINE_THRESHOLD, Ingest, IngestReport
    from cfstools.store.write.publisher import StoredObject, StoreReport
    from cfstools.store.write.scratch import is_temporary
    from cfstools.store.write.stream import ObjectStream
    from cfstools.store.write.writer import StoreWriter

_HOMES = {
    "Blobs": "write.blobs",
    "DirectoryStore": "directory",
    "FsVerity": "base",
    "INLINE_THRESHOLD": "write.ingest",
    "Ingest": "write.ingest",
    "IngestReport": "write.ingest",
    "MemoryBlobs": "write.blobs",
    "MemoryStore": "memory",
    "ObjectStream": "write.stream",
    "RootedBlobs": "write.blobs",
    "Store": "base",
    "StoreChain": "chain",
    "StoreReport": "write.publisher",
    "StoreWriter": "write.writer",
    "StoredObject": "write.publisher",
    "contains": "base",
    "is_temporary": "write.scratch",
    "stamp": "write.blobs",
}

__all__ = [
    "INLINE_THRESHOLD",
    "Blobs",
    "DirectoryStore",
    "FsVerity",
    "Ingest",
    "IngestReport",
    "MemoryBlobs",
    "MemoryStore",
    "ObjectStream",
    "RootedBlobs",
    "Store",
    "StoreChain",
    "StoreReport",
    "StoreWriter",
    "StoredObject",
    "contains",
    "is_temporary",
    "stamp",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
