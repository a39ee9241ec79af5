"""How long to wait for a store that others use, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.values import Value


def silently(_store: str, _who: str) -> None:
    """Say nothing about having to wait."""


class Waiting(Value):
    """How long to wait for the lock of a store.

    ``timeout`` is in seconds: ``None`` waits for ever, 0 not at all. ``on_wait`` is called once before waiting, with
    the path of the store, and with who holds its lock in words, as far as that is known.
    """

    timeout: float | None = None
    on_wait: Callable[[str, str], None] = silently


PATIENT = Waiting()
"""Wait for ever, in silence."""
