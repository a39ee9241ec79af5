"""The mount namespace that a keeper stays in, and those that it leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.linux import mount as linux
from cfstools.mount.daemon.namespace import is_lasting, stand_aside
from tests.inside import inside
from tests.requirements import need_overlay_for_users

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def namespaces() -> None:
    need_overlay_for_users()


def test_a_namespace_for_a_command_does_not_last() -> None:
    """Also where no process outside may be looked at: only those inside can then, and they have the same one."""
    assert inside(lambda: (is_lasting(), inside(is_lasting))) == (False, False)


def test_whoever_stands_aside_has_none_of_our_mounts(tmp_path: Path) -> None:
    """But for those from outside of the user namespace, which the kernel lets nobody inside take off."""
    places = [tmp_path / name for name in ("ours", "another", "theirs")]
    for directory in (*places, tmp_path / "upper", tmp_path / "lower"):
        directory.mkdir()

    def left() -> tuple[bool, list[bool], list[bool]]:
        def seen() -> list[bool]:
            points = [one.point for one in linux.mounts()]
            return [bytes(place) in points for place in places]

        for place, source in zip(places, (b"composefs", b"composefs", b"else"), strict=True):
            mount_overlay(place, source)
        there, before = seen(), os.readlink("/proc/self/ns/mnt")
        stand_aside()
        return os.readlink("/proc/self/ns/mnt") == before, there, seen()

    assert inside(left) == (False, [True, True, True], [False, False, True])


def mount_overlay(place: Path, source: bytes) -> None:
    with linux.FsContext(b"overlay") as context:
        context.set_string(b"source", source)
        context.set_string(b"lowerdir", b"%b/upper:%b/lower" % (bytes(place.parent), bytes(place.parent)))
        mounted = context.mount(linux.MountFlag.READ_ONLY)
    directory = os.open(place, os.O_PATH)
    linux.move_mount(mounted, directory)
    os.close(directory)
    os.close(mounted)
