"""The driver that needs nothing: changed inputs at random, the same for the same seed."""

from __future__ import annotations

import random
import time
import traceback
from typing import NamedTuple

from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, guarded


class Run(NamedTuple):
    """How many inputs, how many of them were taken, and the first that is a finding."""

    inputs: int
    taken: int
    finding: bytes | None


def fuzz(name: str, *, seconds: float, seed: int, count: int | None = None) -> Run:
    """Run one target until the time is over, *count* inputs are through, or there is a finding."""
    chance, start = random.Random(seed), seeds(name)
    target, end = TARGETS[name], time.monotonic() + seconds
    runs = taken = 0
    while time.monotonic() < end and (count is None or runs < count):
        data = mutated(name, chance.choice(start), chance, start)
        runs += 1
        try:
            taken += guarded(target, data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            return Run(runs, taken, data)
    return Run(runs, taken, None)
