"""What is made in a store is for those who may write to its directory, whatever the umask of the one who makes it.

Functions raise plain ``OSError``.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress

from cfstools.linux import files
from cfstools.linux.places import make_directory
from cfstools.store.base import STAGE_PREFIX

# linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
_ACL = "system.posix_acl_access"
_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_OWNER, _ACL_MASK = 0x01, 0x10
_READ_WRITE = 6
_WRITE = 2
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_RIGHTS = 0o3777  # of a directory, with the bits for a common group and against removal by others


def make_prefix(directory: int, name: bytes) -> None:
    """Make the directory *name* for objects in the store *directory*; ``FileExistsError`` if there is one.

    Where others may write to the store, it gets its name once it has the rights of the store. Root makes it for the
    store's owner.
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
    """Read and write for those who may write to the store."""
    mode = 0o600
    if store.st_mode & stat.S_IWGRP:
        mode |= 0o060
    if store.st_mode & stat.S_IWOTH:
        mode |= 0o006
    return mode


def share_with_writers(directory: int, fd: int) -> None:
    """Let those read and write the new file *fd* who may write to *directory*, and nobody else."""
    store = os.fstat(directory)
    mode = mode_for_writers(store)
    if not _give_owner(store, fd) and not mode & stat.S_IWOTH:
        mode &= ~0o060
    acl = _access_list(directory)
    if acl is not None:
        os.setxattr(fd, _ACL, _writers(acl))
        return
    with suppress(OSError):  # inherited from a default of the directory
        os.removexattr(fd, _ACL)
    os.fchmod(fd, mode)


def _give_owner(store: os.stat_result, fd: int) -> bool:
    """Let the store's group have the new file *fd*, and its owner if we are root; whether the group has it."""
    try:
        os.fchown(fd, store.st_uid if os.geteuid() == 0 else -1, store.st_gid)
    except OSError:
        # Not a member of the group: those who are must be let in by the owner.
        return os.fstat(fd).st_gid == store.st_gid
    return True


def _access_list(directory: int) -> bytes | None:
    try:
        return os.getxattr(directory, _ACL)
    except OSError:
        return None


def _writers(acl: bytes) -> bytes:
    """The access control list that lets those read and write whom *acl* lets write."""
    entries = []
    for tag, rights, who in _ACL_ENTRY.iter_unpack(acl[_ACL_VERSION.size :]):
        allowed = bool(rights & _WRITE) or tag in (_ACL_OWNER, _ACL_MASK)
        entries.append(_ACL_ENTRY.pack(tag, _READ_WRITE if allowed else 0, who))
    return acl[: _ACL_VERSION.size] + b"".join(entries)
