"""The observer that long work reports to. The library only calls it; ``cli`` draws it.

Work that takes a while opens a stage, advances it and finishes it. Stages may run at the same time, as downloads do
beside the hashing of what has arrived; calls may come from any thread. What only advances takes a :class:`Stage`,
which its caller has opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stage(Protocol):
    """One piece of work that is going on."""

    def advance(self, amount: int, /) -> None:
        """*amount* more units are done."""

    def finish(self) -> None:
        """The work is over, whether it succeeded or not."""


class Progress(Protocol):
    """Told which stages there are and how far each of them is."""

    def stage(self, name: str, total: int | None, unit: str, /) -> Stage:
        """Open a stage: its name, its size if known, and its unit (``"B"`` for bytes, ``"file"``, …)."""


class _Silent:
    """Progress that nobody sees, and its only stage."""

    def stage(self, _name: str, _total: int | None, _unit: str, /) -> _Silent:
        return self

    def advance(self, _amount: int, /) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT = _Silent()


@contextmanager
def running_stage(progress: Progress, name: str, total: int | None, unit: str) -> Iterator[Stage]:
    """Open a stage for a block of work, and finish it however the block ends."""
    stage = progress.stage(name, total, unit)
    try:
        yield stage
    finally:
        stage.finish()
