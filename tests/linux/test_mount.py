"""Mount calls: numbers and records against the kernel's headers, and errors with the kernel's words."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cfstools.linux import mount as linux

PROGRAM = r"""
#include <stdio.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <linux/loop.h>
#include <linux/mount.h>
int main(void) {
    printf("%d %d %d %d ", SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig);
    printf("%d %d ", SYS_fsmount, SYS_mount_setattr);
    printf("%d %d %d %d ", FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING);
    printf("%d %d ", FSCONFIG_SET_FD, OPEN_TREE_CLONE);
    printf("%d %d %d ", FSCONFIG_CMD_CREATE, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH);
    printf("%d %d %d ", MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV);
    printf("%d %d ", MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOATIME);
    printf("%d %d ", MOUNT_ATTR_IDMAP, (int)sizeof(struct mount_attr));
    printf("%d %d ", LOOP_CONFIGURE, LOOP_CTL_GET_FREE);
    printf("%d %d ", LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO);
    printf("%zu %zu ", sizeof(struct loop_config), offsetof(struct loop_config, block_size));
    printf("%zu ", offsetof(struct loop_config, info) + offsetof(struct loop_info64, lo_sizelimit));
    printf("%zu", offsetof(struct loop_config, info) + offsetof(struct loop_info64, lo_flags));
    return 0;
}
"""


@pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/linux/loop.h").exists(),
    reason="needs gcc and the kernel's user headers",
)
def test_numbers_and_layout_are_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "numbers.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-o", tmp_path / "numbers", tmp_path / "numbers.c"], check=True)
    out = subprocess.run([tmp_path / "numbers"], check=True, capture_output=True, text=True).stdout
    *numbers, size, block_size, limit, flags = [int(word) for word in out.split()]
    assert numbers == [
        linux._SYS_OPEN_TREE,
        linux._SYS_MOVE_MOUNT,
        linux._SYS_FSOPEN,
        linux._SYS_FSCONFIG,
        linux._SYS_FSMOUNT,
        linux._SYS_MOUNT_SETATTR,
        linux._FSOPEN_CLOEXEC,
        linux._FSMOUNT_CLOEXEC,
        linux._FSCONFIG_SET_FLAG,
        linux._FSCONFIG_SET_STRING,
        linux._FSCONFIG_SET_FD,
        linux._OPEN_TREE_CLONE,
        linux._FSCONFIG_CMD_CREATE,
        linux._MOVE_MOUNT_F_EMPTY_PATH,
        linux._MOVE_MOUNT_T_EMPTY_PATH,
        *linux.MountFlag,
        linux._MOUNT_ATTR_IDMAP,
        linux._MOUNT_ATTR.size,
        linux._LOOP_CONFIGURE,
        linux._LOOP_CTL_GET_FREE,
        linux._LO_READ_ONLY_AUTOCLEAR,
        linux._LO_DIRECT_IO,
    ]
    packed = linux._LOOP_CONFIG.pack(1, 2, 3, 4)
    assert len(packed) == size
    assert {place: packed[place] for place in range(size) if packed[place]} == {0: 1, block_size: 2, limit: 3, flags: 4}


@pytest.mark.kernel
def test_errors_have_the_words_of_the_kernel() -> None:
    with linux.FsContext(b"overlay") as context:
        with pytest.raises(OSError, match="Unknown parameter 'nonsense'") as caught:
            context.set_flag(b"nonsense")
        assert caught.value.errno == errno.EINVAL
        context.set_string(b"source", b"x")
        with pytest.raises(OSError, match="Invalid argument"):
            context.mount(linux.MountFlag.READ_ONLY)
    with linux.FsContext(b"erofs") as context, pytest.raises(OSError):
        context.mount(linux.MountFlag.READ_ONLY)
    with pytest.raises(OSError) as caught:
        linux.FsContext(b"no such file system")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.kernel
def test_a_mount_that_was_not_made_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_SYS_FSMOUNT", 0x7FFF)
    with linux.FsContext(b"tmpfs") as context:
        with pytest.raises(OSError) as caught:
            context.mount(linux.MountFlag.READ_ONLY)
        assert caught.value.errno == errno.ENOSYS


@pytest.mark.kernel
def test_what_is_mounted_where(tmp_path: Path) -> None:
    place = tmp_path / "with space\\and\tmore"
    place.mkdir()
    assert linux.mounted_at(bytes(place)) is None
    with pytest.raises(OSError) as caught:
        linux.umount(bytes(place))
    assert caught.value.errno == errno.EINVAL
    fd = os.open(place, os.O_PATH)
    try:
        linux.mount(b"first", fd, b"tmpfs", b"", linux.MountFlag.READ_ONLY)
        assert linux.mounted_at(bytes(place)) == linux.Mounted(b"tmpfs", b"first")
        with pytest.raises(OSError):
            (place / "new").touch()
        with linux.FsContext(b"tmpfs") as context:
            context.set_string(b"source", b"a b")
            mount_fd = context.mount(linux.MountFlag(0))
        upper = os.open(place, os.O_PATH)
        linux.move_mount(mount_fd, upper)
        os.close(mount_fd)
        os.close(upper)
        assert linux.mounted_at(bytes(place)) == linux.Mounted(b"tmpfs", b"a b")
        (place / "new").touch()
    finally:
        os.close(fd)
        while linux.mounted_at(bytes(place)):
            linux.umount(bytes(place), detach=True)
    with pytest.raises(OSError):
        linux.mount(b"x", 1_000_000, b"tmpfs", b"", linux.MountFlag.READ_ONLY)


@pytest.mark.kernel
def test_loop_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789abcdef" * 512)
    with path.open("rb") as file:
        device, fd = linux.attach_loop(file.fileno(), 4096)
        try:
            assert os.read(fd, 10_000) == b"0123456789abcdef" * 256
            assert Path(f"/sys/block/{device.decode().removeprefix('/dev/')}/ro").read_text() == "1\n"
            # A device that somebody else took: told that it is free, we find it busy every time.
            number = int(device.removeprefix(b"/dev/loop"))
            real = fcntl.ioctl
            monkeypatch.setattr(
                fcntl,
                "ioctl",
                lambda where, request, *rest: (
                    number if request == linux._LOOP_CTL_GET_FREE else real(where, request, *rest)
                ),
            )
            with pytest.raises(OSError, match="no loop device stays free"):
                linux.attach_loop(file.fileno(), 4096)
        finally:
            os.close(fd)


@pytest.mark.kernel
def test_a_loop_device_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag the kernel does not know is EINVAL, as direct I/O is where the file has none."""
    monkeypatch.setattr(linux, "_LO_DIRECT_IO", 1 << 30)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    with path.open("rb") as file:
        _, fd = linux.attach_loop(file.fileno(), 4096)
        assert os.read(fd, 10_000) == b"x" * 4096
        os.close(fd)
