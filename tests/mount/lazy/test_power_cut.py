"""What a power cut in the middle of a fill leaves: every object that is visible is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import requirements
from tests.store.conftest import assert_whole, listing, loop_mount
from tests.store.test_power_cut import CUTS, INNER, power_cuts

# Reads one object after another through a lazy store, small ones and some that go to files, without end; "careless"
# leaves out what makes their contents durable.
FILL = """
import hashlib, os, sys
from cfstools.linux import files
from cfstools.mount.lazy import shelf
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.options import LazyOptions
from cfstools.sources.places import store_objects
from cfstools.store import DirectoryStore
from cfstools.transport.memory import MemoryTarget
from cfstools.verity import digest_bytes, object_path
if sys.argv[2] == "careless":
    files.syncfs = os.fsync = lambda _fd: None
shelf.BATCH_SECONDS = 0.1
number = 0
with DirectoryStore(sys.argv[1] + "/store", create=True) as store:
    while True:
        contents = [
            hashlib.shake_128(b"%d" % (number + at)).digest(300_000 if at % 50 == 0 else 9000) for at in range(400)
        ]
        number += 400
        objects = {digest_bytes(data): data for data in contents}
        place = MemoryTarget({object_path(digest).decode(): data for digest, data in objects.items()})
        sizes = {digest: len(data) for digest, data in objects.items()}
        options = LazyOptions(sync="batch", readahead=8)
        with Filler([store_objects(place)], sizes, local=[store], store=store, options=options) as lazy:
            for digest, data in objects.items():
                found = lazy.open(digest)
                assert found.read(0, 1 << 20) == data
                found.close()
"""


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Path]:
    """A file system that clones files."""
    requirements.need_mounts()
    requirements.need_command("mkfs.btrfs", "mkfs.ext4", "mkfs.xfs")
    yield from loop_mount(tmp_path, "btrfs", 4 << 30)


def filled(disks: Path, kind: str, manner: str, work: Path) -> Iterator[Path]:
    """The store after each power cut."""
    for place, _ in power_cuts(disks, kind, FILL, manner, work=work, before=lambda: None):
        yield place / "store"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(INNER))
def test_only_whole_objects_are_visible_after_a_power_cut(disks: Path, kind: str, tmp_path: Path) -> None:
    counts = []
    for store in filled(disks, kind, "careful", tmp_path):
        counts.append(assert_whole(store) if store.exists() else 0)
        if store.exists():
            assert all(len(name.partition("/")[0]) == 2 for name in listing(store)), "a temporary has a name"
    assert len(counts) == CUTS
    assert counts[-1] > 0, "nothing was published before the last cut: this proved nothing"


@pytest.mark.root
@pytest.mark.slow
def test_a_careless_fill_is_found_out(disks: Path, tmp_path: Path) -> None:
    """Without the sync before names are given, the same cuts do leave torn objects: the test above can fail."""
    torn = 0
    for store in filled(disks, "ext4", "careless", tmp_path):
        if store.exists():
            try:
                assert_whole(store)
            except AssertionError:
                torn += 1
    assert torn > 0
