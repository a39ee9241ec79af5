"""The digest cache: which digests unchanged files have, so that a rebuild need not read them."""
