"""Mounts that cannot be made, and what is said then."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cfstools.errors import InputError, Unsupported
from cfstools.linux.mount import MountFlag
from cfstools.mount.fuse import connect
from tests import requirements
from tests.mount.fuse.mounted import module
from tests.users import User

_BY_HELPER = """
import os, sys
from cfstools.linux.mount import MountFlag
from cfstools.mount.fuse import connect
place = os.open(sys.argv[1], os.O_PATH)
device = connect.by_helper(
    place, helper=b"/usr/bin/fusermount3", source=os.fsencode(sys.argv[2]), allow_other="other" in sys.argv,
    flags=MountFlag.READ_ONLY | (MountFlag.NO_EXEC if "noexec" in sys.argv else MountFlag(0)),
)
mount = open("/proc/self/mountinfo", "rb").read().splitlines()[-1]
print(os.get_inheritable(device), mount.decode("latin-1").encode("unicode_escape").decode())
connect.unmount_by_helper(os.fsencode(sys.argv[1]), helper=b"/usr/bin/fusermount3", detach=True)
"""


def by_helper(user: User, directory: Path, *words: str) -> tuple[int, str]:
    requirements.need_command("fusermount3")
    command = [*module("x")[:2], sys.executable, "-c", _BY_HELPER, str(directory), *words]
    done = user.run(*command, check=False)
    return done.code, (done.stdout + done.stderr).decode()


@pytest.fixture
def directory(user: User) -> Path:
    made = user.home / "a, b\\c"
    made.mkdir()
    user.give(made)
    return made


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("source", ["image", "a,b", "back\\slash,allow_other", "new\nline", "\udcff"])
def test_any_source_is_shown(user: User, directory: Path, source: str) -> None:
    code, said = by_helper(user, directory, source)
    assert code == 0, said
    assert said.startswith("False ")
    fields = said.split()
    # Once by us, once by the kernel.
    shown = fields[-2].encode().decode("unicode_escape").encode("latin-1").decode("unicode_escape")
    assert shown.encode("latin-1") == os.fsencode(source)
    assert fields[-3] == "fuse.mkcfs"
    assert {"ro", "nosuid", "nodev"} <= set(fields[6].split(","))
    assert f"user_id={user.uid}" in fields[-1]
    assert user.place.new_mounts() == []


@pytest.mark.root
@pytest.mark.kernel
def test_flags(user: User, directory: Path) -> None:
    code, said = by_helper(user, directory, "image", "noexec")
    assert code == 0, said
    assert "noexec" in said.split()[6]


@pytest.mark.root
@pytest.mark.kernel
def test_what_the_helper_refuses_is_said(user: User, directory: Path) -> None:
    _, said = by_helper(user, directory, "image", "other")
    assert "Unsupported: fusermount3 refuses: option allow_other only allowed if 'user_allow_other' is set" in said
    directory.chmod(0o555)
    os.chown(directory, 0, 0)
    assert "Unsupported: fusermount3 refuses: user has no write access" in by_helper(user, directory, "image")[1]
    user.place.close_fuse()
    assert "Unsupported: cannot open /dev/fuse: Permission denied" in by_helper(user, directory, "image")[1]
    assert user.place.new_mounts() == []


def test_a_helper_that_is_none(tmp_path: Path) -> None:
    place = os.open(tmp_path, os.O_PATH)
    try:
        for helper, kind, what in (
            (b"/nowhere/fusermount3", InputError, "cannot start: No such file"),
            (b"/bin/true", Unsupported, "no reason given"),
            (b"/bin/false", Unsupported, "no reason given"),
        ):
            with pytest.raises(kind, match=what):
                connect.by_helper(place, helper=helper, source=b"x", flags=MountFlag.READ_ONLY)
    finally:
        os.close(place)
    with pytest.raises(Unsupported, match="fusermount3 refuses"):
        connect.unmount_by_helper(b"/", helper=b"/bin/false")


@pytest.mark.root
def test_a_kernel_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "DEVICE", b"/dev/nothing")
    with pytest.raises(Unsupported, match="cannot open /dev/nothing: No such file"):
        connect.detached(source=b"x")
    # What is no device for it, the kernel refuses.
    monkeypatch.setattr(connect, "DEVICE", b"/dev/null")
    requirements.need_root()
    with pytest.raises(InputError, match="cannot mount a file system in user space"):
        connect.detached(source=b"x")


@pytest.mark.root
@pytest.mark.kernel
def test_a_user_alone_may_not_use_the_api(user: User) -> None:
    script = "from cfstools.mount.fuse import connect; connect.detached(source=b'x')"
    done = user.run(*module("x")[:2], sys.executable, "-c", script, check=False)
    assert b"Unsupported: cannot mount a file system in user space: Operation not permitted" in done.stderr
    user.place.close_fuse()
    done = user.run(*module("x")[:2], sys.executable, "-c", script, check=False)
    assert b"Unsupported: cannot open /dev/fuse: Permission denied" in done.stderr
