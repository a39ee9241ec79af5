"""Progress bars on standard error, shown only for work that takes more than half a second."""

from __future__ import annotations

import sys
from threading import Lock
from typing import NoReturn

from tqdm import tqdm

from cfstools.text import printable

_DELAY = 0.5


class Bars:
    """Draws the current stage as one bar; safe to be advanced from several threads."""

    def __init__(self, *, color: bool) -> None:
        self._color = color
        self._bar: tqdm[NoReturn] | None = None
        self._lock = Lock()

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin a stage; a stage still running is closed first."""
        self.finish()
        self._bar = tqdm(
            desc=printable(stage),
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            unit_divisor=1024 if unit == "B" else 1000,
            delay=_DELAY,
            leave=False,
            file=sys.stderr,
            colour="green" if self._color else None,
            dynamic_ncols=True,
        )

    def advance(self, amount: int) -> None:
        """Move the bar on."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(amount)

    def finish(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
