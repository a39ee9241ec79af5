"""Take the lock of a store and wait for it: shared to read or add objects, exclusive to remove them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cfstools.errors import StoreBusy, StoreError
from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.store.directory import DirectoryStore

_PAUSE = 0.05  # seconds between two attempts, if there is a timeout


def silently(_store: str, _who: str) -> None:
    """Report nothing."""


class Waiting(Value):
    """How long to wait for the lock of a store.

    ``timeout`` is in seconds: ``None`` waits forever, 0 not at all. ``on_wait`` is called once before waiting, with the
    path of the store and a text that names the processes holding its lock, empty if unknown.
    """

    timeout: float | None = None
    on_wait: Callable[[str, str], None] = silently


PATIENT = Waiting()
"""Wait forever and report nothing."""


@contextmanager
def in_turn(store: DirectoryStore, *, exclusive: bool, waiting: Waiting) -> Iterator[bool]:
    """Hold the store's lock, waiting for it as *waiting* says; yields what ``DirectoryStore.locked`` does.

    Raises ``StoreBusy`` when the timeout expires.
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
    """Hold the store's lock exclusively: no other process adds or removes objects meanwhile.

    Raises ``StoreError`` if the file system has no locks, because builds could not be kept out.
    """
    with in_turn(store, exclusive=True, waiting=waiting) as held:
        if not held:
            raise StoreError(
                "the file system has no locks, so nothing can be removed safely",
                subject=store.path,
                hint="run this on the machine that holds the file system, while nothing builds",
            )
        yield
