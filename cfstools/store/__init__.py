"""Object stores: content by fs-verity digest."""

from cfstools.store.base import Store, contains
from cfstools.store.chain import StoreChain
from cfstools.store.directory import DirectoryStore
from cfstools.store.ingest import INLINE_THRESHOLD, Blobs, Ingest, IngestReport, MemoryBlobs, RootedBlobs, ingest, stamp
from cfstools.store.memory import MemoryStore
from cfstools.store.publisher import StoredObject, StoreReport
from cfstools.store.scratch import FsVerity, is_temporary
from cfstools.store.stream import ObjectStream
from cfstools.store.writer import StoreWriter

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
    "ingest",
    "is_temporary",
    "stamp",
]
