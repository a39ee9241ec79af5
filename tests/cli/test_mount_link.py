"""``mkcfs mount --method link`` as an ordinary user: a mount for all programs of that user, and for nobody else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import requirements
from tests.mkcfs import mkcfs
from tests.reference import Completed
from tests.users import User, Word

pytestmark = [pytest.mark.kernel, pytest.mark.root]

BIG = b"contents of an object\n" * 1000


@pytest.fixture
def images(user: User) -> Path:
    """Where an image and its store are, which belong to root."""
    requirements.need_overlay_for_users()
    top = user.place.top
    (top / "source").mkdir()
    (top / "source/big").write_bytes(BIG)
    (top / "source/small").write_bytes(b"inline\n")
    mkcfs("build", top / "source", top / "image.cfs", "--store", top / "store")
    return top


def mount(user: User, images: Path, *words: Word, check: bool = True) -> Completed:
    image, store = images / "image.cfs", images / "store"
    return user.mkcfs("mount", image, user.home / "link", "--method", "link", "--store", store, *words, check=check)


def test_all_programs_of_the_user_see_it(user: User, stranger: User, images: Path) -> None:
    user.place.close_fuse()
    report = json.loads(mount(user, images, "--json").stdout)
    assert (report["method"], report["map"]) == ("link", "sub" if user.account.ranges else "root")
    assert user.processes().keys() == {report["pid"]}
    link = user.home / "link"
    assert user.run("cat", link / "big", link / "small").stdout == BIG + b"inline\n"
    target = os.readlink(link)
    # Others are kept out by the kernel, whatever the modes of directories on the way say.
    assert stranger.run("ls", target, check=False).code != 0
    assert user.place.new_mounts() == []
    user.mkcfs("umount", link)
    assert not os.path.lexists(link)
    user.wait_for_no_process()
    assert list(user.temporary.iterdir()) == []


def test_a_name_that_is_taken(user: User, images: Path) -> None:
    user.shell("touch link")
    done = mount(user, images, check=False)
    assert (done.code, b"cannot make a symbolic link: File exists" in done.stderr) == (1, True)
    user.wait_for_no_process()


def test_a_second_mount_and_the_end_of_a_dead_one(user: User, images: Path) -> None:
    mount(user, images)
    assert mount(user, images, check=False).code == 1
    user.end_processes()
    user.mkcfs("umount", user.home / "link")
    mount(user, images)
    assert user.run("cat", user.home / "link/small").stdout == b"inline\n"
    user.mkcfs("umount", user.home / "link")
    user.wait_for_no_process()


def test_stores_and_images_below_the_directory_of_temporaries(user: User, images: Path) -> None:
    """The holder covers it, but only once everything is open."""
    shutil.copytree(images / "store", user.temporary / "store")
    shutil.copy(images / "image.cfs", user.temporary)
    user.give(user.temporary)
    words = ["mount", "tmp/image.cfs", "link", "--method", "link", "--store", "tmp/store"]
    user.mkcfs(*words)
    assert user.run("cat", "link/big").stdout == BIG
    user.mkcfs("umount", "link")
    user.wait_for_no_process()


def test_objects_that_are_fetched(user: User, images: Path) -> None:
    requirements.need_fuse_for_users()
    words: list[Word] = [
        "mount",
        images / "image.cfs",
        "link",
        "--method",
        "link",
        "--store",
        "own",
        "--lazy",
        images / "store",
    ]
    user.mkcfs(*words)
    assert user.run("cat", "link/big").stdout == BIG
    user.mkcfs("umount", "link")
    user.wait_for_no_process()
    assert [path.stat().st_size for path in (user.home / "own").glob("??/*")] == [len(BIG)]
