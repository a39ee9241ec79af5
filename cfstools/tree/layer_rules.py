"""What a stack of layers tolerates."""

from __future__ import annotations

from typing import NamedTuple

MAX_ENTRIES = 1 << 22
MAX_METADATA = 1 << 30


class LayerRules(NamedTuple):
    """What a stack of layers tolerates: *allow_duplicates* lets the last of several entries of one name win,
    *strict* turns each warning into an error, *max_entries* and *max_metadata* bound the names of one tree and the
    bytes of all paths, link targets and extended attributes."""

    allow_duplicates: bool = False
    strict: bool = False
    max_entries: int = MAX_ENTRIES
    max_metadata: int = MAX_METADATA


DEFAULT_RULES = LayerRules()
