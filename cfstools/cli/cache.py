"""Where the digest cache is unless told otherwise."""

from __future__ import annotations

import os

_OF_ROOT = b"/var/cache/cfstools"


def default_cache() -> bytes | None:
    """The directory of this user's digest cache; ``None`` where the environment tells of no home.

    Root's is not where variables say: sudo and su may leave those of another user in place.
    """
    if os.geteuid() == 0:
        return _OF_ROOT
    home = os.environb.get(b"HOME", b"")
    base = os.environb.get(b"XDG_CACHE_HOME", b"")
    if not base.startswith(b"/"):  # others are to be passed over, the specification says
        base = os.path.join(home, b".cache")
    return os.path.join(base, b"cfstools") if base.startswith(b"/") else None


__all__ = ["default_cache"]
