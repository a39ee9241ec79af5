"""The target for what a mount reads that nobody vouches for: traces."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.mount.lazy.trace import Touch, format_trace, parse_trace

KNOWN = frozenset(bytes([number]) * 32 for number in range(8))
"""The objects of an image."""


def trace(data: bytes) -> None:
    """A trace gives objects of the image, each once, and comes back the same when it is written; or it is refused."""
    found = parse_trace(data, KNOWN)
    assert len(set(found)) == len(found)
    assert set(found) <= KNOWN
    assert parse_trace(format_trace(bytes(32), [Touch(digest, 5) for digest in found]), KNOWN) == found


MOUNT_TARGETS: dict[str, Callable[[bytes], None]] = {"trace": trace}
