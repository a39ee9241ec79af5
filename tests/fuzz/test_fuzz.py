"""The corpus and some changed inputs go through every target; ``make fuzz`` takes longer."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.corpus import seeds
from tests.fuzz.targets import TARGETS, guarded


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    inputs = seeds(name)
    assert len(inputs) > 1
    taken = sum(guarded(TARGETS[name], data) for data in inputs)
    assert taken > 0, "the target takes none of its inputs: nothing is fuzzed behind its first check"


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs(name: str) -> None:
    runs, _, finding = fuzz(name, seconds=30, seed=1, count=150)
    assert finding is None
    assert runs > 20
