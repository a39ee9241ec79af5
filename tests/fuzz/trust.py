"""A key that takes every signature, so that fuzzing gets behind the check of signatures."""

from __future__ import annotations


class Trusting:
    """Both halves of a key for which everything holds."""

    key_id = "ab" * 32
    algorithm = "none"

    @property
    def verifier(self) -> Trusting:
        """The public half."""
        return self

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whatever it is, it holds."""
        return True

    def sign(self, data: bytes) -> bytes:
        """Some bytes."""
        return b"signed"
