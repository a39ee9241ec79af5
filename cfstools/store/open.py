"""The one door to stores: what callers name becomes a store, whatever kind it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cfstools.errors import UsageError
from cfstools.store.base import Store
from cfstools.store.directory import DirectoryStore
from cfstools.store.place import local_path

StorePlace = bytes | Store
"""Where a store is (a path or a URL), or a store that is open already and stays so."""


def open_directory(place: bytes, *, create: bool = False) -> DirectoryStore:
    """The store at *place* to write to or to care for, which only a directory allows.

    Raises ``StoreError`` where it cannot be opened, ``UsageError`` for another kind of place.
    """
    return DirectoryStore(local_path(place), create=create)


@contextmanager
def open_store(place: StorePlace) -> Iterator[Store]:
    """The store at *place*. Raises as :func:`open_directory` does."""
    if not isinstance(place, bytes):
        yield place
        return
    with open_directory(place) as store:
        yield store


@contextmanager
def open_stores(places: Sequence[StorePlace]) -> Iterator[tuple[Store, ...]]:
    """The stores at *places*, in this order. Raises as :func:`open_directory` does."""
    with ExitStack() as stack:
        yield tuple([stack.enter_context(open_store(place)) for place in places])


@contextmanager
def open_to_write(places: Sequence[StorePlace]) -> Iterator[tuple[DirectoryStore, tuple[Store, ...]]]:
    """The first of *places*, which is made if it is missing, to write to, and the others to look in.

    Raises ``UsageError`` for a first place that is no directory's, and as :func:`open_directory` does.
    """
    first, *others = places
    if not isinstance(first, bytes):
        raise UsageError("objects can only be written to a directory")
    # The first is not created before the others are known to be there.
    there = [place for place in others if place != first]
    with open_stores(there) as opened, open_directory(first, create=True) as store:
        yield store, opened
