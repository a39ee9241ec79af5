"""The overlay: a mounted image as top layer, the stores as data-only layers below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack

from cfstools.errors import CfsError, InputError, StoreError, Unsupported
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.paths import is_private
from cfstools.mount.layers import Layers, OverlayVerity, cannot, missing
from cfstools.text import shown_path

SOURCE = b"composefs"

# No kernel knows this option; one that takes it only keeps it for mount(2).
_NO_OPTION = b"unsupported"
# mount(2) takes a page.
_OPTIONS_MAX = 4095
# Characters that have a meaning in option strings.
_SPECIAL = (b"\\", b",", b":")


class _OldKernel(Exception):
    """The kernel does not take the layers one by one."""


def mount_overlay(image: bytes, layers: Layers, directory_fd: int) -> bool:
    """Mount *layers* under the mounted *image* on *directory_fd*; whether the kernel checks objects.

    Raises InputError, StoreError and Unsupported.
    """
    with ExitStack() as stack:
        image = _usable_path(image, InputError, stack)
        layers = _usable(layers, stack)
        try:
            return _mount(image, layers, directory_fd)
        except _OldKernel as old:
            why = old.__cause__
        except OSError as error:
            raise _translated(error) from error
        try:
            return mount_overlay_classic(image, layers, directory_fd)
        except OSError as error:
            # If both fail, report the first error: it is more specific.
            reported = why if isinstance(why, OSError) and why.errno == errno.EINVAL else error
            raise _translated(reported) from error


def mount_overlay_classic(image: bytes, layers: Layers, directory_fd: int) -> bool:
    """As :func:`mount_overlay` with mount(2), for kernels before 6.7. Raises OSError and Unsupported."""
    checked = layers.objects is OverlayVerity.REQUIRE
    failed: OSError | None = None
    # One colon: kernels before 6.5, to which stores are layers like others.
    for colons in (b"::", b":"):
        options = classic_options(image, layers, colons=colons)
        if len(options) > _OPTIONS_MAX:
            raise missing("mounting with paths this long", "6.7", hint="use fewer stores, or shorter paths")
        try:
            linux.mount(SOURCE, directory_fd, b"overlay", options, mount_flags(layers))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            failed = failed or error
        else:
            return checked
    if checked:
        raise missing("an overlay with verity=require", "6.6") from failed
    assert failed is not None
    raise failed


def classic_options(image: bytes, layers: Layers, *, colons: bytes) -> bytes:
    """The option string for mount(2): layers joined by *colons*, special characters behind a backslash."""
    lower = colons.join(_escaped(path) for path in (image, *layers.stores))
    parts = [b"metacopy=on", b"redirect_dir=on", b"lowerdir=" + lower]
    if layers.upper is not None and layers.work is not None:
        parts += [b"upperdir=" + _escaped(layers.upper), b"workdir=" + _escaped(layers.work)]
    if layers.objects is OverlayVerity.REQUIRE:
        parts.append(b"verity=require")
    return b",".join(parts)


def _mount(image: bytes, layers: Layers, directory_fd: int) -> bool:
    try:
        context = linux.FsContext(b"overlay")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise _OldKernel from error
        raise
    with context:
        _refuse_emulation(context)
        for name in (b"metacopy", b"redirect_dir"):
            context.set_string(name, b"on")
        context.set_string(b"source", SOURCE)
        checked = _check_objects(context, layers.objects)
        try:
            for name, path in _paths(image, layers):
                context.set_string(name, path)
            mount_fd = context.mount(mount_flags(layers))
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _OldKernel from error
            raise
    try:
        linux.move_mount(mount_fd, directory_fd)
    finally:
        close(mount_fd)
    return checked


def mount_flags(layers: Layers) -> linux.MountFlag:
    """The flags of a mount of *layers*."""
    wanted = linux.MountFlag(0)
    for flag, wish in (
        (linux.MountFlag.READ_ONLY, not layers.writable),
        (linux.MountFlag.NO_SUID, layers.nosuid),
        (linux.MountFlag.NO_DEV, layers.nodev),
        (linux.MountFlag.NO_EXEC, layers.noexec),
        (linux.MountFlag.NO_ATIME, layers.noatime),
    ):
        if wish:
            wanted |= flag
    return wanted


def _refuse_emulation(context: linux.FsContext) -> None:
    try:
        context.set_string(_NO_OPTION, b"1")
    except OSError:
        return
    raise _OldKernel


def _check_objects(context: linux.FsContext, wish: OverlayVerity) -> bool:
    if wish is OverlayVerity.OFF:
        return False
    try:
        context.set_string(b"verity", b"require")
    except OSError as error:
        if wish is OverlayVerity.REQUIRE:
            raise missing("an overlay with verity=require", "6.6") from error
        return False
    return True


def _paths(image: bytes, layers: Layers) -> Iterator[tuple[bytes, bytes]]:
    yield b"lowerdir+", image
    for store in layers.stores:
        yield b"datadir+", store
    if layers.upper is not None and layers.work is not None:
        yield b"upperdir", layers.upper
        yield b"workdir", layers.work


def _usable(layers: Layers, stack: ExitStack) -> Layers:
    return layers._replace(
        stores=tuple(_usable_path(path, StoreError, stack) for path in layers.stores),
        upper=None if layers.upper is None else _usable_path(layers.upper, InputError, stack),
        work=None if layers.work is None else _usable_path(layers.work, InputError, stack),
    )


def _usable_path(path: bytes, failure: type[StoreError | InputError], stack: ExitStack) -> bytes:
    """A path to the directory *path* that the kernel takes as it is; what it leads through is open in *stack*."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(f"cannot open: {error.strerror}", subject=shown_path(path)) from error
    stack.callback(os.close, fd)
    whole = os.path.realpath(path)
    # Too long for an option; or the kernel would take the backslash for an escape, in some options of some versions; or
    # others could let the path lead elsewhere.
    if len(whole) > linux.MAX_FSCONFIG_STRING or b"\\" in whole or not is_private(whole):
        return linux.fd_path(fd)
    return whole


def _escaped(path: bytes) -> bytes:
    for special in _SPECIAL:
        path = path.replace(special, b"\\" + special)
    return path


def _translated(error: OSError) -> CfsError:
    if error.errno == errno.ENODEV:
        return Unsupported("this kernel has no overlay file system (CONFIG_OVERLAY_FS)")
    return cannot("mount the overlay", error)
