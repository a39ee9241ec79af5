"""User and mount namespaces: processes in new ones, and the ids that those know.

Functions raise plain ``OSError``. A process with threads cannot make a user namespace, so all of it happens in a child.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from cfstools.linux.children import fork
from cfstools.linux.files import close, write_all
from cfstools.linux.mount import keep_private, receive_only

# linux/sched.h
_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CAP_SYS_ADMIN = 21  # linux/capability.h

SUBUID, SUBGID = b"/etc/subuid", b"/etc/subgid"
_IDS_MAX = 0xFFFFFFFF  # the last number means "no id"
# A kernel takes 340 ranges; files that tell more than this are not read to their end.
_RANGES_MAX = 64
_SUBORDINATE_MAX = 1 << 20
_FAILED = 1
_MESSAGE_MAX = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class IdRange(NamedTuple):
    """*length* ids from *inside* on in a namespace, which are those from *outside* on around it."""

    inside: int
    outside: int
    length: int


class IdMap(NamedTuple):
    """The ids that a user namespace knows.

    ``helpers`` are the paths of newuidmap and newgidmap, which give ordinary users more ids than their own;
    ``None``: only the caller's user and group are mapped.
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    helpers: tuple[bytes, bytes] | None = None


class HelperFailed(OSError):
    """newuidmap or newgidmap refused, with its own words."""


def one_id(inside: tuple[int, int] | None = None) -> IdMap:
    """The map of the caller alone, as user and group *inside* (``None``: the same numbers as outside)."""
    uid, gid = os.geteuid(), os.getegid()
    inner_uid, inner_gid = inside or (uid, gid)
    return IdMap((IdRange(inner_uid, uid, 1),), (IdRange(inner_gid, gid, 1),))


def subordinate_ids(helpers: tuple[bytes, bytes]) -> IdMap | None:
    """The caller as root, and from 1 on the ids that /etc/subuid and /etc/subgid give; ``None`` without any."""
    ranges = [_with_caller(own, _subordinate(path)) for own, path in ((os.geteuid(), SUBUID), (os.getegid(), SUBGID))]
    if any(len(one) == 1 for one in ranges):
        return None
    return IdMap(ranges[0], ranges[1], helpers)


def _with_caller(own: int, subordinate: Iterable[tuple[int, int]]) -> tuple[IdRange, ...]:
    ranges = [IdRange(0, own, 1)]
    for start, count in subordinate:
        first = ranges[-1].inside + ranges[-1].length
        # Ids that are another's already, or the caller's own, would make the kernel refuse the whole map.
        overlaps = any(start < one.outside + one.length and one.outside < start + count for one in ranges)
        if overlaps or not count or start + count > _IDS_MAX or first + count > _IDS_MAX:
            continue
        ranges.append(IdRange(first, start, count))
        if len(ranges) == _RANGES_MAX:
            break
    return tuple(ranges)


def _subordinate(path: bytes) -> list[tuple[int, int]]:
    """The ranges (first id, count) that the file at *path* gives the caller, by name or number."""
    uid = os.geteuid()
    names = {b"%d" % uid}
    with suppress(KeyError):
        names.add(os.fsencode(pwd.getpwuid(uid).pw_name))
    try:
        with open(path, "rb") as file:
            lines = file.read(_SUBORDINATE_MAX).splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        name, _, rest = line.partition(b":")
        start, _, count = rest.partition(b":")
        if name in names and start.isdigit() and count.isdigit():
            ranges.append((int(start), int(count)))
    return ranges


def known_ids(kind: str) -> list[range]:
    """The ids that this process' namespace knows, of the *kind* ``uid`` or ``gid``."""
    with open(f"/proc/self/{kind}_map", "rb") as file:
        words = [tuple(map(int, line.split())) for line in file]
    return [range(inside, inside + count) for inside, _, count in words]


