"""Flips bits of golden images: ``python -m tests.flips [--cases N] [--mounts N] [--seed N] [--first N]``."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from tests.flips.cases import Finding, Tally, damaged, try_case
from tests.flips.mounting import try_mounts

FINDINGS = Path(__file__).parent / "findings"
_EVERY = 10_000


def flip(seed: int, cases: range, place: Path, tally: Tally) -> list[str]:
    """Try the cases of these numbers; a line for each that is a finding, whose image is kept."""
    found = []
    (place / "store").mkdir()
    for number in cases:
        image = damaged(seed, number)
        try:
            try_case(place / "image", place / "store", image, tally)
        except Finding as error:
            FINDINGS.mkdir(exist_ok=True)
            path = FINDINGS / f"image-{random.Random(image).getrandbits(32):08x}"
            path.write_bytes(image)
            found.append(f"seed {seed}, case {number}: {error}: kept as {path}")
            print(found[-1], flush=True)
        if tally.cases % _EVERY == 0:
            print(tally, flush=True)
    return found


def main() -> int:
    """Flip as often as asked for; 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.flips", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="through inspect, verify and dump")
    parser.add_argument("--mounts", type=int, help="through the kernel, default: one for 200 cases; needs root")
    parser.add_argument("--seed", type=int, help="default: the time")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one")
    options = parser.parse_args()
    seed = time.time_ns() if options.seed is None else options.seed
    mounts = options.mounts if options.mounts is not None else options.cases // 200 if os.geteuid() == 0 else 0
    print(f"seed {seed}", flush=True)
    tally, begin = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        found = flip(seed, range(options.first, options.first + options.cases), Path(name), tally)
    print(f"{tally}; {len(found)} findings in {time.monotonic() - begin:.0f} s", flush=True)
    if mounts:
        place = Path(tempfile.mkdtemp())  # stays if the kernel hangs in it
        try:
            done = try_mounts(seed, mounts, max(1, options.cases // mounts), place)
            print(f"the kernel mounted {done.mounted} of {done.tried} damaged images")
        except Finding as error:
            found.append(str(error))
            print(f"{error}: see {place}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
