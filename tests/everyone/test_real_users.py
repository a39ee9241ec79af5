"""What an ordinary user can do with what the machine gives, and what they are told where it gives too little."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.everyone.ways import LAZY, USER_WAYS, Image, Way, mkcfs_words, shown
from tests.requirements import need_command, need_fuse_for_users, need_overlay_for_users
from tests.users import User

pytestmark = [pytest.mark.root, pytest.mark.kernel]

OVERLAYS = [way for way in USER_WAYS if "fuse" not in way.options]
LASTING = [way for way in (*USER_WAYS, *LAZY) if not way.run and not way.root]
READ = ("cat", "data/inline", "data/external")
EXPECTED = b"inline" + b"external " * 1000


def read(user: User, way: Way, image: Image) -> bytes:
    with shown(user, way, image) as view:
        return view.command("sh", "-euc", f"cd {shlex.quote(str(view.directory))}; {shlex.join(READ)}")[1]


@pytest.mark.parametrize("way", USER_WAYS, ids=lambda way: way.name)
def test_without_capabilities(user: User, small_image: Image, way: Way) -> None:
    assert read(user, way, small_image) == EXPECTED


@pytest.mark.parametrize("way", OVERLAYS, ids=lambda way: way.name)
def test_overlays_need_no_fuse_device(user: User, small_image: Image, way: Way) -> None:
    user.place.close_fuse()
    assert read(user, way, small_image) == EXPECTED


def test_run_finds_a_way_without_the_device(user: User, small_image: Image) -> None:
    need_overlay_for_users()
    user.place.close_fuse()
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    words = ("run", small_image.path, "mnt", "--store", small_image.store, "--", "cat", "mnt/data/inline")
    assert user.mkcfs(*words).stdout == b"inline"


def test_a_closed_device_is_named(user: User, small_image: Image) -> None:
    need_fuse_for_users()
    user.place.close_fuse()
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    done = user.mkcfs("mount", small_image.path, "mnt", "--store", small_image.store, check=False)
    assert done.code == 1
    assert b"cannot open /dev/fuse: Permission denied" in done.stderr
    assert b"mkcfs run" in done.stderr
    assert user.processes() == {}


@pytest.fixture
def poor_path(user: User) -> Path:
    """A directory of programs for PATH, without those that have rights of root."""
    programs = user.home / "programs"
    programs.mkdir()
    for name in ("sh", "cat", "ls", "test", "mkdir", "sleep", "true", "id"):
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    user.environment["PATH"] = str(programs)
    return programs


@pytest.mark.usefixtures("poor_path")
def test_a_missing_fusermount_is_named(user: User, small_image: Image) -> None:
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    done = user.mkcfs("mount", small_image.path, "mnt", "--store", small_image.store, "--method", "fuse", check=False)
    assert done.code == 1
    assert b"fusermount3" in done.stderr
    assert b"fuse3" in done.stderr


@pytest.mark.usefixtures("poor_path")
def test_without_newuidmap_one_id_is_enough(user: User, small_image: Image) -> None:
    need_overlay_for_users()
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    words = ("run", small_image.path, "mnt", "--store", small_image.store)
    assert user.mkcfs(*words, "--", "id", "-u").stdout == b"0\n"
    assert user.mkcfs(*words, "--", "cat", "/proc/self/uid_map").stdout.split() == [b"0", str(user.uid).encode(), b"1"]
    done = user.mkcfs(*words, "--map", "sub", "--", "id", "-u", check=False)
    assert done.code == 1
    assert b"newuidmap" in done.stderr


@pytest.mark.parametrize("way", LASTING, ids=lambda way: way.name)
def test_it_is_there_when_the_command_returns(user: User, small_image: Image, way: Way) -> None:
    way.require(user)
    directory = user.home / "mnt"
    if "link" not in way.options:
        directory.mkdir()
        user.give(directory)
    show = shlex.join(str(word) for word in mkcfs_words("mount", way, user, small_image, directory))
    end = shlex.join([sys.executable, "-m", "cfstools.cli", "umount", str(directory)])
    user.shell(f"for i in 1 2 3 4 5 6 7 8; do {show} && test -e {directory}/etc/os-release && {end}; done")
    user.wait_for_no_process()


@pytest.mark.parametrize("way", LASTING, ids=lambda way: way.name)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</dev/null >/dev/null 2>/dev/null"])
def test_whatever_is_closed(user: User, small_image: Image, way: Way, closed: str) -> None:
    way.require(user)
    directory = user.home / "mnt"
    if "link" not in way.options:
        directory.mkdir()
        user.give(directory)
    show = shlex.join(str(word) for word in mkcfs_words("mount", way, user, small_image, directory))
    done = user.shell(f"{show} {closed}; cd {directory}; {shlex.join(READ)}")
    assert done.stdout == EXPECTED
    user.mkcfs("umount", directory)


@pytest.mark.parametrize("way", LASTING, ids=lambda way: way.name)
def test_the_mount_outlives_the_session(user: User, small_image: Image, way: Way) -> None:
    """Neither the end of the terminal nor its interrupt ends what was mounted there."""
    need_command("setsid")
    with shown(user, way, small_image) as view:
        for pid in user.processes():
            status = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            group, session, terminal = (int(word) for word in status[2:5])
            assert terminal == 0
            assert session != os.getsid(0)
            assert group != os.getpgrp()
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert view.command("cat", view.directory / "data/inline")[1] == b"inline"


def test_systemd_is_told(user: User, small_image: Image) -> None:
    need_fuse_for_users()
    directory, path = user.home / "mnt", user.runtime / "notify"
    directory.mkdir()
    user.give(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        os.chown(path, user.uid, user.gid)
        heard.settimeout(30)
        user.environment["NOTIFY_SOCKET"] = str(path)
        way = next(way for way in USER_WAYS if way.name == "fuse")
        words = mkcfs_words("mount", way, user, small_image, directory)
        process = user.start(*words, "--foreground")
        try:
            message = b""
            while b"READY=1" not in message:
                message = heard.recv(4096)
            assert (directory / "etc").parent == directory
            assert user.run("cat", directory / "data/inline").stdout == b"inline"
            server = next(pid for pid, line in user.processes().items() if "--foreground" in line)
            assert server
        finally:
            user.mkcfs("umount", directory, check=False)
            assert process.wait(30) == 0
    user.wait_for_no_process()


def test_a_store_that_only_others_write(user: User, small_image: Image) -> None:
    """What is fetched is kept for the life of the mount only, and a warning says so."""
    need_fuse_for_users()
    store = user.place.top / "foreign-store"
    store.mkdir(mode=0o755)
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    lazily = ("--lazy", small_image.store, "--prefetch", "none")
    served = ("--method", "fuse", "--log", user.home / "log")
    user.mkcfs("mount", small_image.path, "mnt", "--store", store, *lazily, *served)
    assert user.run("cat", "mnt/data/external").stdout == b"external " * 1000
    user.mkcfs("umount", "mnt")
    assert [path for path in store.rglob("*") if path.is_file()] == []
    assert list(user.temporary.iterdir()) == []
    assert "not kept in the store" in (user.home / "log").read_text()
    user.wait_for_no_process()


def test_two_users_share_a_store(user: User, stranger: User, small_image: Image) -> None:
    need_fuse_for_users()
    way = next(way for way in USER_WAYS if way.name == "fuse")
    with shown(user, way, small_image) as one, shown(stranger, way, small_image) as other:
        assert one.command("cat", one.directory / "data/external")[1] == b"external " * 1000
        assert other.command("cat", other.directory / "data/external")[1] == b"external " * 1000


def test_an_interrupted_mount_leaves_nothing(user: User, small_image: Image) -> None:
    """Whenever it is stopped: either it is mounted, or nothing is left."""
    need_fuse_for_users()
    way = next(way for way in USER_WAYS if way.name == "fuse")
    (user.home / "mnt").mkdir()
    user.give(user.home / "mnt")
    for tenths in range(1, 9):
        process = user.start(*mkcfs_words("mount", way, user, small_image, user.home / "mnt"), stderr=subprocess.PIPE)
        time.sleep(tenths * 0.05)
        for pid, line in user.processes().items():
            if " mount " in line:
                try:
                    os.kill(pid, 15)
                except ProcessLookupError:
                    break
        process.communicate(timeout=60)
        if user.place.new_mounts():
            user.mkcfs("umount", "mnt", check=False)
        user.wait_for_no_process()
        assert user.place.new_mounts() == []
