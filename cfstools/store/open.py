"""Open stores, whatever kind they are, by the place that a user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import UsageError
from cfstools.store.base import Store
from cfstools.store.directory import DirectoryStore
from cfstools.store.place import is_remote, local_path

if TYPE_CHECKING:
    from cfstools.transport.open import NetworkOptions


class RemotePlace(NamedTuple):
    """The URL of a store over a network, and how to speak to it."""

    address: bytes
    network: NetworkOptions | None = None


StorePlace = bytes | RemotePlace | Store
"""A path or URL of a store, or a store that is already open and stays open."""


def refuse_remote(places: Sequence[StorePlace], hint: str) -> None:
    """Raise ``UsageError`` with *hint* for the first of *places* that is over a network."""
    for place in places:
        address = place.address if isinstance(place, RemotePlace) else place
        if isinstance(address, bytes) and is_remote(address):
            try:
                local_path(address)
            except UsageError as error:
                error.hint = hint
                raise


@contextmanager
def open_remote(place: RemotePlace) -> Iterator[Store]:
    """Open the store at a URL; nothing is asked of it before an object is wanted. Raises as :func:`open_store` does."""
    # Loaded only where a network is used.
    from cfstools.store.remote import RemoteStore  # noqa: PLC0415
    from cfstools.transport.open import DEFAULT_NETWORK, open_place  # noqa: PLC0415

    with open_place(place.address, place.network or DEFAULT_NETWORK) as elsewhere:
        yield RemoteStore(elsewhere, elsewhere.describe(""))


def open_directory(place: bytes, *, create: bool = False) -> DirectoryStore:
    """Open the store at *place* for writing or for care; it must be a directory.

    Raises ``StoreError`` if it cannot be opened, ``UsageError`` for any other kind of place.
    """
    return DirectoryStore(local_path(place), create=create)


@contextmanager
def open_store(place: StorePlace) -> Iterator[Store]:
    """Open the store at *place* for reading: a directory, or one over a network.

    Raises as :func:`open_directory` does, and ``NetworkError`` and ``Unsupported`` for places over a network.
    """
    if isinstance(place, RemotePlace) or (isinstance(place, bytes) and is_remote(place)):
        with open_remote(place if isinstance(place, RemotePlace) else RemotePlace(place)) as remote:
            yield remote
    elif isinstance(place, bytes):
        with open_directory(place) as store:
            yield store
    else:
        yield place


@contextmanager
def open_stores(places: Sequence[StorePlace]) -> Iterator[tuple[Store, ...]]:
    """Open the stores at *places*, in this order. Raises as :func:`open_directory` does."""
    with ExitStack() as stack:
        yield tuple([stack.enter_context(open_store(place)) for place in places])


@contextmanager
def open_to_write(places: Sequence[StorePlace]) -> Iterator[tuple[DirectoryStore, tuple[Store, ...]]]:
    """Open the first of *places* for writing, creating it if missing, and the others for reading.

    Raises ``UsageError`` if the first place is not a directory, and as :func:`open_directory` does.
    """
    first, *others = places
    if not isinstance(first, bytes):
        raise UsageError("objects can only be written to a directory")
    # Create the first only if all others exist.
    there = [place for place in others if place != first]
    with open_stores(there) as opened, open_directory(first, create=True) as store:
        yield store, opened
