"""What a store has on disk, for comparing ours with the one the reference filled."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Listing = dict[str, tuple[str, int, str]]


def store_of(store: Path) -> Listing:
    """Return path to (kind and mode, size, SHA-256) of every object and directory; empty if there is no store."""
    found: Listing = {}
    for path in sorted(store.rglob("*")):
        # The lock is ours alone; every other tool passes it over.
        if path.relative_to(store).parts[0].startswith(".mkcfs"):
            continue
        status = os.lstat(path)
        name = str(path.relative_to(store))
        if stat.S_ISREG(status.st_mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = (stat.filemode(status.st_mode), status.st_size, digest)
        else:
            found[name] = (stat.filemode(status.st_mode), 0, "")
    return found
