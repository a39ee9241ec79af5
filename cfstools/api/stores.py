"""What several verbs ask of stores given by path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cfstools.linux.lookup import file_type

if TYPE_CHECKING:
    from cfstools.store import StoreChain


def payload_exists(stores: Sequence[bytes], payload: bytes) -> bool:
    """Whether *payload*, a path as images name objects, exists below one of *stores*, links followed.

    Readers admit no payload with ``.`` or ``..`` components, so this stays below the store.
    Raises InputError for what cannot be looked at.
    """
    return any(file_type(os.path.join(store, payload.lstrip(b"/"))) for store in stores)


@contextmanager
def open_stores(paths: Sequence[bytes]) -> Iterator[StoreChain]:
    """The stores at *paths* read as one, in this order. Raises StoreError for one that cannot be opened."""
    from cfstools.store import DirectoryStore, StoreChain

    with ExitStack() as stack:
        yield StoreChain([stack.enter_context(DirectoryStore(path)) for path in paths])
