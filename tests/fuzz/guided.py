"""The driver that looks where inputs lead: libFuzzer by way of atheris, with our changes beside its own.

libFuzzer ends the process it runs in, so :func:`fuzz` starts one for each target: ``python -m tests.fuzz.guided TARGET
FLAG… DIRECTORY…`` with the flags and directories of libFuzzer.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.bounds import HANG, SANITIZED
from tests.requirements import REPOSITORY

# Names the library that a sanitized extension needs from the start (tools/check-native).
_PRELOAD = "MKCFS_FUZZ_PRELOAD"
# Longer inputs find nothing that shorter ones do not.
_LARGEST = 64 << 10
# What a single allocation may at most ask for, touched or not, with all else there is in the process.
_ADDRESS_SPACE = 4 << 30
_MIB_IN_USE = 1024

_STATISTICS = {
    "executions": re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE),
    "coverage": re.compile(r"^#\d+.* cov: (\d+)", re.MULTILINE),
    "inputs": re.compile(r"^#\d+.* corp: (\d+)", re.MULTILINE),
    "memory": re.compile(r"^stat::peak_rss_mb:\s+(\d+)", re.MULTILINE),
}


class Run(NamedTuple):
    """What libFuzzer says at its end: executions, branches covered, inputs kept for them, MiB at most; and findings."""

    executions: int
    coverage: int
    inputs: int
    memory: int
    findings: list[bytes]
    said: str


def missing() -> bool:
    """Whether there is no atheris here."""
    return importlib.util.find_spec("atheris") is None


def fuzz(name: str, seeds: list[bytes], *, seconds: int, seed: int, executions: int | None, found: Path) -> Run:
    """Run one target in a process of its own until the time is over, or the number of executions is reached.

    Inputs that reach something new are kept in *found*, where the next run goes on.
    """
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        start, artifacts = Path(place) / "seeds", Path(place) / "artifacts"
        artifacts.mkdir()
        start.mkdir()
        for data in seeds:
            (start / hashlib.sha256(data).hexdigest()).write_bytes(data)
        flags = {
            "max_total_time": seconds,
            "runs": -1 if executions is None else executions,
            "seed": seed % (1 << 32) or 1,
            "max_len": _LARGEST,
            "timeout": HANG,
            "rss_limit_mb": _MIB_IN_USE,
            "print_final_stats": 1,
            "artifact_prefix": f"{artifacts}/",
        }
        arguments = [f"-{flag}={value}" for flag, value in flags.items()]
        command = [sys.executable, "-m", "tests.fuzz.guided", name, *arguments, str(found), str(start)]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "LD_PRELOAD": os.environ.get(_PRELOAD, "")},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        findings = [path.read_bytes() for path in sorted(artifacts.iterdir())]
    said = done.stdout + done.stderr
    if done.returncode and not findings:
        raise RuntimeError(f"{name}: exit code {done.returncode} without a finding: {' | '.join(words(said))}")
    return Run(**{key: _last(form, said) for key, form in _STATISTICS.items()}, findings=findings, said=said)


def words(said: str) -> list[str]:
    """What libFuzzer said, without its progress."""
    return [line for line in said.splitlines() if line.strip() and not line.startswith(("INFO:", "WARNING:", "#"))]


def _last(form: re.Pattern[str], said: str) -> int:
    numbers = form.findall(said)
    return int(numbers[-1]) if numbers else 0


def main() -> None:
    """Hand a target to libFuzzer, which never comes back."""
    # Not there for the type checker, installed or not.
    atheris: Any = importlib.import_module("atheris")
    name, *arguments = sys.argv[1:]
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    # What is imported already, it cannot see into.
    assert "cfstools" not in sys.modules
    with atheris.instrument_imports(include=["cfstools"]):
        from cfstools import native
        from tests.fuzz.targets import TARGETS, guarded
    assert not SANITIZED or native.IMPLEMENTATION == "native", "the extension was not loaded"
    from tests.fuzz.mutate import TAR_TARGETS, fix_tar, mutated

    target = TARGETS[name]
    # What this is started with last are the seeds.
    others = [path.read_bytes() for path in sorted(Path(arguments[-1]).iterdir())]

    def run(data: bytes) -> None:
        # libFuzzer has a watchdog of its own, which also keeps the input.
        guarded(target, data, watchdog=False)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.randrange(2):
            return mutated(name, data, chance, others)[:largest]
        made: bytes = atheris.Mutate(data, largest)
        return fix_tar(made)[:largest] if name in TAR_TARGETS else made

    atheris.Setup([sys.argv[0], *arguments], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
