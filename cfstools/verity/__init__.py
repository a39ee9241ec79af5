"""fs-verity arithmetic: Merkle trees, descriptors and digests."""

from cfstools.verity.algorithm import DEFAULT, MAX_BLOCK_SIZE, MAX_SALT_SIZE, Algorithm, Params
from cfstools.verity.descriptor import DESCRIPTOR_SIZE, descriptor, file_digest, formatted_digest
from cfstools.verity.files import CopyFailed, digest_file, hash_fd
from cfstools.verity.merkle import MerkleHasher, digest_bytes
from cfstools.verity.object_id import ObjectId, object_path

__all__ = [
    "DEFAULT",
    "DESCRIPTOR_SIZE",
    "MAX_BLOCK_SIZE",
    "MAX_SALT_SIZE",
    "Algorithm",
    "CopyFailed",
    "MerkleHasher",
    "ObjectId",
    "Params",
    "descriptor",
    "digest_bytes",
    "digest_file",
    "file_digest",
    "formatted_digest",
    "hash_fd",
    "object_path",
]
