"""Builds and collections at the same time: what a finished image needs is always there.

``MKCFS_RACE_ROUNDS`` says how many rounds each builder makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.store.conftest import assert_whole

ROUNDS = int(os.environ.get("MKCFS_RACE_ROUNDS", "20"))

# Builds one of three images over and over, which share half of their files, and looks whether all it needs is there.
BUILDER = """
import os, sys
from cfstools.api.build import build
from cfstools.api.listing import objects
place, name, rounds = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), int(sys.argv[3])
store, image = place + b"/store", place + b"/images/" + name
for number in range(rounds):
    if number % 3 == 2:
        # Now even what all share may be collected, and is found or made anew by the next.
        build(place + b"/nothing", image)
    build(place + b"/source%d" % (number % 3), image, stores=[store])
    missing = objects([image], missing_from=[store])
    if missing:
        sys.exit(f"round {number}: {len(missing)} objects are missing")
"""

COLLECTOR = """
import os, sys
from cfstools.api.store_gc import gc
place = os.fsencode(sys.argv[1])
removed = rounds = 0
while not os.path.exists(place + b"/stop"):
    removed += len(gc(place + b"/store", keep_dirs=[place + b"/images"], keep_nothing=True, now=0.0, grace=0).removed)
    rounds += 1
print(rounds, removed)
"""


def start(program: str, *words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_builds_and_collections(tmp_path: Path) -> None:
    for number in range(3):
        source = tmp_path / f"source{number}"
        source.mkdir()
        for file in range(30):
            (source / str(file)).write_bytes(b"%d %d" % (file, number if file % 2 else 0) * 50)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "store").mkdir()
    collectors = [start(COLLECTOR, tmp_path) for _ in range(2)]
    builders = [start(BUILDER, tmp_path, name, str(ROUNDS)) for name in ("a.cfs", "b.cfs")]
    complaints = [builder.communicate()[1] for builder in builders]
    (tmp_path / "stop").touch()
    ends = [collector.communicate() for collector in collectors]
    assert [*complaints, *(error for _, error in ends)] == [""] * 4
    assert sum(int(said.split()[1]) for said, _ in ends) > 0, "no collection came between the builds"
    assert_whole(tmp_path / "store")
