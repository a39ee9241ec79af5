"""The name of an object: a digest with its algorithm."""

from __future__ import annotations

import re
from typing import NamedTuple

from cfstools.errors import UsageError
from cfstools.verity.algorithm import Algorithm, Params

# Compiled when first needed, as most commands parse no digest.
_TEXT = rf"(?:({'|'.join(one.value for one in Algorithm)}):)?([0-9A-Fa-f]*)"
_LENGTHS = " or ".join(str(2 * one.digest_size) for one in Algorithm)
_PATH = f"[0-9a-f]{{2}}/(?:{'|'.join(f'[0-9a-f]{{{2 * one.digest_size - 2}}}' for one in Algorithm)})".encode()
# For digests without their algorithm, in file names of stores and on command lines: only here the length decides.
_BARE = {algorithm.digest_size: algorithm for algorithm in Algorithm}

LEAVES = "leaves"
"""The directory in a store with the Merkle leaves of its large objects, each under the object's name."""

LARGE = 8 << 20
"""Objects above this size have their leaves beside them where they are pushed, so that parts of them can be checked."""


class ObjectId(NamedTuple):
    """A digest with its algorithm. Code that handles many objects keeps bare digests and one algorithm instead."""

    algorithm: Algorithm
    digest: bytes

    @classmethod
    def of(cls, digest: bytes) -> ObjectId:
        """The id for a *digest* without its algorithm, as in file names of stores. Raises UsageError."""
        algorithm = _BARE.get(len(digest))
        if algorithm is None:
            raise UsageError(f"a digest of {len(digest)} bytes belongs to no known algorithm")
        return cls(algorithm, digest)

    @classmethod
    def parse(cls, text: str) -> ObjectId:
        """Parse *text*: 64 or 128 hexadecimal digits, with or without ``sha256:`` or ``sha512:`` before them.

        Raises ``UsageError`` for anything else.
        """
        match = re.fullmatch(_TEXT, text)
        if not match:
            raise UsageError("not a digest: hexadecimal digits expected")
        name, digits = match.groups()
        bare = next((one for one in Algorithm if 2 * one.digest_size == len(digits)), None)
        if bare is None:
            raise UsageError(f"not a digest: {len(digits)} hexadecimal digits instead of {_LENGTHS}")
        algorithm = Algorithm(name) if name else bare
        if len(digits) != 2 * algorithm.digest_size:
            raise UsageError(f"not a digest: {len(digits)} hexadecimal digits do not fit {name}")
        return cls(algorithm, bytes.fromhex(digits))

    @property
    def params(self) -> Params:
        """The parameters with which composefs computes it: blocks of 4096 bytes, no salt."""
        return Params(algorithm=self.algorithm)

    @property
    def path(self) -> bytes:
        """Path of the object below its store."""
        return object_path(self.digest)

    def __str__(self) -> str:
        return f"{self.algorithm.value}:{self.digest.hex()}"


def object_path(digest: bytes) -> bytes:
    """Path of an object below its store: ``b"ab/cdef…"``, lower case (composefs format, section 5.2)."""
    return digest.hex("/", len(digest) - 1).encode()  # one slash, before all bytes but the first


def digest_at(path: bytes) -> bytes | None:
    """The digest of the object at *path* below its store, ``None`` if that is no object's. Extra slashes are fine."""
    parts = [part for part in path.split(b"/") if part]
    if len(parts) != 2 or not re.fullmatch(_PATH, b"/".join(parts)):
        return None
    return bytes.fromhex(b"".join(parts).decode())


def leaves_name(digest: bytes, prefix: str = "") -> str:
    """What the Merkle leaves of a large object are called in other places, where the store is at *prefix*."""
    return object_name(digest, f"{prefix}/{LEAVES}" if prefix else LEAVES)


def object_name(digest: bytes, prefix: str = "") -> str:
    """What an object is called in other places, where the store is at *prefix*."""
    name = object_path(digest).decode()
    return f"{prefix}/{name}" if prefix else name
