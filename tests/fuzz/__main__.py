"""Fuzzes the targets: ``python -m tests.fuzz [--seconds N] [--seed N] [TARGET…]``; a finding is kept as a file."""

from __future__ import annotations

import argparse
import random
import time
import traceback

from tests.fuzz.corpus import FINDINGS, seeds
from tests.fuzz.mutate import change, fix_tar
from tests.fuzz.targets import TARGETS, guarded


def fuzz(name: str, *, seconds: float, seed: int, count: int | None = None) -> tuple[int, int, bytes | None]:
    """Run one target until the time is over; how many inputs, how many it took, and the first that is a finding."""
    chance, start = random.Random(seed), seeds(name)
    target, end = TARGETS[name], time.monotonic() + seconds
    runs = taken = 0
    while time.monotonic() < end and (count is None or runs < count):
        data = change(chance.choice(start), chance, start)
        if name in {"tar", "layer"}:
            data = fix_tar(data)
        runs += 1
        try:
            taken += guarded(target, data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            return runs, taken, data
    return runs, taken, None


def main() -> int:
    """Fuzz what was asked for; 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: the time")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    seed = time.time_ns() if options.seed is None else options.seed
    found = 0
    for name in names:
        runs, taken, data = fuzz(name, seconds=options.seconds, seed=seed)
        print(f"{name}: {runs} inputs, {taken} taken, seed {seed}", flush=True)
        if data is not None:
            found += 1
            FINDINGS.mkdir(exist_ok=True)
            path = FINDINGS / f"{name}-{random.Random(data).getrandbits(32):08x}"
            path.write_bytes(data)
            print(f"{name}: FINDING, kept as {path}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
