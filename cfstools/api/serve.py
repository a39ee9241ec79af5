"""The processes behind mounts that are served: started for the tree of an image, or for the objects that are missing.

They are shared by the verbs that mount: a layer of missing objects goes below any overlay, also one in a namespace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from cfstools.api.serving import Serving
from cfstools.errors import Phrase, Remedy, Unsupported
from cfstools.lifetime import Closable
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.linux.namespaces import is_first_user_namespace
from cfstools.mount import Layers
from cfstools.mount.choose import Check, may_mount
from cfstools.mount.daemon.namespace import detach, mount_number
from cfstools.mount.daemon.service import Service
from cfstools.mount.daemon.serving import Filling, NumberedFiles, create_first, service_of
from cfstools.mount.daemon.start import Started
from cfstools.mount.fuse import connect
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.mount.fuse.store_nodes import StoreNodes
from cfstools.mount.overlay import mount_flags
from cfstools.report import LeftOut
from cfstools.store.chain import StoreChain
from cfstools.tree import Directory
from cfstools.view.nodes import View

_LAYER = b"mkcfs-objects"
_HARMLESS = linux.MountFlag.READ_ONLY | linux.MountFlag.NO_SUID | linux.MountFlag.NO_DEV | linux.MountFlag.NO_EXEC


class Layer(Closable):
    """A mount that is nowhere yet and looks like a store with all objects of an image; *fd* is its descriptor.

    Close it once an overlay over it is mounted; before, tell ``started``.
    """

    def __init__(self, fd: int, started: Started) -> None:
        self.fd = fd
        self.started = started

    def answering(self) -> int:
        """The descriptor, once the server answers: ``Layers.lazy``. Raises as ``Started.await_answer`` does."""
        self.started.await_answer()
        return self.fd

    def close(self) -> None:
        """Close the descriptor; the mount ends unless it is a layer of another one. Closing twice is allowed."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1


def serve_objects(filling: Filling, stores: Sequence[bytes], place: bytes, serving: Serving) -> Layer:
    """Start what serves the objects that are missing, for an overlay that will be at the path *place*.

    It has yet to answer: what can be done meanwhile need not wait. The first of *stores* is made if it is missing:
    objects are published there. To be called in the user namespace that mounts, by its root. Raises Unsupported and
    StoreError.
    """
    create_first(stores)
    device, fd = connect.detached(source=_LAYER, flags=_HARMLESS)
    try:
        service = service_of(
            device,
            StoreNodes(filling.sizes),
            stores=stores,
            check=Check.OFF,
            filling=filling,
            detach=partial(detach, place),
        )
        return Layer(fd, serving.begin(service))
    except BaseException:
        close(fd)
        raise


class Served(NamedTuple):
    """A mount that is served, and what of the image it does not show."""

    started: Started
    left_out: tuple[LeftOut, ...]


def nodes_of(root: Directory, *, size: int) -> TreeNodes:
    """The tree *root* as it is served, by a file system of *size* bytes; the tree is not needed any more."""
    return TreeNodes(View(root, StoreChain(())), size=size)


def serve_tree(
    nodes: TreeNodes,
    layers: Layers,
    directory_fd: int,
    *,
    source: bytes,
    check: Check,
    filling: Filling | None,
    serving: Serving,
) -> Served:
    """Mount *nodes* on *directory_fd*, served by a process of ours.

    *source* is shown as the mount's source. Raises as :meth:`Serving.start` does, Unsupported, InputError.
    """
    if filling is not None:
        create_first(layers.stores)
    make = _mounted if may_mount(b"fuse") else _mounted_by_helper
    serve = partial(_service, nodes, layers, check, filling)
    return Served(make(serve, layers, directory_fd, source, serving), tuple(_left_out(nodes, layers)))


def _service(
    nodes: NumberedFiles,
    layers: Layers,
    check: Check,
    filling: Filling | None,
    *,
    device: int,
    detach: Callable[[int], None],
    posix_acl: bool,
) -> Service:
    return service_of(
        device, nodes, stores=layers.stores, check=check, filling=filling, detach=detach, posix_acl=posix_acl
    )


def _mounted(
    serve: Callable[..., Service], layers: Layers, directory_fd: int, source: bytes, serving: Serving
) -> Started:
    """Mount as root, also of a user namespace."""
    # In a namespace all ids are the caller's own, and whoever else is in there may look.
    shared = serving.allow_other or not is_first_user_namespace()
    flags = mount_flags(layers) | linux.MountFlag.READ_ONLY
    device, fd = connect.detached(source=source, allow_other=shared, default_permissions=shared, flags=flags)
    place = os.readlink(linux.fd_path(directory_fd))
    try:
        started = serving.start(serve(device=device, detach=partial(detach, place), posix_acl=shared))
        with ExitStack() as stack:
            stack.enter_context(started)
            linux.move_mount(fd, directory_fd)
            started.placed(linux.mount_id(fd))
            stack.pop_all()
        return started
    finally:
        close(fd)


def _mounted_by_helper(
    serve: Callable[..., Service], layers: Layers, directory_fd: int, source: bytes, serving: Serving
) -> Started:
    """Let fusermount3 mount, for an ordinary user."""
    if serving.helper is None:
        hint = Phrase("install the package fuse3, or use {}", Remedy.RUN)
        raise Unsupported("mounting as a user needs fusermount3", hint=hint)
    helper, place = serving.helper, os.readlink(linux.fd_path(directory_fd))
    shared = serving.allow_other
    device = connect.by_helper(
        directory_fd, helper=helper, source=source, allow_other=shared, flags=mount_flags(layers)
    )
    number = mount_number(place)
    take_off = partial(_unmount_by_helper, place, helper)
    try:
        started = serving.start(serve(device=device, detach=take_off, posix_acl=shared))
    except BaseException:
        take_off(number)
        raise
    started.placed(number)
    return started


def _unmount_by_helper(place: bytes, helper: bytes, number: int) -> None:
    if mount_number(place) == number:
        connect.unmount_by_helper(place, helper=helper, detach=True)


def _left_out(nodes: TreeNodes, layers: Layers) -> list[LeftOut]:
    """What is not shown: attributes that only root sees, and device nodes that nobody may open."""
    found = [("trusted attributes", nodes.hidden), ("devices", nodes.devices if layers.nodev else 0)]
    return [LeftOut(what=what, count=count) for what, count in found if count]
