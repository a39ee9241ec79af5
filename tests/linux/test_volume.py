"""What tells one mount of a file system from every other."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cfstools.linux import volume
from cfstools.linux.files import IOC_READ, ioctl_number
from cfstools.linux.volume import Volume, clock_offset, mounted_volume, xattr_view
from tests.loops import made, mounted
from tests.requirements import need_mounts

KINDS = ["ext4", "xfs", "btrfs"]
_SYSFS_PATH = ioctl_number(IOC_READ, 0x15, 1, 129)  # FS_IOC_GETFSSYSFSPATH


def look(path: Path | str) -> Volume | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return mounted_volume(fd)
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_each_mount_is_another(tmp_path: Path, kind: str) -> None:
    image = made(tmp_path, kind)
    seen = []
    for _ in range(3):
        with mounted(image, kind) as place:
            (place / "below").mkdir(exist_ok=True)
            found = look(place)
            assert found is not None
            assert look(place / "below") == found
            seen.append(found)
    assert len(set(seen)) == 3
    assert len({one.instance for one in seen}) == 3


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_names_the_same_directory(tmp_path: Path, kind: str) -> None:
    """Where it can be asked for (since Linux 6.10, for ext4 and xfs)."""
    with mounted(made(tmp_path, kind), kind) as place:
        found = look(place)
        names = os.listdir(f"/sys/fs/{kind}")
        inodes = {os.stat(f"/sys/fs/{kind}/{name}").st_ino for name in names}
        fd = os.open(place, os.O_RDONLY)
        answer = bytearray(129)
        with suppress(OSError):
            fcntl.ioctl(fd, _SYSFS_PATH, answer)
            inodes = {os.stat(b"/sys/fs/" + answer[1 : 1 + answer[0]]).st_ino}
        os.close(fd)
    assert found is not None
    assert found.instance in inodes


@pytest.mark.root
def test_each_subvolume_is_another(tmp_path: Path) -> None:
    with mounted(made(tmp_path, "btrfs"), "btrfs") as place:
        for command in (["create", "one"], ["snapshot", "one", "two"], ["snapshot", "-r", "one", "three"]):
            subprocess.run(
                ["btrfs", "subvolume", *command[:-1], command[-1]], cwd=place, check=True, capture_output=True
            )
        found = [look(place / name) for name in (".", "one", "two", "three")]
        assert None not in found
        assert len(set(found)) == 4
        assert len({one.instance for one in found if one}) == 1
        assert len({one.fsid for one in found if one}) == 4


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_file_system_is_none(tmp_path: Path, kind: str) -> None:
    """But a mount that is read-only may lie on one that is not."""
    image = made(tmp_path, kind)
    with mounted(image, kind, "ro") as place:
        assert look(place) is None
    with mounted(image, kind) as place:
        found = look(place)
        assert found is not None
        view = tmp_path / "view of it"
        view.mkdir()
        subprocess.run(["mount", "--bind", place, view], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
            assert os.statvfs(view).f_flag & os.ST_RDONLY
            assert look(view) == found
            fd = os.open(view, os.O_RDONLY)
        finally:
            subprocess.run(["umount", "--lazy", view], check=True)
        try:
            assert mounted_volume(fd) is None  # nobody says any more what is below
        finally:
            os.close(fd)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert look(place) is None


@pytest.mark.root
@pytest.mark.parametrize("kind", ["squashfs", "erofs", "tmpfs", "overlay"])
def test_other_file_systems_are_none(tmp_path: Path, kind: str) -> None:
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        with mounted(Path("none"), kind, options, place=tmp_path / "merged") as place:
            assert look(place) is None
    elif kind == "tmpfs":
        with mounted(Path("none"), kind, "rw", place=tmp_path / "merged") as place:
            assert look(place) is None
    else:
        with mounted(made(tmp_path, kind), kind, "ro") as place:
            assert look(place) is None


COVERED = """
import os, sys
from cfstools.linux.volume import mounted_volume
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    print(mounted_volume(fd))
except OSError:
    print(None)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "covered", ["/sys", "/sys/fs", "/sys/fs/ext4", "/sys/dev", "/proc/sys/kernel/random/boot_id", "nothing"]
)
def test_what_is_put_in_the_place_of_sysfs_or_procfs(tmp_path: Path, covered: str) -> None:
    """A boot id that a container's manager made up may outlive the boot."""
    need_mounts()
    with mounted(made(tmp_path, "ext4"), "ext4") as place:
        script = f"mount --bind {tmp_path}/false {covered} && " if covered != "nothing" else ""
        false = tmp_path / "false"
        if covered.endswith("boot_id"):
            false.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
        else:
            for inner in ("fs/ext4/loop0", "ext4/loop0", "loop0", "dev/block", "block"):
                (false / inner).mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{script}exec "$@"', "sh", sys.executable, "-c", COVERED, str(place)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert (done.stdout == "None\n") is (covered != "nothing"), done


