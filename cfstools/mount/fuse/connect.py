"""Connecting to the kernel: /dev/fuse, by fusermount3 as a user or by the mount API as root of a namespace."""

from __future__ import annotations

import errno
import os
import subprocess

from cfstools.errors import CfsError, InputError, Phrase, Remedy, Unsupported, os_error
from cfstools.linux.files import close
from cfstools.linux.mount import FsContext, MountFlag
from cfstools.linux.processes import Inlet
from cfstools.text import printable, shown_path

DEVICE = b"/dev/fuse"
SUBTYPE = b"mkcfs"
"""The mount's type is ``fuse.mkcfs``."""

_MAX_TOLD = 4096
# What fusermount3 is given of the environment: nothing of ours may change what a set-user-ID program does.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def by_helper(directory_fd: int, *, helper: bytes, source: bytes, allow_other: bool = False, flags: MountFlag) -> int:
    """Let *helper* (the path of fusermount3) mount on *directory_fd*; return the descriptor of /dev/fuse.

    *source* is shown as the mount's source. With *allow_other* everybody may look, and modes and owners count; without,
    only the caller may. Raises Unsupported with what the helper says.
    """
    options = [b"ro", b"subtype=" + SUBTYPE, b"fsname=" + _escaped(source), *_words(flags)]
    if allow_other:
        options += [b"allow_other", b"default_permissions"]
    with Inlet() as inlet:
        words = [helper, b"-o", b",".join(options), b"--", b"."]
        helping = _start(words, directory_fd, inlet.theirs)
        with helping:
            inlet.close_theirs()
            device = inlet.receive()
            _, told = helping.communicate()
    if device is None or helping.returncode:
        if device is not None:
            close(device)
        close(open_device())  # if it is closed to the caller, this says so
        raise _refused(helper, told)
    return device


def unmount_by_helper(directory: bytes, *, helper: bytes, detach: bool = False) -> None:
    """Let *helper* (fusermount3) unmount the caller's FUSE mount at *directory*, with *detach* even if it is in use.

    Raises Unsupported with what the helper says.
    """
    words = [helper, b"-u", b"-q", *([b"-z"] if detach else []), b"--", directory]
    with _start(words, None, None) as helping:
        _, told = helping.communicate()
    if helping.returncode:
        raise _refused(helper, told)


def detached(
    *,
    source: bytes,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool = False,
    default_permissions: bool = False,
    flags: MountFlag = MountFlag.READ_ONLY,
) -> tuple[int, int]:
    """Make a mount that is nowhere yet; return the descriptors of /dev/fuse and of the mount.

    For who may mount in their user namespace. It belongs to *uid* and *gid*, or else to the caller. Nothing in it can
    be looked at before ``serve`` answers. Raises InputError, Unsupported.
    """
    device = open_device()
    try:
        with FsContext(b"fuse") as context:
            # Not the mount alone: else the kernel asks for the attributes of each file that was read, for its atime.
            context.set_flag(b"ro")
            context.set_string(b"source", source)
            context.set_string(b"subtype", SUBTYPE)
            context.set_string(b"fd", b"%d" % device)
            context.set_string(b"rootmode", b"40000")
            context.set_string(b"user_id", b"%d" % (os.geteuid() if uid is None else uid))
            context.set_string(b"group_id", b"%d" % (os.getegid() if gid is None else gid))
            if allow_other:
                context.set_flag(b"allow_other")
            if default_permissions:
                context.set_flag(b"default_permissions")
            return device, context.mount(flags)
    except BaseException as error:
        close(device)
        if isinstance(error, OSError):
            raise _cannot_mount(error) from error
        raise


def open_device() -> int:
    """Open /dev/fuse, in the user namespace that will mount. Raises Unsupported."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = Phrase("the administrator may open it for users; {} needs none on Linux 6.16", Remedy.RUN)
        closed = isinstance(error, PermissionError)
        raise Unsupported(
            f"cannot open {shown_path(DEVICE)}: {error.strerror}", hint=hint if closed else None
        ) from error


def _cannot_mount(error: OSError) -> CfsError:
    if error.errno in (errno.EPERM, errno.ENODEV, errno.ENOSYS):
        return Unsupported(f"cannot mount a file system in user space: {error.strerror}")
    return os_error(error, "cannot mount a file system in user space")


def _start(words: list[bytes], directory_fd: int | None, socket: int | None) -> subprocess.Popen[bytes]:
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    if socket is not None:
        environment["_FUSE_COMMFD"] = str(socket)
    try:
        return subprocess.Popen(
            words,
            cwd=None if directory_fd is None else f"/proc/self/fd/{directory_fd}",
            env=environment,
            pass_fds=() if socket is None else (socket,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise InputError(f"cannot start: {error.strerror}", subject=shown_path(words[0])) from error


def _refused(helper: bytes, told: bytes) -> Unsupported:
    lines = told[:_MAX_TOLD].strip().splitlines()
    why = lines[-1].removeprefix(helper + b": ").decode(errors="replace") if lines else "no reason given"
    return Unsupported(f"fusermount3 refuses: {printable(why)}")


def _words(flags: MountFlag) -> list[bytes]:
    """*flags* as options, for what is not the helper's default (nosuid, nodev)."""
    words = ((MountFlag.NO_EXEC, b"noexec"), (MountFlag.NO_ATIME, b"noatime"))
    return [word for flag, word in words if flags & flag]


def _escaped(value: bytes) -> bytes:
    return value.replace(b"\\", b"\\\\").replace(b",", b"\\,")
