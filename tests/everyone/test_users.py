"""The users that other tests run as are what they claim to be."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

from tests import requirements
from tests.mounts import mounts_below, unmount_below
from tests.users import Place, User

SUBORDINATE = "exec setpriv --reuid 77 --clear-groups sh -c 'printf ready; sleep 1002; :'"
STATUS = (
    "import re; print(dict(re.findall(r'(Cap\\w+|NoNewPrivs|Uid|Groups):\\t(.*)', open('/proc/self/status').read())))"
)


def test_an_ordinary_user(user: User) -> None:
    entry = pwd.getpwnam(user.account.name)
    assert (entry.pw_uid, entry.pw_gid) == (user.uid, user.gid)
    status = eval(user.run(sys.executable, "-c", STATUS).stdout)
    assert status["Uid"].split() == [str(user.uid)] * 4
    assert status["Groups"].strip() in {"", str(user.gid)}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "0"  # or fusermount3 and newuidmap get no rights
    assert user.mkcfs("--version").stdout.startswith(b"mkcfs")
    assert user.run("mkcfs", "--version").stdout.startswith(b"mkcfs")
    assert user.shell("touch a && pwd && stat -c %u a").stdout.decode().split() == [str(user.home), str(user.uid)]
    assert user.run("cat", "/etc/shadow", check=False).code == 1


def test_ranges_of_subordinate_ids(user: User) -> None:
    if shutil.which("newuidmap"):
        assert sum(count for _, count in user.account.ranges) >= 65_536
        assert user.run("unshare", "--user", "--map-auto", "--map-root-user", "id", "-u").stdout == b"0\n"


def test_a_stranger_is_kept_out(user: User, stranger: User) -> None:
    assert user.uid != stranger.uid
    (user.temporary / "secret").write_bytes(b"")
    assert stranger.run("ls", user.temporary, check=False).code == 2
    assert stranger.run("touch", stranger.temporary / "own").code == 0


def test_the_fuse_device_opens_and_closes(user: User) -> None:
    device = Path("/dev/fuse").stat() if Path("/dev/fuse").exists() else None
    opening = [sys.executable, "-c", "import os; os.open('/dev/fuse', os.O_RDWR)"]
    assert user.run(*opening, check=False).code == 0
    user.place.close_fuse()
    assert b"Permission denied" in user.run(*opening, check=False).stderr
    user.place.open_fuse()
    assert user.run(*opening, check=False).code == 0
    after = Path("/dev/fuse").stat() if Path("/dev/fuse").exists() else None
    assert (device and device.st_mode) == (after and after.st_mode)


def test_mounts_are_of_the_place(user: User) -> None:
    user.place.root("mount", "-t", "tmpfs", "tmpfs", user.home)
    assert user.place.new_mounts() == [f"tmpfs {user.home}"]
    assert user.run("findmnt", "-no", "FSTYPE", user.home).stdout == b"tmpfs\n"
    assert mounts_below(user.home.parent) == []
    user.place.root("umount", user.home)
    assert user.place.new_mounts() == []


def test_mounts_of_other_tests_do_not_stay_in_the_place(tmp_path: Path) -> None:
    requirements.need_mounts()
    tmp_path.chmod(0o711)
    top, other = tmp_path / "place", tmp_path / "a 1\\b"
    top.mkdir()
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
    try:
        place = Place(top)
        seen = place.mounts()
        place.close()
        assert mounts_below(tmp_path) == [bytes(other)]
    finally:
        unmount_below(tmp_path)
    assert [line for line in seen if str(tmp_path) in line] == []


def test_what_others_mount_later_is_not_in_the_place(tmp_path: Path) -> None:
    """Also not where mounts of the machine are shared, as systemd has them."""
    requirements.need_mounts()
    tmp_path.chmod(0o711)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        subprocess.run(["mount", "-t", "tmpfs", "--make-shared", "tmpfs", shared], check=True)
        try:
            (Path(shared) / "later").mkdir()
            place = Place(tmp_path)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", Path(shared) / "later"], check=True)
            new = place.new_mounts()
            place.close()
        finally:
            unmount_below(Path(shared))
            subprocess.run(["umount", shared], check=True)
    assert new == []


def test_processes_are_found_and_ended(user: User) -> None:
    user.shell("sleep 1000 & setsid sleep 1001 &")
    assert len(user.processes()) == 2
    if user.account.ranges:
        started = user.start("unshare", "--user", "--map-auto", "--map-root-user", "sh", "-c", SUBORDINATE, stdout=PIPE)
        assert started.stdout is not None
        assert started.stdout.read(5) == b"ready"
        assert any(line.startswith("sh -c printf ready") for line in user.processes().values())
    user.end_processes()
    assert user.processes() == {}
    if user.account.ranges:
        started.communicate()


def test_files_given_are_the_users_own(user: User, tmp_path: Path) -> None:
    (user.home / "given").mkdir()
    (user.home / "given" / "link").symlink_to("/etc/passwd")
    user.give(user.home / "given")
    assert (user.home / "given" / "link").lstat().st_uid == user.uid
    assert os.stat("/etc/passwd").st_uid == 0
