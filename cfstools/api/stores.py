"""What several verbs ask of stores given by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cfstools.linux.lookup import file_type

if TYPE_CHECKING:
    from cfstools.store import StoreChain


def missing_objects(stores: Sequence[bytes], sizes: Mapping[bytes, int | None]) -> list[bytes]:
    """Those of the objects in *sizes*, by path as images name them, that are in none of *stores*.

    They are in order. A size of ``None``, where images contradict each other, is that of no file. A store that does not
    exist has nothing. Raises StoreError for one that cannot be used.
    """
    from cfstools.store.chain import has_object
    from cfstools.store.directory import DirectoryStore

    with ExitStack() as stack:
        opened = [stack.enter_context(DirectoryStore(path)) for path in stores if file_type(path)]
        return [path for path, size in sorted(sizes.items()) if size is None or not has_object(opened, path, size)]


@contextmanager
def open_stores(paths: Sequence[bytes]) -> Iterator[StoreChain]:
    """The stores at *paths* read as one, in this order. Raises StoreError for one that cannot be opened."""
    from cfstools.store import DirectoryStore, StoreChain

    with ExitStack() as stack:
        yield StoreChain([stack.enter_context(DirectoryStore(path)) for path in paths])
