"""The corpus and some changed inputs go through every target; ``make fuzz`` takes longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.seeds import CORPUS, kept, made
from tests.fuzz.targets import TARGETS, guarded
from tests.fuzz.unguided import fuzz
from tests.requirements import REPOSITORY


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds(name: str) -> None:
    inputs = made(name)
    assert len(inputs) > 1
    taken = sum(guarded(TARGETS[name], data) for data in inputs)
    assert taken > 0, "the target takes none of its inputs: nothing is fuzzed behind its first check"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    paths = kept(name)
    assert paths
    for path in paths:
        try:
            guarded(TARGETS[name], path.read_bytes())
        except Exception as error:
            error.add_note(f"with {path}")
            raise


def test_the_corpus_is_small_and_all_of_it_is_used() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs(name: str) -> None:
    run = fuzz(name, seconds=30, seed=1, count=400)
    assert run.finding is None
    assert run.inputs > 20


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_what_it_must_never_do(name: str) -> None:
    first = (TARGETS[name].__doc__ or "").splitlines()[0]
    assert first.endswith(".")
    assert len(first.split()) > 8


def test_the_command_without_atheris() -> None:
    words = [sys.executable, "-m", "tests.fuzz", "--unguided", "--executions", "30", "envelope", "tar"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(",")[0] for line in done.stdout.splitlines()[1:]] == [
        "envelope: 30 executions",
        "tar: 30 executions",
    ]
