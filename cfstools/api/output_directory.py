"""Output directories that appear complete or not at all, and the removal of what was not completed."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from cfstools.api.temporaries import make_held, remove_stale
from cfstools.errors import InputError, os_error, shown_path
from cfstools.linux.files import close, rename_noreplace, syncfs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE = 0o700
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_NO_ACL = _NO_XATTRS | {errno.ENODATA}


@contextmanager
def output_directory(path: bytes, *, sync: bool = False) -> Iterator[int]:
    """Make the directory *path*: yields a descriptor of where its contents go, closed to everyone else.

    It gets its name when the block ends well; the block gives it its mode as the last thing it does. After an error
    nothing is left, and what a killed writer of *path* left is removed. A directory that exists must be empty; it may
    be a mount point, so it is filled where it is, and emptied after an error. With *sync* everything is on stable
    storage before the end. Raises InputError.
    """
    subject = shown_path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        maker = _new(path, sync=sync)
    except ValueError:
        raise InputError("a path cannot contain a zero byte", subject=subject) from None
    except OSError as error:
        raise os_error(error, "cannot make a directory there", subject=subject) from error
    else:
        maker = _existing(fd, subject, sync=sync)
    try:
        yield from maker
    except OSError as error:
        raise os_error(error, "cannot make the directory", subject=subject) from error


def _new(path: bytes, *, sync: bool) -> Iterator[int]:
    """Fill a temporary beside *path* and rename it."""
    parent, name = os.path.split(path.rstrip(b"/"))
    place = os.open(parent or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove = partial(_remove_tree, place)
        remove_stale(place, name, stat.S_IFDIR, remove)
        temporary, fd = make_held(place, name, partial(_make, place), remove)
        try:
            _drop_acls(fd)
            os.fchmod(fd, _PRIVATE)  # an ACL may have given it less
            yield fd
            if sync:
                syncfs(fd)
            rename_noreplace(place, temporary, place, name)
        except BaseException:
            with suppress(OSError):
                remove(temporary, fd)
            raise
        finally:
            close(fd)
        if sync:
            os.fsync(place)
    finally:
        close(place)


def _make(place: int, name: bytes) -> int:
    while True:
        os.mkdir(name, _PRIVATE, dir_fd=place)
        try:
            return os.open(name, _DIRECTORY, dir_fd=place)
        except FileNotFoundError:
            continue  # somebody who cleaned up took it for a killed writer's
        except BaseException:
            os.rmdir(name, dir_fd=place)
            raise


def _remove_tree(place: int, name: bytes, fd: int) -> None:
    with suppress(OSError):
        # It may have the tree's owner already, who must not come in while it is emptied.
        os.fchown(fd, os.geteuid(), -1)
    empty_directory(fd)
    os.rmdir(name, dir_fd=place)


def _existing(fd: int, subject: str, *, sync: bool) -> Iterator[int]:
    """Fill the directory *fd*, which is closed, and leave it as it was after an error."""
    try:
        with os.scandir(fd) as entries:
            if next(entries, None) is not None:
                hint = "name a directory that does not exist yet, or an empty one"
                raise InputError("is not empty", subject=subject, hint=hint)
        with _closed(fd):
            try:
                yield fd
                if sync:
                    syncfs(fd)
            except BaseException:
                empty_directory(fd)
                raise
    finally:
        close(fd)


@contextmanager
def _closed(fd: int) -> Iterator[None]:
    """Close the directory *fd* to everyone else; after an error it has again what it had."""
    status = os.fstat(fd)
    xattrs = _xattrs(fd)
    try:
        os.fchmod(fd, _PRIVATE)
        _drop_acls(fd)
        yield
    except BaseException:
        # The owner first, as setting it takes bits of the mode away; the mode after the ACLs, which change it.
        with suppress(OSError):
            os.fchown(fd, status.st_uid, status.st_gid)
        _give_back(fd, xattrs)
        with suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
        raise


def _xattrs(fd: int) -> dict[str, bytes | None]:
    """The directory's extended attributes and ACLs, ``None`` for what cannot be read."""
    found: dict[str, bytes | None] = {}
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        names = []
    for name in names:
        found[name] = None
        with suppress(OSError):
            found[name] = os.getxattr(fd, name)
    return found


def _give_back(fd: int, wanted: dict[str, bytes | None]) -> None:
    """Let the directory have the attributes *wanted* and no others, as far as that can be."""
    with suppress(OSError):
        found = _xattrs(fd)
        for name in found.keys() - wanted.keys():
            with suppress(OSError):
                os.removexattr(fd, name)
        for name, value in wanted.items():
            if value is not None and found.get(name) != value:
                with suppress(OSError):
                    os.setxattr(fd, name, value)


def _drop_acls(fd: int) -> None:
    """Remove the directory's ACLs: what is made in it would inherit them."""
    for name in _ACLS:
        try:
            os.getxattr(fd, name)
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in _NO_ACL:
                raise


def empty_directory(fd: int) -> None:
    """Remove all that is below the directory *fd*, however deep, without following links; keeps going on errors.

    Directories are moved up to *fd* before they are emptied, so that two descriptors are enough for any depth.
    """
    with suppress(OSError):
        os.fchmod(fd, _PRIVATE)
        fresh = (b".%s.%d.tmp" % (os.urandom(8).hex().encode(), number) for number in itertools.count())
        stuck: set[bytes] = set()
        while names := set(map(os.fsencode, os.listdir(fd))) - stuck:
            for name in names:
                try:
                    _remove(fd, name, fresh)
                except OSError:
                    stuck.add(name)


def _remove(top: int, name: bytes, fresh: Iterator[bytes]) -> None:
    try:
        os.unlink(name, dir_fd=top)
    except IsADirectoryError:
        fd = _open_to_empty(top, name)
        try:
            for child in map(os.fsencode, os.listdir(fd)):
                try:
                    os.unlink(child, dir_fd=fd)
                except IsADirectoryError:
                    close(_open_to_empty(fd, child))
                    os.rename(child, next(fresh), src_dir_fd=fd, dst_dir_fd=top)
        finally:
            close(fd)
        os.rmdir(name, dir_fd=top)


def _open_to_empty(place: int, name: bytes) -> int:
    """Open a directory, which may have lost the permissions to be emptied or moved."""
    found = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=place)
    try:
        with suppress(OSError):
            # Not by name, which might be a link by now.
            os.chmod(b"/proc/self/fd/%d" % found, _PRIVATE)
        return os.open(b".", _DIRECTORY, dir_fd=found)
    finally:
        close(found)
