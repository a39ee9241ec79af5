"""The observer to which long work reports progress. The library only calls it; ``cli`` draws it.

Long work opens a stage, advances it and finishes it. Several stages may be open at the same time, for example
downloading and hashing; calls may come from any thread. A function that only advances takes a :class:`Stage` that its
caller has opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stage(Protocol):
    """One piece of work in progress."""

    def advance(self, amount: int, /) -> None:
        """Report *amount* more units as done."""

    def finish(self) -> None:
        """Report the end of the work, successful or not."""


class Progress(Protocol):
    """Observes the stages of long work."""

    def stage(self, name: str, total: int | None, unit: str, /) -> Stage:
        """Open a stage with its name, its total if known, and its unit (``"B"`` for bytes, ``"file"``, …)."""


class _Silent:
    """A progress observer that ignores everything, and its only stage."""

    def stage(self, _name: str, _total: int | None, _unit: str, /) -> _Silent:
        return self

    def advance(self, _amount: int, /) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT = _Silent()


@contextmanager
def running_stage(progress: Progress, name: str, total: int | None, unit: str) -> Iterator[Stage]:
    """Open a stage for the block and finish it at its end, also after an exception."""
    stage = progress.stage(name, total, unit)
    try:
        yield stage
    finally:
        stage.finish()