def is_first_user_namespace() -> bool:
    """Whether ids mean here what they mean on the whole machine."""
    return known_ids("uid") == [range(_IDS_MAX)]


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN in its own user namespace."""
    with open("/proc/self/status", "rb") as file:
        effective = next((line.split()[1] for line in file if line.startswith(b"CapEff:")), b"0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def spawn(ids: IdMap | None, work: Callable[[], int]) -> int:
    """Fork a process into a new mount namespace, call *work* there and exit with what it returns; return the pid.

    With *ids* there is a new user namespace too, of which the process is the owner, with all capabilities. Mounts made
    in there are seen by nobody outside; those made outside later are seen in there. Returns once the namespaces are
    made. Raises OSError for what the kernel refuses, with nothing left behind, and HelperFailed. *work* must not
    return through code of the caller: the child exits without unwinding what the caller has open.
    """
    ready, ready_end = os.pipe()
    mapped, mapped_end = os.pipe()

    def run() -> int:
        close(ready)
        close(mapped_end)
        return _run(ids, work, ready_end, mapped)

    pid = fork(run)
    close(ready_end)
    close(mapped)
    try:
        _finish_start(pid, ids, ready, mapped_end)
    except BaseException:
        close(mapped_end)  # ends the child, if it waits
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    finally:
        close(ready)
    close(mapped_end)
    return pid


def enter_mounts(path: bytes) -> None:
    """Move this process into the mount namespace that the file *path* stands for. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNS):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        close(fd)


def leave_mounts() -> None:
    """Move this process into a mount namespace of its own, a copy in which nothing appears that others mount.

    Raises OSError: it takes CAP_SYS_ADMIN.
    """
    _unshare(_CLONE_NEWNS)
    top = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        keep_private(top)
    finally:
        close(top)


def _finish_start(pid: int, ids: IdMap | None, ready: int, mapped_end: int) -> None:
    """The part outside: maps that need helpers, and the child's errors."""
    told = os.read(ready, 16)
    if told == b"map" and ids is not None and ids.helpers is not None:
        for helper, ranges in zip(ids.helpers, (ids.uids, ids.gids), strict=True):
            _call(helper, [b"%d" % pid, *(b"%d" % number for one in ranges for number in one)])
        write_all(mapped_end, b"done")
        told = os.read(ready, 16)
    if told != b"done":
        number = int(told) if told.isdigit() else errno.ECANCELED
        raise OSError(number, os.strerror(number))


def _run(ids: IdMap | None, work: Callable[[], int], ready: int, mapped: int) -> int:
    try:
        _enter(ids, ready, mapped)
        write_all(ready, b"done")
    except OSError as error:
        write_all(ready, b"%d" % (error.errno or errno.EIO))
        return _FAILED
    close(ready)
    close(mapped)
    return work()


def _enter(ids: IdMap | None, ready: int, mapped: int) -> None:
    _unshare(_CLONE_NEWNS if ids is None else _CLONE_NEWNS | _CLONE_NEWUSER)
    if ids is not None:
        if ids.helpers is None:
            _map_own(ids)
        else:
            write_all(ready, b"map")
            if os.read(mapped, 16) != b"done":
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        # Whoever has one id is that in all its roles.
        os.setresgid(*[ids.gids[0].inside] * 3)
        os.setresuid(*[ids.uids[0].inside] * 3)
    top = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        receive_only(top)
    finally:
        close(top)


def own_directory(directory: int, work: Callable[[], None]) -> None:
    """Call *work* in a thread of its own and wait for it: its working directory is *directory*, its umask 0.

    Those of the process stay. Raises what *work* raises.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _unshare(_CLONE_FS)
            os.fchdir(directory)
            os.umask(0)
            work()
        except BaseException as failure:  # noqa: BLE001 - raised again in the thread that waits
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _map_own(ids: IdMap) -> None:
    for name, text in (
        ("setgroups", b"deny"),
        ("uid_map", b"%d %d %d" % ids.uids[0]),
        ("gid_map", b"%d %d %d" % ids.gids[0]),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:
            file.write(text)


def _call(program: bytes, arguments: Sequence[bytes]) -> None:
    """Run *program* and wait for it. Raises HelperFailed with what it said."""
    said, said_end = os.pipe()
    try:
        try:
            actions = [(os.POSIX_SPAWN_DUP2, said_end, 2)]
            pid = os.posix_spawn(program, [program, *arguments], {}, file_actions=actions)
        finally:
            close(said_end)
        message = b""
        while piece := os.read(said, _MESSAGE_MAX):
            message = (message + piece)[:_MESSAGE_MAX]
    finally:
        close(said)
    _, status = os.waitpid(pid, 0)
    if status:
        text = message.decode("utf-8", "replace").strip() or f"{os.fsdecode(program)} failed"
        raise HelperFailed(errno.EPERM, text)
