"""Golden images with flipped bits and bytes, and what becomes of them in the verbs that read images."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cfstools.api.inspect import inspect
from cfstools.api.listing import dump
from cfstools.api.verify import verify
from cfstools.errors import CfsError
from tests.bounds import bounded
from tests.compat.test_golden import ROWS


class Finding(AssertionError):
    """A verb did what it must not, whatever the image is."""


@dataclass
class Tally:
    """What the cases so far came to, and the most that a single call has cost."""

    cases: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0

    def __str__(self) -> str:
        taken = ", ".join(f"{name} took {count}" for name, count in self.taken.items())
        return f"{self.cases} cases: {taken}; at most {self.seconds:.3f} s and {self.memory / 2**20:.1f} MiB for a call"


@cache
def golden_images() -> list[bytes]:
    """The images of the golden dumps; tests/compat shows that the reference tool makes the same."""
    return sorted({row.image() for row in ROWS})


def damaged(seed: int, number: int) -> bytes:
    """The image of a case: a golden one in which one to eight places are something else."""
    chance = random.Random(f"{seed} {number}")
    made = bytearray(chance.choice(golden_images()))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = _place(made, chance)
        if chance.randrange(3):
            made[at] ^= 1 << chance.randrange(8)
        else:
            made[at] = chance.choice((0, 0xFF, chance.randrange(256)))
    return bytes(made)


def _place(image: bytes | bytearray, chance: random.Random) -> int:
    """Any place, or the next one that holds something: much of an image is padding."""
    at = chance.randrange(len(image))
    if chance.randrange(2):
        while not image[at] and at + 1 < len(image):
            at += 1
    return at


def _inspect(path: bytes, _store: bytes) -> bool:
    json.dumps(inspect(path).to_dict())
    return True


def _verify(path: bytes, store: bytes) -> bool:
    report = verify(path, stores=[store])
    json.dumps(report.to_dict())
    for text in (*(problem.what for problem in report.problems), *report.warnings):
        assert "\n" not in text, f"a problem of several lines: {text!r}"
    return report.ok


def _dump(path: bytes, _store: bytes) -> bool:
    return all(line for line in dump([path]))


VERBS: dict[str, Callable[[bytes, bytes], bool]] = {"inspect": _inspect, "verify": _verify, "dump": _dump}


def try_case(path: Path, store: Path, image: bytes, tally: Tally) -> None:
    """Give an image to every verb by way of the file *path*. Raises Finding."""
    path.write_bytes(image)
    tally.cases += 1
    for name, verb in VERBS.items():
        try:
            tally.taken[name] = tally.taken.get(name, 0) + _call(verb, path, store, len(image), tally)
        except Exception as error:
            raise Finding(f"{name}: {type(error).__name__}: {error}") from error


def _call(verb: Callable[[bytes, bytes], bool], path: Path, store: Path, size: int, tally: Tally) -> bool:
    refusal: CfsError | None = None
    taken = False
    with bounded(size) as cost:
        try:
            taken = verb(bytes(path), bytes(store))
        except CfsError as error:
            refusal = error
    assert "\n" not in str(refusal), f"an error of several lines: {refusal!r}"
    tally.seconds, tally.memory = max(tally.seconds, cost.seconds), max(tally.memory, cost.memory)
    return taken
