"""Verb ``umount``: the end of a mount, whatever it was mounted by."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cfstools.errors import InputError, Unsupported, naming, os_error
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.paths import ResolvedPath, UntrustedPath, open_directory, resolve
from cfstools.mount.overlay import SOURCE
from cfstools.output.files import refused

_SERVED = b"fuse.mkcfs"


def umount(directory: bytes, *, helper: bytes | None = None) -> None:
    """Unmount the image that is mounted on *directory*. Raises InputError, also for any other mount.

    A symbolic link that ``mount`` made goes with its mount. *helper* is the path of fusermount3, for users who may not
    unmount themselves. What serves the mount ends by itself.
    """
    if _was_link(directory):
        return
    with naming(directory):
        try:
            with _found(directory) as (path, found):
                if found is None:
                    raise InputError("nothing is mounted there")
                if found.kind != _SERVED and found != linux.Mounted(b"overlay", SOURCE):
                    hint = "umount(8) unmounts anything"
                    raise InputError("what is mounted there is no composefs image", hint=hint)
                # A name that something is mounted on can be neither renamed nor replaced.
                try:
                    linux.umount(path)
                except OSError as error:
                    if error.errno != errno.EPERM or found.kind != _SERVED or helper is None:
                        raise
                    _by_helper(path, helper)
        except UntrustedPath as untrusted:
            raise refused(untrusted, directory) from untrusted
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InputError("cannot unmount: files there are in use") from error
            if error.errno == errno.EPERM:
                raise Unsupported("cannot unmount: only root can") from error
            raise os_error(error, "cannot unmount") from error


def _was_link(name: bytes) -> bool:
    """End a mount that a symbolic link of ours leads to; ``False`` if there is none."""
    if not os.path.islink(name):
        return False
    from cfstools.mount.inside.holder import end_holder, is_held

    if not is_held(name):
        return False
    end_holder(name)
    return True


def _by_helper(path: bytes, helper: bytes) -> None:
    from cfstools.mount.fuse.connect import unmount_by_helper

    unmount_by_helper(os.path.realpath(path), helper=helper)


@contextmanager
def _found(directory: bytes) -> Iterator[tuple[bytes, linux.Mounted | None]]:
    """A path to *directory* that stays the same, and what is mounted there."""
    with _resolved(directory) as place:
        path = os.path.join(linux.fd_path(place.directory), place.name)
        try:
            mounted = linux.mounted_at(place.name, dir_fd=place.directory)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            mounted = _without_server(os.path.join(os.readlink(linux.fd_path(place.directory)), place.name))
        yield path, mounted


@contextmanager
def _resolved(directory: bytes) -> Iterator[ResolvedPath]:
    try:
        place = resolve(directory)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        # Of a mount whose server has died nothing can be looked at, but its name is in the directory above.
        above, name = os.path.split(directory.rstrip(b"/"))
        place = ResolvedPath(open_directory(above or b"."), name, None, directory)
    if place.name in (b".", b".."):  # the name is in the directory above
        close(place.directory)
        place = resolve(os.path.realpath(directory))
    try:
        yield place
    finally:
        close(place.directory)


def _without_server(point: bytes) -> linux.Mounted | None:
    """What is mounted at the path *point*, which cannot be looked at."""
    found = [one.mounted for one in linux.mounts() if one.point == point]
    return found[-1] if found else None
