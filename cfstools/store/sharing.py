"""Give new files and directories in a store the access rights of its directory, whatever the umask.

So all users who can write to the store can add and remove objects. Functions raise plain ``OSError``.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress

from cfstools.linux import files
from cfstools.linux.paths import make_directory
from cfstools.store.base import STAGE_PREFIX

# linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
_ACL = "system.posix_acl_access"
_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_OWNER, _ACL_MASK = 0x01, 0x10
_READ_WRITE = 6
_WRITE = 2
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_RIGHTS = 0o3777  # permission bits of a directory, set-group-id and sticky bit


def make_prefix(directory: int, name: bytes) -> None:
    """Make the prefix directory *name* in the store *directory*; raises ``FileExistsError``.

    If other users can write to the store, it is named only once it has the store's access rights. Made by root, it
    belongs to the store's owner.
    """
    store = os.fstat(directory)
    if not store.st_mode & _OTHERS_WRITE and (os.geteuid() or not store.st_uid):
        os.mkdir(name, 0o755, dir_fd=directory)
        return
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory, follow_symlinks=False)
        raise FileExistsError(name)
    temporary = STAGE_PREFIX + os.urandom(8).hex().encode()
    fd = make_directory(directory, temporary)
    try:
        _give_rights(directory, store, fd)
        files.rename_noreplace(directory, temporary, directory, name)
    except BaseException:
        with suppress(OSError):
            os.rmdir(temporary, dir_fd=directory)
        raise
    finally:
        files.close(fd)


def _give_rights(directory: int, store: os.stat_result, fd: int) -> None:
    mode = stat.S_IMODE(store.st_mode) & _RIGHTS
    if not _give_owner(store, fd) and not mode & stat.S_IWOTH:
        mode &= ~stat.S_IWGRP
    acl = _access_list(directory)
    if acl is not None:
        os.setxattr(fd, _ACL, acl)
    os.fchmod(fd, mode)


def mode_for_writers(store: os.stat_result) -> int:
    """The mode of a file that every user with write access to the store can read and write."""
    mode = 0o600
    if store.st_mode & stat.S_IWGRP:
        mode |= 0o060
    if store.st_mode & stat.S_IWOTH:
        mode |= 0o006
    return mode


def share_with_writers(directory: int, fd: int) -> None:
    """Let exactly the users with write access to *directory* read and write the new file *fd*."""
    store = os.fstat(directory)
    mode = mode_for_writers(store)
    if not _give_owner(store, fd) and not mode & stat.S_IWOTH:
        mode &= ~0o060
    acl = _access_list(directory)
    if acl is not None:
        os.setxattr(fd, _ACL, _writers(acl))
        return
    with suppress(OSError):  # inherited from a default ACL of the directory
        os.removexattr(fd, _ACL)
    os.fchmod(fd, mode)


def _give_owner(store: os.stat_result, fd: int) -> bool:
    """Give *fd* the store's group, and as root its owner; return whether it has the group now."""
    try:
        os.fchown(fd, store.st_uid if os.geteuid() == 0 else -1, store.st_gid)
    except OSError:
        # Not a member of the group: only the owner can let its members in.
        return os.fstat(fd).st_gid == store.st_gid
    return True


def _access_list(directory: int) -> bytes | None:
    try:
        return os.getxattr(directory, _ACL)
    except OSError:
        return None


def _writers(acl: bytes) -> bytes:
    """An ACL that grants reading and writing to everyone whom *acl* grants writing."""
    entries = []
    for tag, rights, who in _ACL_ENTRY.iter_unpack(acl[_ACL_VERSION.size :]):
        allowed = bool(rights & _WRITE) or tag in (_ACL_OWNER, _ACL_MASK)
        entries.append(_ACL_ENTRY.pack(tag, _READ_WRITE if allowed else 0, who))
    return acl[: _ACL_VERSION.size] + b"".join(entries)
