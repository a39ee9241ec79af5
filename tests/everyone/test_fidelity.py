"""The comparison of trees finds every kind of difference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fidelity
from tests.odd_tree import make_odd_tree
from tests.users import User

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The odd tree: never change it."""
    return make_odd_tree(tmp_path_factory.mktemp("fidelity") / "odd")


def copy_of(tree: Path, place: Path) -> Path:
    subprocess.run(["cp", "-a", tree, place], check=True)
    return place


def test_a_copy_is_the_same(odd: Path, tmp_path: Path) -> None:
    seen = fidelity.look(bytes(odd))
    assert len(seen) > 1400
    assert {inode.kind for inode in seen.values()} == set(fidelity._KINDS.values())
    assert fidelity.compare(seen, fidelity.look(bytes(copy_of(odd, tmp_path / "copy")))) == []


def replaced(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(0, status.st_mtime_ns))


ACL = "system.posix_acl_access"
CHANGES: dict[str, tuple[str, Callable[[Path], object], set[str]]] = {
    "mode": ("inline", lambda path: path.chmod(0o640), {"mode"}),
    "owner": ("inline", lambda path: os.chown(path, 77, -1), {"uid"}),
    "group": ("link", lambda path: os.lchown(path, -1, 78), {"gid"}),
    "nanosecond": ("times/file-5", lambda path: os.utime(path, ns=(0, -86_400_000_000_000)), {"mtime_ns"}),
    "content": ("external", replaced, {"content"}),
    "attribute": ("external", lambda path: os.setxattr(path, "user.one", b""), {"xattr user.one"}),
    "list": ("attributes/own-acl", lambda path: os.removexattr(path, ACL), {f"xattr {ACL}"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(odd: Path, tmp_path: Path, change: str) -> None:
    path, action, expected = CHANGES[change]
    other = copy_of(odd, tmp_path / "copy")
    action(other / path)
    found = fidelity.compare(fidelity.look(bytes(odd)), fidelity.look(bytes(other)))
    assert {difference.path for difference in found} == {path}
    assert {difference.what for difference in found} >= expected


def test_names_and_links_are_found(odd: Path, tmp_path: Path) -> None:
    other = copy_of(odd, tmp_path / "copy")
    (other / "links" / "deeper" / "fifo-0").unlink()
    shutil.copy2(other / "links" / "inline", other / "new")
    expected = fidelity.look(bytes(odd))
    found = fidelity.compare(expected, fidelity.look(bytes(other)))
    assert {(each.path, each.what) for each in found} >= {
        ("links/deeper/fifo-0", "missing"),
        ("new", "extra"),
        ("links/fifo", "nlink"),
        ("links/fifo", "names"),
    }
    allowed: dict[str, fidelity.Allowed] = {
        "fifos": lambda difference, inode: inode is not None and inode.kind == "fifo",
        "directories": lambda difference, inode: inode is not None and inode.kind == "directory",
        "never": lambda difference, inode: False,
    }
    left, counts = fidelity.subtract(found, expected, allowed)
    assert [(each.path, each.what) for each in left] == [("new", "extra")]
    assert counts == {"fifos": 5, "directories": 2, "never": 0}


def test_another_user_looks(user: User, odd: Path) -> None:
    place = copy_of(odd, user.home / "odd")
    place.chmod(0o755)
    seen = fidelity.read(user.module("tests.fidelity", "look", place).stdout)
    assert seen["modes/file-0000"].content == "!EACCES"
    assert seen["modes/directory-0000"].content == "!EACCES"
    assert "trusted.secret" not in seen["attributes/trusted"].xattrs
    mine = fidelity.look(bytes(place))
    kinds = {difference.what for difference in fidelity.compare(mine, seen)}
    assert kinds <= {"content"} | {what for what in kinds if what.startswith("xattr ")}


def test_as_a_program(odd: Path, tmp_path: Path) -> None:
    other = copy_of(odd, tmp_path / "copy")
    command = [sys.executable, "-m", "tests.fidelity", "compare", str(odd), str(other)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
    (other / "empty").chmod(0o777)
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout.count(b"\n")) == (1, 1)
