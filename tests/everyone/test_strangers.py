"""Whoever shares the machine can neither look into what a user mounted, nor change it, nor take it off."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.everyone.ways import USER_WAYS, Image, Way, shown
from tests.processes import until
from tests.users import User

pytestmark = [pytest.mark.root, pytest.mark.kernel]

LASTING = [way for way in USER_WAYS if not way.run]


@pytest.fixture
def open_home(user: User) -> None:
    """A user whose home others can enter, so that only the mount itself keeps them out."""
    user.home.chmod(0o755)


@pytest.mark.usefixtures("open_home")
@pytest.mark.parametrize("way", LASTING, ids=lambda way: way.name)
def test_nobody_else_looks_in(user: User, stranger: User, small_image: Image, way: Way) -> None:
    with shown(user, way, small_image) as view:
        assert view.command("cat", view.directory / "data/inline")[1] == b"inline"
        for words in (["ls", f"{view.directory}/"], ["cat", f"{view.directory}/data/inline"]):
            done = stranger.run(*words, check=False)
            assert done.code != 0
            assert b"Permission denied" in done.stderr
        for pid in user.processes():
            for name in ("root/", "cwd/", "fd/", "map_files/", "environ", "mem"):
                done = stranger.run("ls" if name.endswith("/") else "cat", f"/proc/{pid}/{name}", check=False)
                assert done.code != 0, name
            assert stranger.run("kill", "-9", str(pid), check=False).code != 0


@pytest.mark.usefixtures("open_home")
@pytest.mark.parametrize("way", LASTING, ids=lambda way: way.name)
def test_nobody_else_takes_it_off(user: User, stranger: User, small_image: Image, way: Way) -> None:
    with shown(user, way, small_image) as view:
        for words in (
            [sys.executable, "-m", "cfstools.cli", "umount", str(view.directory)],
            ["fusermount3", "-u", str(view.directory)],
            ["fusermount3", "-u", "-z", str(view.directory)],
            ["umount", str(view.directory)],
        ):
            done = stranger.run(*words, check=False)
            assert done.code != 0, words
            assert done.stderr.count(b"Traceback") == 0
        assert view.command("cat", view.directory / "data/inline")[1] == b"inline"


def test_a_link_that_somebody_else_made_ends_nothing(user: User, stranger: User, small_image: Image) -> None:
    """umount of a link sends a signal to the process that it names: only to one that holds what the link shows."""
    way = next(way for way in LASTING if "link" in way.options)
    with shown(user, way, small_image) as view:
        target = os.readlink(view.directory)
        assert target.startswith("/proc/")
        victim = user.start("sleep", "1000")
        try:
            # What is started becomes the user's own, and then the command, one after another in the same process.
            pid = victim.pid
            until(lambda: user.processes().get(pid, "").startswith("sleep"))
            for planted in (target.replace(target.split("/")[2], str(pid)), f"/proc/{pid}/root/tmp/.mkcfs-0000"):
                link = stranger.home / "planted"
                link.unlink(missing_ok=True)
                link.symlink_to(planted)
                stranger.home.chmod(0o755)
                done = user.mkcfs("umount", link, check=False)
                assert done.code == 1
                assert victim.poll() is None
        finally:
            victim.kill()
            victim.wait()


def test_what_a_mount_keeps_is_the_users_own(user: User, stranger: User, small_image: Image) -> None:
    """Whatever files a mount makes, others can neither read nor write them."""
    for way in LASTING:
        with shown(user, way, small_image):
            made = [path for place in (user.temporary, user.runtime) for path in place.rglob("*")]
            made += [Path(entry) for entry in os.scandir("/tmp") if "mkcfs" in entry.name and is_of(user, entry)]
            for path in made:
                assert path.is_symlink() or path.stat().st_mode & 0o077 == 0, path


def is_of(user: User, entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == user.uid
    except FileNotFoundError:  # of another test
        return False
