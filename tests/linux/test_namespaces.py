"""Namespaces: what a process in them is, which ids it knows, and that failures leave nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cfstools.linux import mount as linux
from cfstools.linux import namespaces
from cfstools.linux.namespaces import IdMap, IdRange
from tests.descriptors import descriptors
from tests.inside import inside
from tests.processes import children


def test_the_caller_as_root() -> None:
    told = inside(lambda: (os.getresuid(), os.getresgid(), namespaces.may_mount()))
    assert told == ((0, 0, 0), (0, 0, 0), True)


def test_the_caller_as_itself() -> None:
    told = inside(lambda: (os.getuid(), os.getegid(), namespaces.known_ids("uid")), namespaces.one_id())
    uid = os.geteuid()
    assert told == (uid, os.getegid(), [range(uid, uid + 1)])


def test_what_the_work_returns_is_the_exit_code() -> None:
    pid = namespaces.spawn(namespaces.one_id((0, 0)), lambda: 42)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_mounts_stay_inside(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def work() -> object:
        with linux.FsContext(b"tmpfs") as context:
            fd = context.mount(linux.MountFlag(0))
        target = os.open(place, os.O_PATH)
        linux.move_mount(fd, target)
        (place / "seen").touch()
        return linux.mounted_at(bytes(place)) is not None

    assert inside(work)
    assert linux.mounted_at(bytes(place)) is None
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("helper", ["/bin/false", "/nonexistent"])
def test_a_helper_that_fails_leaves_nothing(helper: str) -> None:
    own = namespaces.one_id((0, 0))._replace(helpers=(os.fsencode(helper), os.fsencode(helper)))
    before = descriptors()
    others = children()
    with pytest.raises(OSError):
        namespaces.spawn(own, lambda: 0)
    assert children() <= others
    assert descriptors() <= before


def test_what_the_kernel_refuses_is_the_error() -> None:
    wrong = IdMap((IdRange(0, 4_000_000, 1),), (IdRange(0, 4_000_000, 1),))
    if os.geteuid() == 0:  # root may map any id, but not a number that is none
        wrong = IdMap((IdRange(0, 0xFFFFFFFF, 1),), (IdRange(0, 0xFFFFFFFF, 1),))
    with pytest.raises(OSError) as caught:
        namespaces.spawn(wrong, lambda: 0)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)


def test_subordinate_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of others, nonsense, and ranges that overlap are passed over; the caller is always 0."""
    uid = os.geteuid()
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    monkeypatch.setattr(namespaces, "SUBUID", bytes(subuid))
    monkeypatch.setattr(namespaces, "SUBGID", bytes(subgid))
    helpers = (b"a", b"b")
    assert namespaces.subordinate_ids(helpers) is None
    subuid.write_text(f"other:1:5\n{uid}:100000:1000\n{uid}:100500:7\n{uid}:x:1\n{uid}:300000:0\n{uid}:400000:10\n")
    assert namespaces.subordinate_ids(helpers) is None
    subgid.write_text(f"{uid}:{0xFFFFFFFF}:5\n{uid}:200000:9\n")
    found = namespaces.subordinate_ids(helpers)
    assert found == IdMap(
        (IdRange(0, uid, 1), IdRange(1, 100000, 1000), IdRange(1001, 400000, 10)),
        (IdRange(0, os.getegid(), 1), IdRange(1, 200000, 9)),
        helpers,
    )


def test_a_thread_with_a_directory_of_its_own(tmp_path: Path) -> None:
    here, mask = os.getcwd(), os.umask(0o77)
    os.umask(0o77)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        namespaces.own_directory(directory, lambda: os.mkdir("made", 0o777))
        with pytest.raises(FileNotFoundError):
            namespaces.own_directory(directory, lambda: os.rmdir("not there"))
    finally:
        os.close(directory)
        assert os.umask(mask) == 0o77
    assert os.getcwd() == here
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o777
