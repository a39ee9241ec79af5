"""fs-verity arithmetic: Merkle trees, descriptors and digests.

What reads files, with threads, is in ``cfstools.verity.files``.
"""

from cfstools.verity.algorithm import DEFAULT, MAX_BLOCK_SIZE, MAX_SALT_SIZE, Algorithm, Params
from cfstools.verity.merkle import (
    DESCRIPTOR_SIZE,
    MerkleHasher,
    descriptor,
    digest_bytes,
    file_digest,
    formatted_digest,
)
from cfstools.verity.object_id import ObjectId, object_path

__all__ = [
    "DEFAULT",
    "DESCRIPTOR_SIZE",
    "MAX_BLOCK_SIZE",
    "MAX_SALT_SIZE",
    "Algorithm",
    "MerkleHasher",
    "ObjectId",
    "Params",
    "descriptor",
    "digest_bytes",
    "file_digest",
    "formatted_digest",
    "object_path",
]
