"""The parameters of fs-verity: hash algorithm, block size and salt."""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import Protocol

from cfstools.errors import UsageError
from cfstools.values import Value

# The kernel asks for at least two digests in a block; `fsverity digest` goes up to the last power of two
# below 2^31. (fs/verity/open.c, fsverity_init_merkle_tree_params; fsverity-utils 1.5 by trial.)
MAX_BLOCK_SIZE = 1 << 30
MAX_SALT_SIZE = 32


class Hash(Protocol):
    """The part of a hashlib object used here."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Append *data*."""

    def digest(self) -> bytes:
        """Digest of all data so far."""

    def copy(self) -> Hash:
        """An independent object in the same state."""


class Algorithm(Enum):
    """A hash algorithm of fs-verity; the value is its name in ``hashlib`` and on command lines."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    number: int
    digest_size: int
    hash_block: int

    def __init__(self, name: str) -> None:
        # number: FS_VERITY_HASH_ALG_* of linux/fsverity.h; hash_block: input block of the hash itself
        self.number, self.digest_size, self.hash_block = {"sha256": (1, 32, 64), "sha512": (2, 64, 128)}[name]

    def new(self, data: bytes = b"") -> Hash:
        """A new ``hashlib`` object, fed with *data*."""
        import hashlib  # noqa: PLC0415 - it loads OpenSSL, which the native functions do not need

        return hashlib.new(self.value, data)

    @classmethod
    def from_number(cls, number: int) -> Algorithm:
        """The algorithm with the kernel's *number*. Raises UsageError if it is unknown."""
        for algorithm in cls:
            if algorithm.number == number:
                return algorithm
        raise UsageError(f"unknown fs-verity hash algorithm {number}")


class Params(Value):
    """What a digest depends on besides the data. composefs always uses 4096-byte blocks and no salt.

    Block sizes are powers of two, from the size of two digests to 1 GiB, and salts have up to 32 bytes, as for
    ``fsverity digest`` (a kernel may allow less). Raises UsageError for anything else.
    """

    algorithm: Algorithm = Algorithm.SHA256
    block_size: int = 4096
    salt: bytes = b""

    def _check(self) -> None:
        size = self.block_size
        if size <= 0 or size & (size - 1):
            raise UsageError(f"block size {size} is not a power of two")
        least = 2 * self.algorithm.digest_size
        if size < least:
            raise UsageError(f"block size {size} is too small for {self.algorithm.value}: at least {least}")
        if size > MAX_BLOCK_SIZE:
            raise UsageError(f"block size {size} is too large: at most {MAX_BLOCK_SIZE}")
        if len(self.salt) > MAX_SALT_SIZE:
            raise UsageError(f"salt of {len(self.salt)} bytes is too long: at most {MAX_SALT_SIZE}")

    @cached_property
    def salt_prefix(self) -> bytes:
        """What is hashed before each block: the salt, zero padded to a whole hash input block; empty without salt."""
        unit = self.algorithm.hash_block
        return self.salt.ljust(-(-len(self.salt) // unit) * unit, b"\0")


DEFAULT = Params()
