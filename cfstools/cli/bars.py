"""Progress bars on standard error, shown only for work that takes more than half a second."""

from __future__ import annotations

import sys
from threading import Lock
from typing import NoReturn

from tqdm import tqdm

from cfstools.text import printable

_DELAY = 0.5


class Bars:
    """Draws one bar for each stage; stages that run at the same time have a line each."""

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def stage(self, name: str, total: int | None, unit: str, /) -> Bar:
        """Open a stage."""
        return Bar(
            tqdm(
                desc=printable(name),
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
        )


class Bar:
    """The bar of one stage; safe to be advanced from several threads."""

    def __init__(self, drawn: tqdm[NoReturn]) -> None:
        self._drawn: tqdm[NoReturn] | None = drawn
        self._lock = Lock()

    def advance(self, amount: int, /) -> None:
        """Move the bar on."""
        with self._lock:
            if self._drawn is not None:
                self._drawn.update(amount)

    def finish(self) -> None:
        """Remove the bar from the screen."""
        with self._lock:
            if self._drawn is not None:
                self._drawn.close()
                self._drawn = None
