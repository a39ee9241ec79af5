"""Here, places are where users are, not those of the mounts of root."""

from __future__ import annotations

from tests.users import place

__all__ = ["place"]
