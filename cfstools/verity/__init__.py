"""fs-verity arithmetic: Merkle trees, descriptors and digests."""
