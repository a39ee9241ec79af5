"""The overlay that users may mount: metadata in a tmpfs, the stores as data-only layers below it.

It needs a mount namespace whose user namespace is one's own, and Linux 6.16 or a kernel that has taken over its
``userxattr`` with data-only layers. Nothing of the host changes: all mounts end with the namespace.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from cfstools.errors import CfsError, InputError, Phrase, Remedy, StoreError, Unsupported
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.mount.layers import Layers, OverlayVerity, cannot
from cfstools.mount.overlay import SOURCE, mount_flags
from cfstools.text import shown_path

# What kernels before 6.16 say to a data-only layer of users, and those before 6.13 to a layer by descriptor.
_TOO_OLD = frozenset({errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP})


def overlay_for_users() -> bool:
    """Whether this process may mount a tmpfs, and an overlay of users with data-only layers, in its namespaces.

    Tried with empty file systems that are mounted nowhere. Versions say nothing: distributions take features over.
    """
    try:
        with ExitStack() as stack:
            layers = [_empty(stack) for _ in range(2)]
            context = stack.enter_context(_context())
            for name, fd in zip((b"lowerdir+", b"datadir+"), layers, strict=True):
                context.set_fd(name, fd)
            context.create()
    except OSError:
        return False
    return True


def _empty(stack: ExitStack) -> int:
    with linux.FsContext(b"tmpfs") as context:
        fd = context.mount(linux.MountFlag.READ_ONLY)
    stack.callback(close, fd)
    return fd


def _context() -> linux.FsContext:
    context = linux.FsContext(b"overlay")
    try:
        context.set_string(b"source", SOURCE)
        context.set_flag(b"userxattr")
    except BaseException:
        context.close()
        raise
    return context


def overlay_of(metadata_fd: int, layers: Layers) -> tuple[int, bool]:
    """Make a detached overlay of *layers* below the directory *metadata_fd*.

    Returns its descriptor, and whether the kernel checks objects. Raises InputError, StoreError, Unsupported, and what
    the server of a lazy layer raises that does not answer.
    """
    with ExitStack() as stack:
        opened = [(b"lowerdir+", metadata_fd)]
        opened += [(b"datadir+", _opened(path, StoreError, stack)) for path in layers.stores]
        if layers.lazy is not None:
            opened.append((b"datadir+", layers.lazy()))
        if layers.upper is not None and layers.work is not None:
            opened.append((b"upperdir", _opened(layers.upper, InputError, stack)))
            opened.append((b"workdir", _opened(layers.work, InputError, stack)))
        try:
            context = stack.enter_context(_context())
            checked = _check_objects(context, layers)
            for name, fd in opened:
                context.set_fd(name, fd)
            return context.mount(mount_flags(layers)), checked
        except OSError as error:
            raise _translated(error) from error


def _check_objects(context: linux.FsContext, layers: Layers) -> bool:
    if layers.objects is OverlayVerity.OFF or layers.lazy is not None:
        return False
    try:
        context.set_string(b"verity", b"require")
    except OSError:
        if layers.objects is OverlayVerity.REQUIRE:
            raise
        return False
    return True


def _opened(path: bytes, failure: type[StoreError | InputError], stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(f"cannot open: {error.strerror}", subject=shown_path(path)) from error
    stack.callback(close, fd)
    return fd


def _translated(error: OSError) -> CfsError:
    if error.errno == errno.ENODEV:
        return Unsupported("this kernel has no overlay file system (CONFIG_OVERLAY_FS)")
    if error.errno in _TOO_OLD and not overlay_for_users():
        return too_old()
    return cannot("mount the overlay", error)


def too_old() -> Unsupported:
    """The error of kernels that lack the overlay of users."""
    hint = Phrase("{} needs none", Remedy.METHOD_FUSE)
    return Unsupported("this kernel's overlay takes no data layers from users (Linux 6.16)", hint=hint)
