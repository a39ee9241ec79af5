"""What several verbs ask of stores given by path."""

from __future__ import annotations

import os
from collections.abc import Sequence


def payload_exists(stores: Sequence[bytes], payload: bytes) -> bool:
    """Whether *payload*, a path as images name objects, exists below one of *stores*, links followed.

    Readers admit no payload with ``.`` or ``..`` components, so this stays below the store.
    """
    return any(os.path.exists(os.path.join(store, payload.lstrip(b"/"))) for store in stores)
