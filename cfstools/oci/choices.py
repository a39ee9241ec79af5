"""Options for reading container images.

Apart from the readers, so that command lines and options can name these without loading those.
"""

from __future__ import annotations

from enum import Enum


class Mapping(Enum):
    """``composefs``: the canonical tree of an image, one digest for one image; ``plain``: as the layers say."""

    COMPOSEFS = "composefs"
    PLAIN = "plain"


class KeptXattrs(Enum):
    """Which extended attributes stay: ``security.capability`` only, ``user.*`` too, or all."""

    CAPABILITY = "capability"
    USER = "user"
    ALL = "all"
