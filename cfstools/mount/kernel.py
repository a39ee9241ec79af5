"""An image and its stores as one mount of the kernel (composefs format, section 9.2)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, os_error, shown_path
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.places import Doubt, make_directory, open_directory
from cfstools.mount.erofs import mount_erofs
from cfstools.mount.layers import Layers, Mounting
from cfstools.mount.overlay import mount_overlay


def mount_image(image_fd: int, layers: Layers, directory_fd: int, *, size: int) -> Mounting:
    """Mount the image in the first *size* bytes of the file *image_fd*, with *layers*, on *directory_fd*.

    It is this open file that is mounted, whatever its name leads to by now. After an error nothing is mounted. Raises
    InputError, StoreError and Unsupported, which names the feature that the kernel lacks.
    """
    with _namespace(layers.idmap) as idmap_fd, _hidden_place() as (place, place_fd):
        loop = mount_erofs(image_fd, place_fd, size=size, idmap_fd=idmap_fd)
        checked = mount_overlay(place, layers, directory_fd)
    return Mounting(loop=loop, objects_checked=checked)


@contextmanager
def _hidden_place() -> Iterator[tuple[bytes, int]]:
    """A directory that only we can enter; at the end it is gone, with whatever was mounted on it.

    An overlay keeps the file systems of its layers alive without any place of their own.
    """
    directory, name = tempfile.gettempdirb(), b"mkcfs-mount-" + os.urandom(8).hex().encode()
    place = os.path.join(directory, name)
    try:
        above = open_directory(directory, private=True)
        try:
            fd = make_directory(above, name)
        finally:
            close(above)
    except Doubt as doubt:
        hint = "set TMPDIR to a directory that only root may write"
        raise InputError(doubt.about(directory), subject=shown_path(directory), hint=hint) from doubt
    except OSError as error:
        raise os_error(error, "cannot make a temporary directory") from error
    try:
        yield place, fd
    finally:
        close(fd)
        with suppress(OSError):  # nothing was mounted
            linux.umount(place, detach=True)
        os.rmdir(place)


@contextmanager
def _namespace(path: bytes | None) -> Iterator[int | None]:
    if path is None:
        yield None
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error, "cannot open", subject=shown_path(path)) from error
    try:
        yield fd
    finally:
        close(fd)
