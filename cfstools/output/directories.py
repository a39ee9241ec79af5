"""Output directories that appear complete or not at all, and the removal of what was not completed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from cfstools.errors import InputError, os_error, shown_path
from cfstools.linux.files import close, rename_noreplace, syncfs
from cfstools.linux.places import Doubt, doubt_about, make_directory, open_directory
from cfstools.output.removal import clean_up, empty_directory, remove_directory
from cfstools.output.temporaries import leads_to, make_held, remove_stale

_PRIVATE = 0o700
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_NO_ACL = _NO_XATTRS | {errno.ENODATA}


@contextmanager
def output_directory(path: bytes, *, sync: bool = False, shared: bool = False) -> Iterator[int]:
    """Make the directory *path*: yields a descriptor of where its contents go, closed to everyone else.

    It gets its name when the block ends well; the block gives it its mode as the last thing it does. After an error
    nothing is left, and what a killed writer of *path* left is removed. A directory that exists must be empty; it may
    be a mount point, so it is filled where it is, and emptied after an error. With *sync* everything is on stable
    storage before the end. For root, nobody else may be able to change *path* and what leads to it, unless *shared*:
    others can then take the directory away, but lead nothing elsewhere. Raises InputError.
    """
    subject = shown_path(path)
    private = not shared and os.geteuid() == 0
    try:
        fd = _opened(path, private=private)
        maker = _new(path, sync=sync, private=private) if fd is None else _existing(fd, path, sync=sync)
    except ValueError:
        raise InputError("a path cannot contain a zero byte", subject=subject) from None
    except Doubt as doubt:
        raise _refused(doubt, path) from doubt
    except OSError as error:
        raise os_error(error, "cannot make a directory there", subject=subject) from error
    try:
        yield from maker
    except Doubt as doubt:
        raise _refused(doubt, path) from doubt
    except OSError as error:
        raise os_error(error, "cannot make the directory", subject=subject) from error


def _opened(path: bytes, *, private: bool) -> int | None:
    try:
        return open_directory(path, private=private)
    except FileNotFoundError:
        if not os.path.basename(path.rstrip(b"/")):
            raise
        return None


def _refused(doubt: Doubt, path: bytes) -> InputError:
    hint = "as root, extract below directories that only root may write, or say --shared" if not os.geteuid() else None
    return InputError(doubt.about(path), subject=shown_path(path), hint=hint)


def _new(path: bytes, *, sync: bool, private: bool) -> Iterator[int]:
    """Fill a temporary beside *path* and rename it."""
    parent, name = os.path.split(path.rstrip(b"/"))
    place = open_directory(parent or b".", private=private)
    try:
        remove = partial(remove_directory, place)
        if doubt_about(os.fstat(place)) is None:
            # Elsewhere others can give a directory of ours such a name, and have us empty it.
            remove_stale(place, name, stat.S_IFDIR, remove)
        temporary, fd = make_held(place, name, partial(_make, place), remove)
        try:
            _drop_acls(fd)
            os.fchmod(fd, _PRIVATE)  # an ACL may have given it less
            yield fd
            if sync:
                syncfs(fd)
            rename_noreplace(place, temporary, place, name)
            _refuse_other(place, name, fd)
        except BaseException as error:
            clean_up(error, partial(remove, temporary, fd), os.path.join(parent, temporary))
            raise
        finally:
            close(fd)
        if sync:
            os.fsync(place)
    finally:
        close(place)


def _refuse_other(place: int, name: bytes, fd: int) -> None:
    """Raise Doubt if it is another directory that got the *name*."""
    try:
        same = leads_to(place, name, fd)
    except OSError:  # the name was given: nothing that fails now takes it back
        return
    if not same:
        raise Doubt(name, "was replaced by another one")


def _make(place: int, name: bytes) -> int:
    while True:
        # Somebody who cleans up may take it for a killed writer's.
        with suppress(FileNotFoundError):
            return make_directory(place, name)


def _existing(fd: int, path: bytes, *, sync: bool) -> Iterator[int]:
    """Fill the directory *fd*, which is closed, and leave it as it was after an error."""
    try:
        _refuse_contents(fd, path)
        with _closed(fd):
            # Once more, now that nobody else can make names in it.
            _refuse_contents(fd, path)
            try:
                yield fd
                if sync:
                    syncfs(fd)
            except BaseException as error:
                clean_up(error, partial(empty_directory, fd), path)
                raise
    finally:
        close(fd)


def _refuse_contents(fd: int, path: bytes) -> None:
    with os.scandir(fd) as entries:
        if next(entries, None) is not None:
            hint = "name a directory that does not exist yet, or an empty one"
            raise InputError("is not empty", subject=shown_path(path), hint=hint)


@contextmanager
def _closed(fd: int) -> Iterator[None]:
    """Close the directory *fd* to everyone else; after an error it has again what it had."""
    status = os.fstat(fd)
    xattrs = _xattrs(fd)
    try:
        if not os.geteuid() and status.st_uid:
            os.fchown(fd, 0, -1)  # its owner could open it again
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
