"""How many answers of one origin may be open at once."""

from __future__ import annotations

from collections import Counter
from threading import Condition, get_ident
from typing import NamedTuple

from cfstools.threadpool import give_up_if_stopped
from cfstools.transport.url import Origin


class Slot(NamedTuple):
    """A place that a thread has."""

    origin: Origin
    holder: int


class Slots:
    """So many places for each origin. A thread that has one gets more without waiting, so none waits for itself."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: Counter[Origin] = Counter()
        self._holders: Counter[int] = Counter()
        self._changed = Condition()

    def take(self, origin: Origin) -> Slot:
        """Wait for a place; give it back with :meth:`give`, from whichever thread."""
        me = get_ident()
        with self._changed:
            while self._taken[origin] >= self.limit and not self._holders[me]:
                self._changed.wait(0.5)
                give_up_if_stopped()
            self._taken[origin] += 1
            self._holders[me] += 1
        return Slot(origin, me)

    def give(self, slot: Slot) -> None:
        """Give a place back."""
        with self._changed:
            self._taken[slot.origin] -= 1
            self._holders[slot.holder] -= 1
            if not self._holders[slot.holder]:
                del self._holders[slot.holder]
            self._changed.notify()

    def halve(self) -> None:
        """From now on there are half as many: the server has too much to do."""
        with self._changed:
            self.limit = max(1, self.limit // 2)
