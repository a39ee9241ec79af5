"""How users of a store wait for their turn: shared to look or to add, alone to remove."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cfstools.errors import StoreBusy, StoreError
from cfstools.store.directory import DirectoryStore
from cfstools.store.waiting import Waiting

_PAUSE = 0.05  # seconds between two attempts, where waiting has an end


@contextmanager
def in_turn(store: DirectoryStore, *, exclusive: bool, waiting: Waiting) -> Iterator[bool]:
    """Hold the store's lock; yields whether there is one, as ``DirectoryStore.locked`` does.

    When someone else holds it, waits as *waiting* says, or raises ``StoreBusy``.
    """
    with ExitStack() as stack:
        try:
            held = stack.enter_context(store.locked(exclusive=exclusive, wait=False))
        except StoreBusy as busy:
            if waiting.timeout == 0:
                raise
            waiting.on_wait(store.path, busy.hint or "")
            held = _wait(store, stack, waiting.timeout, exclusive=exclusive)
        yield held


def _wait(store: DirectoryStore, stack: ExitStack, timeout: float | None, *, exclusive: bool) -> bool:
    if timeout is None:
        return stack.enter_context(store.locked(exclusive=exclusive))
    end = time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        time.sleep(max(0.0, min(_PAUSE, left)))
        try:
            return stack.enter_context(store.locked(exclusive=exclusive, wait=False))
        except StoreBusy as busy:
            if left <= 0:
                what = f"the store is still in use by another process after {timeout:g} s"
                raise StoreBusy(what, subject=busy.subject, hint=busy.hint) from busy


@contextmanager
def alone(store: DirectoryStore, waiting: Waiting) -> Iterator[None]:
    """Hold the store's lock so that nobody adds or removes objects meanwhile.

    Raises ``StoreError`` where the file system has no locks, for nobody could be kept from building.
    """
    with in_turn(store, exclusive=True, waiting=waiting) as held:
        if not held:
            raise StoreError(
                "the file system has no locks, so nothing can be removed safely",
                subject=store.path,
                hint="run this on the machine that holds the file system, while nothing builds",
            )
        yield
