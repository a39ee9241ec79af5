"""Make output directories atomically: they appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from cfstools.errors import InputError, Phrase, Remedy, os_error
from cfstools.linux.files import close, rename_noreplace, syncfs
from cfstools.linux.paths import UntrustedPath, make_directory, open_directory, untrusted_because
from cfstools.output.removal import clean_up, empty_directory, remove_directory
from cfstools.output.temporaries import leads_to, make_held, remove_stale
from cfstools.text import shown_path

_PRIVATE = 0o700
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_NO_ACL = _NO_XATTRS | {errno.ENODATA}


@contextmanager
def output_directory(path: bytes, *, sync: bool = False, shared: bool = False) -> Iterator[int]:
    """Make the directory *path*: yields the descriptor of a temporary with mode 0700, to be filled by the block.

    It is renamed to *path* when the block ends without an exception; the block must set the final mode last. After an
    error nothing remains; temporaries of killed writers are removed. An existing directory must be empty; it may be a
    mount point, so it is filled in place, and emptied after an error. With *sync* everything is synced before the
    rename. As root, no other user may be able to change *path* or a directory above it, unless *shared*: then others
    can remove the directory, but not redirect it. Raises InputError.
    """
    subject = shown_path(path)
    private = not shared and os.geteuid() == 0
    try:
        fd = _opened(path, private=private)
        maker = _new(path, sync=sync, private=private) if fd is None else _existing(fd, path, sync=sync)
    except ValueError:
        raise InputError("a path cannot contain a zero byte", subject=subject) from None
    except UntrustedPath as untrusted:
        raise _refused(untrusted, path) from untrusted
    except OSError as error:
        raise os_error(error, "cannot make a directory there", subject=subject) from error
    try:
        yield from maker
    except UntrustedPath as untrusted:
        raise _refused(untrusted, path) from untrusted
    except OSError as error:
        raise os_error(error, "cannot make the directory", subject=subject) from error


def _opened(path: bytes, *, private: bool) -> int | None:
    try:
        return open_directory(path, private=private)
    except FileNotFoundError:
        if not os.path.basename(path.rstrip(b"/")):
            raise
        return None


def _refused(untrusted: UntrustedPath, path: bytes) -> InputError:
    hint = Phrase("as root, extract below directories that only root may write, or say {}", Remedy.SHARED)
    return InputError(untrusted.about(path), subject=shown_path(path), hint=None if os.geteuid() else hint)


def _new(path: bytes, *, sync: bool, private: bool) -> Iterator[int]:
    """Fill a temporary directory beside *path* and rename it."""
    parent, name = os.path.split(path.rstrip(b"/"))
    place = open_directory(parent or b".", private=private)
    try:
        remove = partial(remove_directory, place)
        if untrusted_because(os.fstat(place)) is None:
            # Elsewhere other users could rename one of our directories to such a name, so that we delete its contents.
            remove_stale(place, name, stat.S_IFDIR, remove)
        temporary, fd = make_held(place, name, partial(_make, place), remove)
        try:
            _drop_acls(fd)
            os.fchmod(fd, _PRIVATE)  # a default ACL may have restricted it
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
    """Raise UntrustedPath if *name* is another directory than *fd*."""
    try:
        same = leads_to(place, name, fd)
    except OSError:  # the rename has succeeded: a failing check must not undo it
        return
    if not same:
        raise UntrustedPath(name, "was replaced by another one")


def _make(place: int, name: bytes) -> int:
    while True:
        # Another process that cleans up may take it for a killed writer's and remove it; retry.
        with suppress(FileNotFoundError):
            return make_directory(place, name)


def _existing(fd: int, path: bytes, *, sync: bool) -> Iterator[int]:
    """Fill the existing directory *fd* and take over the descriptor; after an error restore it."""
    try:
        _refuse_contents(fd, path)
        with _closed(fd):
            # Check again, now that no other user can create files in it.
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
    """Deny other users access to the directory *fd*; after an error restore owner, mode and attributes."""
    status = os.fstat(fd)
    xattrs = _xattrs(fd)
    try:
        if not os.geteuid() and status.st_uid:
            os.fchown(fd, 0, -1)  # its owner could restore the access
        os.fchmod(fd, _PRIVATE)
        _drop_acls(fd)
        yield
    except BaseException:
        # The owner first, because chown clears mode bits; the mode after the ACLs, which change it.
        with suppress(OSError):
            os.fchown(fd, status.st_uid, status.st_gid)
        _give_back(fd, xattrs)
        with suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
        raise


def _xattrs(fd: int) -> dict[str, bytes | None]:
    """The directory's extended attributes and ACLs, ``None`` for unreadable ones."""
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
    """Set the attributes *wanted* and remove all others, ignoring errors."""
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
    """Remove the directory's ACLs, which new files in it would inherit."""
    for name in _ACLS:
        try:
            os.getxattr(fd, name)
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in _NO_ACL:
                raise
