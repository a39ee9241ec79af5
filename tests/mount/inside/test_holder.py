"""Mounts that a process holds: who gets there, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cfstools.errors import CheckFailed, InputError, Unsupported
from cfstools.linux import mount as linux
from cfstools.mount.inside.holder import Held, end_holder, is_held, start_holder
from cfstools.mount.inside.ids import IdChoice
from cfstools.mount.inside.telling import Told
from tests.processes import children


def tmpfs_on(directory: bytes, choice: IdChoice | None) -> Told:
    """Mount a file system with one file, as an image would be."""
    with linux.FsContext(b"tmpfs") as context:
        context.set_string(b"source", b"held")
        fd = context.mount(linux.MountFlag(0))
    target = os.open(directory, os.O_PATH)
    linux.move_mount(fd, target)
    os.close(fd)
    os.close(target)
    Path(os.fsdecode(directory), "file").write_text("held\n")
    return {"map": None if choice is None else choice.value}


@pytest.fixture
def name(tmp_path: Path) -> Iterator[bytes]:
    """A name for the link; its holder does not outlive the test."""
    name = bytes(tmp_path / "link")
    others = children()
    yield name
    if is_held(name):
        end_holder(name)
    for pid in children() - others:  # holders are children of the tests
        os.waitpid(pid, os.WNOHANG)


def start(name: bytes, scratch: Path) -> Held:
    return start_holder(name, tmpfs_on, scratch=bytes(scratch), ids=IdChoice.ROOT, helpers=None)


def descriptors(pid: int) -> set[str]:
    """What a process has open, without what it closes meanwhile."""
    place = f"/proc/{pid}/fd"
    found = set()
    for fd in os.listdir(place):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"{place}/{fd}"))
    return found


def is_running(pid: int) -> bool:
    try:
        return b"State:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    except FileNotFoundError:
        return False


def test_the_link_leads_into_the_namespace(name: bytes, tmp_path: Path) -> None:
    held = start(name, tmp_path)
    assert held.told == {"map": "root"}
    assert os.readlink(name) == held.path
    assert Path(os.fsdecode(name), "file").read_text() == "held\n"
    assert subprocess.run(["cat", name + b"/file"], capture_output=True, check=True).stdout == b"held\n"
    # Here nothing is mounted, and nothing was made.
    assert linux.mounted_at(bytes(tmp_path)) is None
    assert os.listdir(tmp_path) == ["link"]
    # Nothing but the mount is in the place, and nobody else has it.
    around = os.path.dirname(held.path)
    assert os.listdir(around) == [os.path.basename(held.path)]
    assert os.stat(around).st_mode & 0o7777 == 0o700
    end_holder(name)
    assert not is_running(held.pid)
    assert os.listdir(tmp_path) == []


def test_the_holder_belongs_to_nobody(name: bytes, tmp_path: Path) -> None:
    held = start(name, tmp_path)
    # The parent closes its end last: give the holder the moment it needs.
    deadline = time.monotonic() + 20
    while descriptors(held.pid) != {"/dev/null"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.getsid(held.pid) == held.pid
    assert os.readlink(f"/proc/{held.pid}/cwd") == "/"


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    others = children()
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(InputError, match=r"cannot make a symbolic link: File exists"):
        start(bytes(taken), tmp_path)
    with pytest.raises(InputError, match="No such file"):
        start(bytes(tmp_path / "none/link"), tmp_path)
    assert children() <= others


def test_what_fails_inside_is_the_error_outside(name: bytes, tmp_path: Path) -> None:
    others = children()

    def fail(directory: bytes, choice: IdChoice | None) -> Told:
        raise CheckFailed("no good", hint="none", subject="image")

    with pytest.raises(CheckFailed, match="image: no good"):
        start_holder(name, fail, scratch=bytes(tmp_path), ids=IdChoice.ROOT, helpers=None)

    def die(directory: bytes, choice: IdChoice | None) -> Told:
        os._exit(3)

    with pytest.raises(Exception, match="what prepares the namespaces failed"):
        start_holder(name, die, scratch=bytes(tmp_path), ids=IdChoice.ROOT, helpers=None)
    assert children() <= others
    assert not os.path.lexists(name)


def test_a_link_whose_holder_has_gone(name: bytes, tmp_path: Path) -> None:
    held = start(name, tmp_path)
    os.kill(held.pid, signal.SIGKILL)
    os.waitpid(held.pid, 0)
    assert not os.path.exists(name)
    end_holder(name)
    assert not os.path.lexists(name)


def test_a_number_that_is_another_process_now(name: bytes, tmp_path: Path) -> None:
    """The place does not exist there, so it is left alone."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as other:
        os.symlink(f"/proc/{other.pid}/root{tmp_path}/.mkcfs-{'a' * 32}", name)
        assert is_held(name)
        end_holder(name)
        assert other.poll() is None
        assert not os.path.lexists(name)
        other.kill()


def test_a_directory_of_that_name_is_no_mount(name: bytes, tmp_path: Path) -> None:
    """Anybody can make one, and a link that leads through the root directory of any process."""
    planted = tmp_path / (".mkcfs-" + "a" * 32)
    planted.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as other:
        os.symlink(f"/proc/{other.pid}/root{planted}", name)
        assert os.path.isdir(name)
        end_holder(name)
        assert other.poll() is None
        other.kill()


@pytest.mark.root
def test_links_of_others_are_none_of_ours(name: bytes, tmp_path: Path) -> None:
    held = start(name, tmp_path)
    os.lchown(name, 12345, 12345)
    assert not is_held(name)
    with pytest.raises(InputError):
        end_holder(name)
    assert is_running(held.pid)
    os.lchown(name, os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    "target",
    [
        "/proc/1/root/tmp/.mkcfs-abc",
        "/proc/self/root/tmp/.mkcfs-" + "a" * 32,
        "/proc/1/root/.mkcfs-" + "a" * 32 + "/..",
        "/proc/01/root/tmp/.mkcfs-" + "a" * 32,
        "proc/1/root/tmp/.mkcfs-" + "a" * 32,
        "/tmp",
    ],
)
def test_links_of_another_form_are_none_of_ours(name: bytes, target: str) -> None:
    os.symlink(target, name)
    assert not is_held(name)
    with pytest.raises(InputError, match="is no symbolic link to a mount"):
        end_holder(name)
    assert os.readlink(name) == os.fsencode(target)


def test_what_is_no_link(tmp_path: Path) -> None:
    assert not is_held(bytes(tmp_path))
    assert not is_held(bytes(tmp_path / "none"))


@pytest.mark.slow
def test_a_hundred_holders_leave_nothing(name: bytes, tmp_path: Path) -> None:
    descriptors = sorted(os.listdir("/proc/self/fd"))
    for _ in range(100):
        held = start(name, tmp_path)
        end_holder(name)
        os.waitpid(held.pid, 0)
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert os.listdir(tmp_path) == []


def test_where_no_namespace_can_be_made(name: bytes, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="subordinate ids need newuidmap"):
        start_holder(name, tmpfs_on, scratch=bytes(tmp_path), ids=IdChoice.SUB, helpers=None)
    assert not os.path.lexists(name)
