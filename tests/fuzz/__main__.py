"""Fuzzes the targets: ``python -m tests.fuzz [--seconds N] [--seed N] [TARGET…]``; a finding is kept as a file."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.fuzz import guided, unguided
from tests.fuzz.seeds import FINDINGS, seeds
from tests.fuzz.targets import TARGETS
from tests.requirements import REPOSITORY

FOUND = REPOSITORY / ".fuzz"


def keep(name: str, data: bytes) -> Path:
    """Keep a finding where the suite and the next runs meet it."""
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{name}-{random.Random(data).getrandbits(32):08x}"
    path.write_bytes(data)
    return path


def run(name: str, options: argparse.Namespace, seed: int) -> list[bytes]:
    """Fuzz one target, say what came of it in a line, and return the findings."""
    begin = time.monotonic()
    if options.unguided:
        plain = unguided.fuzz(name, seconds=options.seconds, seed=seed, count=options.executions)
        print(f"{name}: {plain.inputs} executions, {plain.taken} taken, {time.monotonic() - begin:.0f} s", flush=True)
        return [] if plain.finding is None else [plain.finding]
    done = guided.fuzz(
        name, seeds(name), seconds=options.seconds, seed=seed, executions=options.executions, found=options.found / name
    )
    print(
        f"{name}: {done.executions} executions, {done.coverage} branches covered by {done.inputs} inputs, "
        f"{done.memory} MiB, {time.monotonic() - begin:.0f} s, {len(done.findings)} findings",
        flush=True,
    )
    if done.findings:
        print(*guided.words(done.said), sep="\n", file=sys.stderr)
    return done.findings


def main() -> int:
    """Fuzz what was asked for; 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--executions", type=int, help="for each target, at most")
    parser.add_argument("--seed", type=int, help="default: the time")
    parser.add_argument("--found", type=Path, default=FOUND, help="where inputs that reach something new are kept")
    parser.add_argument("--unguided", action="store_true", help="inputs at random, without atheris")
    options = parser.parse_args()
    if not options.unguided and guided.missing():
        print("atheris cannot be had here: inputs are changed at random, not guided by coverage", file=sys.stderr)
        options.unguided = True
    seed = time.time_ns() if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    found = 0
    for name in options.targets or list(TARGETS):
        for data in run(name, options, seed):
            found += 1
            print(f"{name}: FINDING, kept as {keep(name, data)}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
