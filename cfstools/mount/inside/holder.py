"""A mount that a process holds in namespaces of its own, and a symbolic link that leads to it.

The link leads to ``/proc/PID/root/…/.mkcfs-RANDOM``: a place that exists in the holder's mount namespace only. Other
processes of the same user get there through it, at full speed; other users do not. If the holder has gone, and its
number is another process's, there is nothing of this name: the link dangles.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from cfstools.errors import InputError, Unsupported, os_error
from cfstools.linux import children
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.mount.inside.ids import IdChoice, spawn
from cfstools.mount.inside.telling import Told, prepare_and_tell, read_told, silence
from cfstools.mount.layers import cannot
from cfstools.text import shown_path

_LINK = re.compile(rb"/proc/([1-9][0-9]{0,9})/root(/(?:[^\0]*/)?\.mkcfs-[0-9a-f]{32})", re.DOTALL)
_PREFIX = b".mkcfs-"
_FAILED = 1
# The end of a mount may have to write back what was written.
_PATIENCE = 60.0  # seconds


class Held(NamedTuple):
    """A mount in a holder: its process, the path that leads there, and what was mounted."""

    pid: int
    path: bytes
    told: Told


def start_holder(
    name: bytes,
    mount: Callable[[bytes, IdChoice | None], Told],
    *,
    scratch: bytes,
    ids: IdChoice,
    helpers: tuple[bytes, bytes] | None,
) -> Held:
    """Start a process that mounts and holds, and make the symbolic link *name* that leads there.

    *mount* is called in the new namespaces, with the path of the directory *scratch*, which only it has covered there
    by what it mounts. The process belongs to no terminal and ends with :func:`end_holder`. After an error nothing is
    left. *ids* and *helpers* are those of :func:`~cfstools.mount.inside.ids.spawn`. Raises what it and *mount*
    raise, and InputError for a *name* that cannot be made.
    """
    scratch = os.path.realpath(scratch)
    place = os.path.join(scratch, _PREFIX + os.urandom(16).hex().encode())
    told_end, teller = os.pipe()
    with open(told_end, "rb") as told:
        try:
            pid = spawn(ids, helpers, lambda choice: _hold(lambda: mount(scratch, choice), scratch, place, teller))
        finally:
            close(teller)
        try:
            found = read_told(told)
            if found is None:
                raise silence(children.exit_code(os.waitpid(pid, 0)[1]))
            path = b"/proc/%d/root%b" % (pid, place)
            os.symlink(path, name)
        except OSError as error:
            children.end(pid)
            raise os_error(error, "cannot make a symbolic link", subject=shown_path(name)) from error
        except BaseException:
            with suppress(ChildProcessError):
                children.end(pid)
            raise
    return Held(pid, path, found)


def _hold(mount: Callable[[], Told], scratch: bytes, place: bytes, teller: int) -> int:
    children.restore_signals()

    def prepare() -> Told:
        told = mount()
        _hide(scratch, place)
        # Before anything is told: whoever hears it may end the session, or remove its directory.
        _leave_session(keep=(teller,))
        return told

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if not prepare_and_tell(prepare, teller):
        return _FAILED
    close(teller)
    signal.sigwait({signal.SIGTERM})
    return 0


def _hide(scratch: bytes, place: bytes) -> None:
    """Move what is mounted on *scratch* to *place*, a directory in a file system that only this namespace has."""
    top = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy = linux.clone_mount(top)
    finally:
        close(top)
    try:
        linux.umount(scratch, detach=True)
        with linux.FsContext(b"tmpfs") as context:
            context.set_string(b"mode", b"700")
            context.set_string(b"size", b"4096")
            cover = context.mount(linux.MountFlag.NO_SUID | linux.MountFlag.NO_DEV)
        _attach(cover, scratch)
        os.mkdir(place, 0o700)
        _attach(copy, place)
    except OSError as error:
        raise cannot("hide the mount", error) from error
    finally:
        close(copy)


def _attach(mount_fd: int, path: bytes) -> None:
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.move_mount(mount_fd, directory)
    finally:
        close(directory)


def _leave_session(keep: tuple[int, ...]) -> None:
    """Belong to no terminal, no directory and no file of the process that started this one."""
    os.setsid()
    os.chdir(b"/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    others = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2 and int(name) not in keep]
    for fd in others:
        close(fd)


def is_held(name: bytes) -> bool:
    """Whether *name* is a symbolic link to a mount in a holder, which may have ended."""
    return _parsed(name) is not None


def end_holder(name: bytes) -> None:
    """End the holder that the symbolic link *name* leads to and remove the link, also one whose holder has ended.

    Returns once the process has ended. Raises InputError for a link of another form, Unsupported if it cannot be ended.
    """
    found = _parsed(name)
    if found is None:
        raise InputError("is no symbolic link to a mount", subject=shown_path(name))
    pid, place = found
    try:
        with suppress(ProcessLookupError):
            _end(pid, place)
        os.unlink(name)
    except PermissionError as error:
        raise Unsupported(f"cannot end process {pid}, which holds the mount", subject=shown_path(name)) from error
    except OSError as error:
        raise os_error(error, "cannot unmount", subject=shown_path(name)) from error


def _end(pid: int, place: bytes) -> None:
    handle = os.pidfd_open(pid)
    try:
        # From here on the number is this process'. Only a holder has anything mounted at this place; a directory of
        # that name could be made by anybody.
        if not _holds(pid, place):
            return
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not children.has_ended(handle, _PATIENCE):
            raise OSError(errno.EBUSY, f"process {pid} does not end")
    finally:
        close(handle)


def _holds(pid: int, place: bytes) -> bool:
    try:
        return any(one.point == place for one in linux.mounts(pid))
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:  # has ended, and nobody has waited for it yet
            raise
        return False


def _parsed(name: bytes) -> tuple[int, bytes] | None:
    try:
        target = os.readlink(name)
        # What another user's link says is no reason to end a process.
        if os.lstat(name).st_uid != os.geteuid():
            return None
    except OSError:
        return None
    found = _LINK.fullmatch(target)
    return None if found is None else (int(found[1]), found[2])
