"""The Nth system call of a command fails, or the process is killed at it: nothing partial, and the next run completes.

``MKCFS_FAULTS=all`` in the environment takes every call and every error instead of a sample.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requirements
from tests.faults.harness import COMMANDS, ERRORS, EVERYTHING, ForkServer, Trial

STRIDE = 1 if EVERYTHING else 17
RANDOM_KILLS = 60 if EVERYTHING else 4


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """In memory where that is possible, for thousands of syncs."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="mkcfs-faults-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(work: Path) -> Iterator[ForkServer]:
    requirements.need_command("gcc")
    made = ForkServer(work)
    yield made
    made.close()


@pytest.fixture(params=sorted(COMMANDS))
def trial(request: pytest.FixtureRequest, server: ForkServer, work: Path) -> Iterator[Trial]:
    made = Trial(server, work, request.param)
    yield made
    made.close()


@pytest.fixture(params=sorted(name for name, command in COMMANDS.items() if not command.in_place))
def killed(request: pytest.FixtureRequest, server: ForkServer, work: Path) -> Iterator[Trial]:
    made = Trial(server, work, request.param)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_failing_call(trial: Trial) -> None:
    fired = failed = cases = 0
    for place, error in enumerate(ERRORS):
        # Another start for each error, so that the samples are of different calls.
        for nth in range(1 + place * STRIDE // len(ERRORS), trial.calls + 1, STRIDE):
            ended = trial.fail(nth, error)
            cases += 1
            fired += ended.fired
            failed += ended.code != 0
    print(f"{trial.calls} calls, {cases} cases, {fired} reached, {failed} made the command fail")
    assert fired > cases * 0.9
    assert failed > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_a_call(killed: Trial) -> None:
    kills = [killed.kill(nth) for nth in range(1, killed.calls + 1, STRIDE)]
    print(f"{len(kills)} kills")
    assert not killed.command.steady or all(ended.fired for ended in kills)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_a_random_moment(killed: Trial) -> None:
    chance, longest = random.Random(6), killed.seconds / 2
    kills = tries = 0
    while kills < RANDOM_KILLS:
        ended = killed.kill(seconds=chance.uniform(0.0, longest))
        tries += 1
        assert tries < 20 * RANDOM_KILLS, "the command is always done before it is killed"
        if ended.code == -9:
            kills += 1
        else:
            # What a run takes was measured once, and the machine may have been slower then.
            longest = max(longest * 0.9, 0.001)
    print(f"{kills} killed, {tries - kills} were done before")
