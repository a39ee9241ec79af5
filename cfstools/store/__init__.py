"""Object stores: content by fs-verity digest. A name is loaded with its module when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfstools.store.base import FsVerity, Store, contains
    from cfstools.store.chain import StoreChain
    from cfstools.store.directory import DirectoryStore
    from cfstools.store.ingest import INLINE_THRESHOLD, Blobs, Ingest, IngestReport, MemoryBlobs, RootedBlobs, stamp
    from cfstools.store.memory import MemoryStore
    from cfstools.store.publisher import StoredObject, StoreReport
    from cfstools.store.scratch import is_temporary
    from cfstools.store.stream import ObjectStream
    from cfstools.store.writer import StoreWriter

_HOMES = {
    "Blobs": "ingest",
    "DirectoryStore": "directory",
    "FsVerity": "base",
    "INLINE_THRESHOLD": "ingest",
    "Ingest": "ingest",
    "IngestReport": "ingest",
    "MemoryBlobs": "ingest",
    "MemoryStore": "memory",
    "ObjectStream": "stream",
    "RootedBlobs": "ingest",
    "Store": "base",
    "StoreChain": "chain",
    "StoreReport": "publisher",
    "StoreWriter": "writer",
    "StoredObject": "publisher",
    "contains": "base",
    "is_temporary": "scratch",
    "stamp": "ingest",
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
