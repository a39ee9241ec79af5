"""The observer that long work reports to. The library only calls it; ``cli`` draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a stage of work is. Calls may come from worker threads."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """A stage begins: its name, its size if known, and its unit (``"B"`` for bytes, ``"file"``, …)."""

    def advance(self, amount: int) -> None:
        """*amount* more units of the current stage are done."""

    def finish(self) -> None:
        """The current stage is over."""


class _Silent:
    def start(self, stage: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT: Progress = _Silent()
