"""The mount namespace that a daemon lives in: one of its own, where it would keep that of somebody's session alive."""

from __future__ import annotations

import os
from contextlib import suppress

from cfstools.errors import CfsError, Unsupported, os_error
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.namespaces import is_first_user_namespace, leave_mounts
from cfstools.mount.overlay import SOURCE
from cfstools.text import shown_path

FUSE_TYPE = b"fuse.mkcfs"
"""The type of mounts that our processes serve."""


def is_ours(mounted: linux.Mounted) -> bool:
    """Whether a mount looks like one of ours: an overlay, or one that a process serves."""
    return mounted.kind == FUSE_TYPE or mounted == linux.Mounted(b"overlay", SOURCE)


def is_lasting() -> bool:
    """Whether the mount namespace is that of the first process, which lasts anyway.

    Where that one may not be looked at, the first ancestor that may be stands for it; in a user namespace that would
    be a process inside of it, and whoever made that namespace ends it.
    """
    own = os.readlink("/proc/self/ns/mnt")
    for pid in ("1", *(_ancestors() if is_first_user_namespace() else ())):
        with suppress(OSError):
            return os.readlink(f"/proc/{pid}/ns/mnt") == own
    return is_first_user_namespace()


def stand_aside() -> None:
    """Leave the mount namespace, which does not last.

    A process keeps its namespace, that keeps what is mounted in it, and a mount keeps its server: in a namespace that
    is to end with somebody's command neither would ever end. Mounts of ours that were copied are taken off here, else
    they would end with this process only.
    """
    try:
        leave_mounts()
    except OSError:  # no right to: then this is no namespace that the caller made
        return
    for one in reversed([one for one in linux.mounts() if is_ours(one.mounted)]):
        with suppress(OSError):
            linux.umount(one.point, detach=True)


def mount_number(directory: bytes) -> int:
    """The number that the kernel gave the topmost mount at *directory*. Raises InputError."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return linux.mount_id(fd)
        finally:
            close(fd)
    except OSError as error:
        raise os_error(error, "cannot look at the mount") from error


def detach(directory: bytes, number: int) -> None:
    """Take the mount *number* off *directory* at once; files that are open stay readable.

    Raises Unsupported if it is not there any more, or cannot be taken off from here, and CfsError.
    """
    found = [one for one in linux.mounts() if one.point == directory]
    if not found or found[-1].number != number:
        what = "cannot unmount: the mount is not there, or in another namespace"
        raise Unsupported(what, subject=shown_path(directory))
    try:
        linux.umount(directory, detach=True)
    except OSError as error:
        raise CfsError(f"cannot unmount: {error.strerror}", subject=shown_path(directory)) from error


def _ancestors() -> list[str]:
    """The processes above this one, the first one first."""
    found: list[str] = []
    pid = str(os.getppid())
    with suppress(OSError, IndexError):
        while pid not in ("0", *found):
            found.append(pid)
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = file.read().rpartition(")")[2].split()[1]
    return found[::-1]
