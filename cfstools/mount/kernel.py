"""An image and its stores as one mount of the kernel (docs/mount.md, "What is mounted")."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, os_error
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.paths import UntrustedPath, make_directory, open_directory
from cfstools.mount.erofs import mount_erofs
from cfstools.mount.layers import Layers, Mounting, OverlayVerity, cannot
from cfstools.mount.overlay import mount_overlay
from cfstools.text import shown_path


def mount_image(image_fd: int, layers: Layers, directory_fd: int, *, size: int, scratch: bytes) -> Mounting:
    """Mount the image in the first *size* bytes of the file *image_fd*, with *layers*, on *directory_fd*.

    It is this open file that is mounted, whatever its name leads to by now; meanwhile the
    image is mounted in a directory of its own in *scratch*. After an error nothing is mounted. Raises
    InputError, StoreError, Unsupported, which names the feature that the kernel lacks, and what the server of a lazy
    layer raises that does not answer.
    """
    with _namespace(layers.idmap) as idmap_fd, _hidden_place(scratch) as (place, place_fd):
        loop = mount_erofs(image_fd, place_fd, size=size, idmap_fd=idmap_fd)
        with _lazy_as_store(layers, scratch) as by_path:
            checked = mount_overlay(place, by_path, directory_fd)
    return Mounting(loop=loop, objects_checked=checked)


@contextmanager
def _lazy_as_store(layers: Layers, scratch: bytes) -> Iterator[Layers]:
    """*layers* with the lazy one as last store, by a path: before Linux 6.15 no detached mount can be a layer."""
    if layers.lazy is None:
        yield layers
        return
    lazy = layers.lazy()
    with _hidden_place(scratch) as (place, place_fd):
        try:
            linux.move_mount(lazy, place_fd)
        except OSError as error:
            raise cannot("mount the lazy store", error) from error
        # The kernel checks no objects there: what they are fetched by does.
        yield layers._replace(stores=(*layers.stores, place), lazy=None, objects=OverlayVerity.OFF)


@contextmanager
def _hidden_place(directory: bytes) -> Iterator[tuple[bytes, int]]:
    """A directory in *directory* that only we can enter; at the end it is gone, with whatever was mounted on it.

    An overlay keeps the file systems of its layers alive without any place of their own.
    """
    name = b"mkcfs-mount-" + os.urandom(8).hex().encode()
    place = os.path.join(directory, name)
    try:
        above = open_directory(directory, private=True)
        try:
            fd = make_directory(above, name)
        finally:
            close(above)
    except UntrustedPath as untrusted:
        hint = "set TMPDIR to a directory that only root may write"
        raise InputError(untrusted.about(directory), subject=shown_path(directory), hint=hint) from untrusted
    except OSError as error:
        raise os_error(error, "cannot make a temporary directory", subject=shown_path(directory)) from error
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
