"""The image itself as a mount: EROFS on the opened file, or on a loop device where the kernel is older."""

from __future__ import annotations

import errno
import os

from cfstools.errors import CfsError, Phrase, Remedy, Unsupported, os_error
from cfstools.formats.base import HEAD, KernelMount
from cfstools.formats.registry import FORMATS, recognise
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.mount.layers import cannot, missing

# Users only see the overlay, whose own flags count; until then, and after a crash, this mount must be harmless.
_FLAGS = linux.MountFlag.READ_ONLY | linux.MountFlag.NO_SUID | linux.MountFlag.NO_DEV


def kernel_mount(image_fd: int) -> KernelMount:
    """How the kernel mounts the image *image_fd*. Raises InputError for what is no image, or none that it can mount."""
    try:
        head = os.pread(image_fd, HEAD, 0)
    except OSError as error:
        raise os_error(error, "cannot read") from error
    return (recognise(head) or FORMATS[0]).kernel_mount(head)


def mount_erofs(image_fd: int, directory_fd: int, *, size: int, idmap_fd: int | None = None) -> bool:
    """Mount the image in the first *size* bytes of the file *image_fd* on *directory_fd*; whether by a loop device.

    *idmap_fd* is a user namespace that owners are mapped with. Raises InputError and Unsupported.
    """
    how = kernel_mount(image_fd)
    try:
        _mount(linux.source_path(image_fd), directory_fd, how=how, idmap_fd=idmap_fd)
    except OSError as error:
        # Before Linux 6.12, and for files that have no page cache of their own kind.
        if error.errno != errno.ENOTBLK:
            raise _translated(error) from error
    else:
        return False
    mount_erofs_by_loop(image_fd, directory_fd, size=size, how=how, idmap_fd=idmap_fd)
    return True


def mount_erofs_by_loop(
    image_fd: int, directory_fd: int, *, size: int, how: KernelMount, idmap_fd: int | None = None
) -> None:
    """As :func:`mount_erofs`, on a loop device that goes away with the mount."""
    try:
        path, device_fd = linux.attach_loop(image_fd, size)
    except OSError as error:
        hint = "EROFS straight on a file needs Linux 6.12"
        raise Unsupported(f"cannot attach a loop device: {error.strerror}", hint=hint) from error
    try:
        _mount(path, directory_fd, how=how, idmap_fd=idmap_fd)
    except OSError as error:
        raise _translated(error) from error
    finally:
        close(device_fd)


def _mount(source: bytes, directory_fd: int, *, how: KernelMount, idmap_fd: int | None) -> None:
    try:
        context = linux.FsContext(how.file_system)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        if idmap_fd is not None:
            raise missing("mapping owners", "5.19") from error
        mount_erofs_classic(source, directory_fd, how=how)
        return
    with context:
        context.set_string(b"source", source)
        context.set_flag(b"ro")
        for flag in how.flags:
            context.set_flag(flag)
        mount_fd = context.mount(_FLAGS)
    try:
        if idmap_fd is not None:
            _map_ids(mount_fd, idmap_fd)
        linux.move_mount(mount_fd, directory_fd)
    finally:
        close(mount_fd)


def mount_erofs_classic(source: bytes, directory_fd: int, *, how: KernelMount) -> None:
    """Mount with mount(2) alone. Raises OSError."""
    linux.mount(source, directory_fd, how.file_system, b",".join(how.flags), _FLAGS)


def _map_ids(mount_fd: int, idmap_fd: int) -> None:
    try:
        linux.map_ids(mount_fd, idmap_fd)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise missing("mapping owners", "5.19") from error
        hint = "it takes the file of a user namespace other than the first; EROFS can map owners since Linux 5.19"
        raise Unsupported(f"cannot map owners: {error.strerror}", hint=hint) from error


def _translated(error: OSError) -> CfsError:
    if error.errno == errno.ENODEV:
        hint = Phrase("{} needs none", Remedy.EXTRACT)
        return Unsupported("this kernel has no EROFS (CONFIG_EROFS_FS)", hint=hint)
    return cannot("mount the image", error)
