"""Which way an image is mounted: found out by trying what the kernel allows, never by its version (docs/mount.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum

from cfstools.linux import mount as linux


class Method(Enum):
    """Ways to mount an image.

    ``KERNEL``: EROFS below an overlay, as root. ``OVERLAY``: names in a tmpfs below an overlay, in a user namespace.
    ``FUSE``: served by a process of ours. ``LINK``: as ``OVERLAY``, in a namespace that a process holds, with a
    symbolic link that leads there. ``AUTO``: the first of the first three that this process may use.
    """

    AUTO = "auto"
    KERNEL = "kernel"
    OVERLAY = "overlay"
    FUSE = "fuse"
    LINK = "link"


class Check(Enum):
    """When contents are compared with the image.

    ``READ``: every block that is served. ``OPEN``: an object once, at its first use. ``FIRST``: all before the mount,
    by the caller. ``OFF``: never. With the last three, what changes an object afterwards is served.
    """

    READ = "read"
    OPEN = "open"
    FIRST = "first"
    OFF = "off"


def choose(method: Method, *, overlay: Callable[[], bool], kernel_only: bool) -> Method:
    """The method that *method* stands for, for a mount that others see.

    *overlay* says whether the kernel lets users have data-only layers, and whether there is memory for the tree; it is
    asked only where that decides. *kernel_only*: something is wanted that no other method has.
    """
    if method is not Method.AUTO:
        return method
    if kernel_only or may_mount(b"erofs"):
        return Method.KERNEL
    return Method.OVERLAY if may_mount(b"tmpfs") and overlay() else Method.FUSE


def may_mount(kind: bytes) -> bool:
    """Whether this process may mount the file system *kind*.

    Every root of a user namespace can open a context for it; whether it may create the file system is told before the
    kernel looks at the options, so none are needed to find out.
    """
    try:
        with linux.FsContext(kind) as context:
            os.close(context.mount(linux.MountFlag.READ_ONLY))
    except OSError as error:
        if error.errno == errno.ENOSYS:  # Linux before 5.2
            return os.geteuid() == 0
        return error.errno not in (errno.EPERM, errno.ENODEV)
    return True
