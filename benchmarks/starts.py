"""How many modules a verb loads, Python's own included: a count that a busy machine does not change.

A module takes a third of a millisecond on the average, so the limits keep the starts short. They are what was counted
when they were set, and a few more. What a verb must not load is in ``tests/cli/test_startup.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.runner import MKCFS, Count, Figure, build_image

# The words of each call, by the place of the image, the store and the tree; and the limit.
_VERBS = (
    (["--version"], 70),
    (["ls", "{image}"], 130),
    (["dump", "{image}"], 130),
    (["objects", "{image}"], 130),
    (["objects", "--missing", "--store", "{store}", "{image}"], 142),
    (["verify", "--shallow", "{image}", "--store", "{store}"], 169),
    (["inspect", "{image}"], 154),
    (["cat", "{image}", "/file", "--store", "{store}"], 160),
    (["verify", "{image}", "--store", "{store}"], 169),
    (["store", "gc", "--dry-run", "--store", "{store}", "--keep", "{image}"], 158),
    (["store", "stat", "--store", "{store}"], 140),
    (["build", "{tree}", "--print-digest-only"], 164),
)


def counts(scratch: Path) -> Iterator[Count]:
    """Yield a count for each verb, with an image of one file."""
    place = scratch / "starts"
    where = {name: str(place / name) for name in ("image", "store", "tree")}

    def modules(words: list[str], limit: int) -> Figure:
        if not place.exists():
            (place / "tree").mkdir(parents=True)
            (place / "tree/file").write_bytes(bytes(5000))
            build_image(place / "tree", place / "image", "--store", where["store"])
        return Figure(count([*MKCFS, *(word.format(**where) for word in words)]), "modules", limit)

    for words, limit in _VERBS:
        name = " ".join(word for word in words if "{" not in word and not word.startswith(("--store", "--keep", "/")))
        yield Count(f"{name}: loads", partial(modules, words, limit))


def count(command: list[str]) -> int:
    """Return how many modules a program in Python loads. Raises CalledProcessError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    return sum(line.startswith(b"import time:") for line in done.stderr.splitlines()) - 1  # its head
