"""The overlay of users shows the odd tree as the kernel's mount does, but for what its report counts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import requirements
from tests.fidelity import Difference, Seen, Tree, compare, look, read
from tests.mkcfs import mkcfs
from tests.odd_tree import make_odd_tree
from tests.requirements import REPOSITORY
from tests.users import User, Word

pytestmark = [pytest.mark.root, pytest.mark.kernel]

MKCFS = (sys.executable, "-m", "cfstools.cli")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tree]:
    """A directory with the image of the odd tree and its store, and what root sees in a mount by the kernel."""
    requirements.need_mounts("erofs", "overlay")
    requirements.need_overlay_for_users()
    top = tmp_path_factory.mktemp("odd")
    make_odd_tree(top / "tree")
    mkcfs("build", top / "tree", top / "image.cfs", "--store", top / "store")
    (top / "mnt").mkdir()
    words: list[Word] = ["mount", top / "image.cfs", top / "mnt", "--store", top / "store", "--method", "kernel"]
    mkcfs(*words, "-o", "suid,dev")
    try:
        expected = look(bytes(top / "mnt"))
    finally:
        mkcfs("umount", top / "mnt")
    return top, expected


def kind_of(difference: Difference, inode: Seen | None) -> str:
    """The name under which a report counts a difference."""
    what = difference.what
    if what == "missing" and inode is not None and inode.kind.endswith("device"):
        return "devices"
    if what in ("uid", "gid"):
        return "owners"
    if what.startswith("xattr trusted."):
        return "trusted attributes"
    if what.startswith("xattr system.posix_acl_"):
        return "access control lists"
    if what == "xattr security.capability":
        return "file capabilities"
    return f"{difference.path}: {what}"


def above(path: str) -> list[str]:
    """The path itself and the directories that it leads through."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


@pytest.mark.parametrize("choice", ["sub", "root", "same"])
def test_the_odd_tree(user: User, made: tuple[Path, Tree], choice: str) -> None:
    if choice == "sub" and not user.account.ranges:
        requirements.missing("needs newuidmap and ranges of subordinate ids")
    top, expected = made
    user.place.root("cp", "-r", top / "image.cfs", top / "store", user.place.top)
    user.place.root("chmod", "-R", "a+rX", user.place.top / "store", user.place.top / "image.cfs")
    user.place.close_fuse()
    shown = user.home / "mnt"
    shown.mkdir()
    user.give(shown)
    store = user.place.top / "store"
    words: list[Word] = [
        *MKCFS,
        "run",
        user.place.top / "image.cfs",
        shown,
        "--store",
        store,
        "--map",
        choice,
        "--json",
    ]
    command: list[Word] = ["--", sys.executable, "-m", "tests.fidelity", "look", shown]
    done = user.run(*words, *command, env={"PYTHONPATH": str(REPOSITORY)})
    lines, _, document = done.stdout.partition(b"\n{\n")
    report = json.loads(b"{\n" + document)
    assert (report["method"], report["map"]) == ("overlay", choice)
    differences = compare(expected, read(lines + b"\n"))
    if choice == "same":
        # Whoever is no root there is kept out by modes.
        closed = {one.path for one in differences if one.found == "!EACCES"}
        differences = [one for one in differences if closed.isdisjoint(above(one.path))]
    found = Counter(kind_of(one, expected.get(one.path)) for one in differences)
    counted = {one["what"]: one["count"] for one in report["left_out"]}
    assert found.keys() == counted.keys(), (found, counted)
    assert {"trusted attributes", "devices", "owners"} <= counted.keys()
    # Hard links are counted once.
    devices = {one.path for one in differences if kind_of(one, expected.get(one.path)) == "devices"}
    names = {expected[path].names or (path,) for path in devices}
    assert counted["devices"] == len(names)