def test_the_boot_is_part_of_it(tmp_path: Path) -> None:
    found = look(tmp_path)
    if found is None:
        pytest.skip("temporary files lie on a file system without a volume")
    assert found.boot == Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert found.device == tmp_path.stat().st_dev
    assert stat.S_ISDIR(tmp_path.stat().st_mode)


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    first = clock_offset()
    assert first is not None
    time.sleep(0.05)
    second = clock_offset()
    assert second is not None
    assert abs(second - first) < 20_000_000
    monkeypatch.setattr(os, "readlink", lambda _: "time:[4026532000]")
    assert clock_offset() is None

    def none(_: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "readlink", none)
    assert clock_offset() is not None


def test_the_clock_of_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others ran for two seconds between readings: an offset that much less would be a clock that was set back."""
    since_boot = iter([100, 102, 102, 102, 102, 103])
    now = iter([1100, 1102, 1103])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(since_boot) * 10**9)
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    assert clock_offset() == 1000 * 10**9


def test_numbers_that_are_no_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id becomes part of a file's name."""
    for answer in (b"", b"../../etc/passwd", b"0" * 36, b"01234567-89ab-cdef-0123-456789abcdef\n/"):
        monkeypatch.setattr(volume, "_read_proc", lambda _path, answer=answer: answer)
        assert look(tmp_path) is None


def view(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return xattr_view(fd)
    finally:
        os.close(fd)


_readlink = os.readlink


def without_user_namespaces(path: Any, **words: int) -> Any:
    """As a kernel answers that was built without them."""
    if path == "/proc/self/ns/user":
        raise FileNotFoundError
    return _readlink(path, **words)


@pytest.mark.root
def test_what_shows_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number for other options of the file system, rights, name spaces and security modules."""
    with mounted(made(tmp_path, "btrfs"), "btrfs") as place:
        first = view(place)
        assert first == view(place) != 0
        subprocess.run(["mount", "-o", "remount,noacl", place], check=True)
        other = view(place)
        subprocess.run(["mount", "-o", "remount,acl", place], check=True)
        assert {first, view(place)} == {first}
        script = (
            "import os, sys; from cfstools.linux.volume import xattr_view; print(xattr_view(os.open(sys.argv[1], 0)))"
        )
        words = [sys.executable, "-c", script, str(place)]
        seen = [other]
        for before in (["setpriv", "--bounding-set=-sys_admin"], ["unshare", "--user", "--map-root-user"], []):
            done = subprocess.run([*before, *words], check=True, capture_output=True, text=True)
            seen.append(int(done.stdout))
        assert seen.pop() == first
        monkeypatch.setattr(os, "listxattr", lambda _fd: ["user.x", "security.selinux"])
        seen.append(view(place))
        assert len({first, *seen}) == 5
        monkeypatch.setattr(os, "readlink", without_user_namespaces)
        seen.append(view(place))
        assert len({first, *seen, 0}) == 7
        monkeypatch.setattr(volume, "_superblock", lambda _fd: None)
        assert view(place) == 0


def test_where_attributes_do_not_always_change_the_ctime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "filesystem_type", lambda _fd: volume._F2FS)
    assert view(tmp_path) == 0
