"""Two builds into one store at the same time, alone and with repairs going on: nothing is lost or torn.

``MKCFS_RACE_ROUNDS`` says how many rounds each builder makes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.test_store_race import ROUNDS, start
from tests.mkcfs import mkcfs
from tests.store.conftest import assert_whole, listing

FILES = 20

# Builds a new image each round, half of which its rival builds in the same round too, and keeps all of them.
BUILDER = """
import os, sys
from cfstools.api.build import build
from cfstools.api.listing import objects
from cfstools.linux import files
place, name, rounds, kind = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if kind == "named":
    files.open_tmpfile = lambda *_args: None
store, source = place + b"/store", place + b"/" + name
os.mkdir(source)
images = []
for number in range(rounds):
    for file in range(FILES):
        with open(source + b"/%d" % file, "wb") as out:
            out.write(b"%d %d %s" % (number, file, name if file % 2 else b"") * 50)
    images.append(place + b"/images/%s%d" % (name, number))
    build(source, images[-1], stores=[store])
    missing = objects(images[-3:], missing_from=[store])
    if missing:
        sys.exit(f"round {number}: {len(missing)} objects are missing")
""".replace("FILES", str(FILES))

REPAIRER = """
import os, sys
from cfstools.api.store_fsck import fsck
from cfstools.store.care.repair import RepairOptions
place = os.fsencode(sys.argv[1])
os.makedirs(place + b"/store", exist_ok=True)
settled = rounds = 0
while not os.path.exists(place + b"/stop"):
    # What a killed writer leaves: there is always something to remove.
    os.makedirs(place + b"/store/.mkcfs-tmp-%016x" % rounds)
    options = RepairOptions(replace=True, remove_damaged=True, remove_temporaries=True)
    report = fsck(place + b"/store", now=0.0, options=options, threads=1)
    if report.remaining:
        sys.exit(f"round {rounds}: {report.problems}")
    settled += report.settled
    rounds += 1
print(rounds, settled)
"""


@pytest.mark.parametrize("kinds", [("anonymous", "anonymous"), ("named", "anonymous"), ("named", "named")])
@pytest.mark.parametrize("repairs", [False, True])
def test_two_builds(tmp_path: Path, kinds: tuple[str, str], repairs: bool) -> None:
    (tmp_path / "images").mkdir()
    repairer = start(REPAIRER, tmp_path) if repairs else None
    builders = [start(BUILDER, tmp_path, name, str(ROUNDS), kind) for name, kind in zip("ab", kinds, strict=True)]
    complaints = [builder.communicate()[1] for builder in builders]
    (tmp_path / "stop").touch()
    if repairer is not None:
        said, complaint = repairer.communicate()
        complaints.append(complaint)
        assert complaints == [""] * 3
        assert int(said.split()[1]) > 0, "nothing was repaired between the builds"
    assert not any(complaints)
    # What both build is there once.
    assert assert_whole(tmp_path / "store") == ROUNDS * (FILES // 2) * 3
    assert not [name for name in listing(tmp_path / "store") if name.startswith(".mkcfs-tmp")]
    images = [str(path) for path in (tmp_path / "images").iterdir()]
    assert len(images) == 2 * ROUNDS
    assert not mkcfs("objects", "--missing", "--store", tmp_path / "store", *images).stdout
