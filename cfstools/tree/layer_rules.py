"""Which oddities and sizes a stack of layers may have. Apart from :mod:`.layers` because every build loads it."""

from __future__ import annotations

from cfstools.values import Value

MAX_ENTRIES = 1 << 22
MAX_METADATA = 1 << 30


class LayerRules(Value):
    """Options and limits for applying layers: *allow_duplicates* lets the last of several entries with one name win,
    *strict* turns every warning into an error, *max_entries* limits the names of the tree, *max_metadata* the bytes of
    all paths, link targets and extended attributes."""

    allow_duplicates: bool = False
    strict: bool = False
    max_entries: int = MAX_ENTRIES
    max_metadata: int = MAX_METADATA


DEFAULT_RULES = LayerRules()
