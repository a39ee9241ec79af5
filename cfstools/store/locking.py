"""How the care of a store waits for its turn: shared to look, alone to remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cfstools.errors import StoreBusy, StoreError
from cfstools.store.directory import DirectoryStore


def silently() -> None:
    """Say nothing about having to wait."""


@contextmanager
def in_turn(
    store: DirectoryStore, *, exclusive: bool, wait: bool = True, on_wait: Callable[[], None] = silently
) -> Iterator[bool]:
    """Hold the store's lock; yields whether there is one, as ``DirectoryStore.locked`` does.

    When someone else holds it, calls *on_wait* once and waits, or raises ``StoreBusy`` without *wait*.
    """
    with ExitStack() as stack:
        try:
            held = stack.enter_context(store.locked(exclusive=exclusive, wait=False))
        except StoreBusy:
            if not wait:
                raise
            on_wait()
            held = stack.enter_context(store.locked(exclusive=exclusive))
        yield held


@contextmanager
def alone(store: DirectoryStore, *, wait: bool = True, on_wait: Callable[[], None] = silently) -> Iterator[None]:
    """Hold the store's lock so that nobody adds or removes objects meanwhile.

    Raises ``StoreError`` where the file system has no locks, for nobody could be kept from building.
    """
    with in_turn(store, exclusive=True, wait=wait, on_wait=on_wait) as held:
        if not held:
            raise StoreError(
                "the file system has no locks, so nothing can be removed safely",
                subject=store.path,
                hint="run this on the machine that holds the file system, while nothing builds",
            )
        yield
