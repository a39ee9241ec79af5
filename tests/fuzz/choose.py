"""Chooses what the corpus keeps of the inputs that were found: ``python -m tests.fuzz.choose [TARGET…]``.

The smallest inputs come first, and only those stay that reach a branch that neither the seeds nor others reach.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import coverage

from tests.fuzz.__main__ import FOUND
from tests.fuzz.seeds import CORPUS, made
from tests.fuzz.targets import TARGETS, guarded

# Bytes for each target: all of them together stay under 300 kB.
_ROOM = 45_000

Branch = tuple[str, int, int]


class Reach:
    """The branches of the package that inputs of a target reach."""

    def __init__(self, name: str) -> None:
        self._target = TARGETS[name]
        self._measured = coverage.Coverage(data_file=None, branch=True, source=["cfstools"], config_file=False)
        self._known: set[Branch] = set()

    def adds(self, data: bytes) -> bool:
        """Whether an input reaches what none before has; from then on it is known."""
        self._measured.erase()
        self._measured.start()
        try:
            guarded(self._target, data, watchdog=False)
        finally:
            self._measured.stop()
        found = self._measured.get_data()
        branches = {(name, *arc) for name in found.measured_files() for arc in found.arcs(name) or ()}
        new = branches - self._known
        self._known |= branches
        return bool(new)


def choose(name: str, found: Path) -> list[bytes]:
    """The inputs of a target to keep, the smallest first, of the corpus as it is and of what was found."""
    reach = Reach(name)
    for data in made(name):
        reach.adds(data)
    candidates = {path.read_bytes() for place in (CORPUS / name, found / name) for path in place.glob("*")}
    chosen, room = [], _ROOM
    for data in sorted(candidates, key=lambda data: (len(data), data)):
        if len(data) <= room and reach.adds(data):
            chosen.append(data)
            room -= len(data)
    return chosen


def main() -> None:
    """Put the chosen inputs into the corpus; what is there already stays, for it may have been a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.choose", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--found", type=Path, default=FOUND, help="where `make fuzz` has kept what it found")
    options = parser.parse_args()
    for name in options.targets or list(TARGETS):
        place = CORPUS / name
        place.mkdir(parents=True, exist_ok=True)
        chosen = choose(name, options.found)
        for data in chosen:
            (place / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        print(f"{name}: {len(chosen)} inputs, {sum(map(len, chosen))} bytes", flush=True)


if __name__ == "__main__":
    main()
