"""The name of an object: a digest and the algorithm that made it."""

from __future__ import annotations

import re
from typing import NamedTuple

from cfstools.errors import UsageError
from cfstools.verity.algorithm import Algorithm, Params

_TEXT = re.compile(r"(?:(sha256|sha512):)?([0-9A-Fa-f]*)")
# What is named by nothing but its digest: files in stores, digests on command lines. Only here does a length tell.
_BARE = {algorithm.digest_size: algorithm for algorithm in Algorithm}


class ObjectId(NamedTuple):
    """A digest and its ``algorithm``. Code that handles many objects keeps packed digests and one algorithm instead."""

    algorithm: Algorithm
    digest: bytes

    @classmethod
    def of(cls, digest: bytes) -> ObjectId:
        """The id for a *digest* that comes without its algorithm, as file names in stores do. Raises ``UsageError``."""
        algorithm = _BARE.get(len(digest))
        if algorithm is None:
            raise UsageError(f"a digest of {len(digest)} bytes belongs to no known algorithm")
        return cls(algorithm, digest)

    @classmethod
    def parse(cls, text: str) -> ObjectId:
        """The id written as *text*: 64 or 128 hexadecimal digits, with or without ``sha256:`` or ``sha512:``.

        Raises ``UsageError`` for anything else.
        """
        match = _TEXT.fullmatch(text)
        if not match:
            raise UsageError("not a digest: hexadecimal digits expected")
        name, digits = match.groups()
        bare = next((one for one in Algorithm if 2 * one.digest_size == len(digits)), None)
        if bare is None:
            raise UsageError(f"not a digest: {len(digits)} hexadecimal digits instead of 64 or 128")
        algorithm = Algorithm(name) if name else bare
        if len(digits) != 2 * algorithm.digest_size:
            raise UsageError(f"not a digest: {len(digits)} hexadecimal digits do not fit {name}")
        return cls(algorithm, bytes.fromhex(digits))

    @property
    def params(self) -> Params:
        """How composefs computes the digest: blocks of 4096 bytes and no salt."""
        return Params(algorithm=self.algorithm)

    @property
    def path(self) -> bytes:
        """Where the object is below its store."""
        return object_path(self.digest)

    def __str__(self) -> str:
        return f"{self.algorithm.value}:{self.digest.hex()}"


def object_path(digest: bytes) -> bytes:
    """Path of an object below its store: ``b"ab/cdef…"``, lower case (composefs format, section 5.2)."""
    text = digest.hex().encode()
    return b"%b/%b" % (text[:2], text[2:])
