"""The mount namespace that a keeper stays in, and those that it leaves."""

from __future__ import annotations

import os

import pytest

from cfstools.linux import mount as linux
from cfstools.mount.daemon.namespace import is_lasting, is_ours, stand_aside
from tests.inside import inside
from tests.requirements import need_overlay_for_users

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def namespaces() -> None:
    need_overlay_for_users()


def test_a_namespace_for_a_command_does_not_last() -> None:
    """Also where no process outside may be looked at: only those inside can then, and they have the same one."""
    assert inside(lambda: (is_lasting(), inside(is_lasting))) == (False, False)


def test_whoever_stands_aside_has_none_of_our_mounts() -> None:
    def left() -> tuple[bool, bool]:
        before = os.readlink("/proc/self/ns/mnt")
        stand_aside()
        return os.readlink("/proc/self/ns/mnt") == before, any(is_ours(one.mounted) for one in linux.mounts())

    assert inside(left) == (False, False)
