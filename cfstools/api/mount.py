"""Verb ``mount``: an image, checked if wanted, as a file system: of the kernel, or served by a process of ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from cfstools.api.mountable import (
    DEFAULT_PROTECTION,
    Mountable,
    Protection,
    VerityMode,
    check_objects,
    default_scratch,
    mountable_image,
    object_check,
    protected,
)
from cfstools.errors import CfsError, Phrase, Remedy, UsageError
from cfstools.linux import mount as linux
from cfstools.mount import Layers, Mounting, OverlayVerity, mount_image
from cfstools.mount.choose import Check, Method, choose
from cfstools.output.files import opened_directory
from cfstools.report import LeftOut, Report
from cfstools.signing import Verifier
from cfstools.store.place import local_path
from cfstools.text import shown_path
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from cfstools.api.lazy import LazyStores
    from cfstools.api.serving import Serving
    from cfstools.mount.daemon.serving import Filling
    from cfstools.mount.daemon.start import Started
    from cfstools.mount.inside.ids import IdChoice, Namespaces
    from cfstools.mount.inside.telling import Told


class MountReport(Report):
    """What was mounted, by which ``method``. ``digest_checked`` and ``verified_by`` (key ids) say what the image was
    checked against.

    ``measured``: the kernel enforces the contents of the image. ``objects_checked``: it compares objects with their
    digests; ``check`` says when we do. ``loop``: a loop device was needed. ``nosuid``, ``nodev``, ``noexec``: the flags
    of the mount. ``lazy``: where missing objects come from. ``pid``: the process that keeps the mount, if there is one;
    ``map``: how its namespace maps ids, if it has one. ``left_out``: what the image has and the mount does not show.
    """

    image: str
    directory: str
    method: str
    stores: tuple[str, ...]
    lazy: tuple[str, ...]
    writable: bool
    digest_checked: bool
    verified_by: tuple[str, ...]
    measured: bool
    objects_checked: bool
    check: str
    loop: bool
    nosuid: bool
    nodev: bool
    noexec: bool
    map: str | None
    pid: int | None
    left_out: tuple[LeftOut, ...]


def mount(
    image: bytes,
    directory: bytes,
    *,
    layers: Layers,
    digest: ObjectId | None = None,
    keys: Sequence[Verifier] = (),
    verity: VerityMode = VerityMode.AUTO,
    protection: Protection = DEFAULT_PROTECTION,
    scratch: bytes | None = None,
    method: Method = Method.AUTO,
    check: Check | None = None,
    lazy: LazyStores | None = None,
    serving: Serving | None = None,
    namespaces: Namespaces | None = None,
    warn: Callable[[str], None] = lambda _text: None,
    dry_run: bool = False,
) -> MountReport:
    """Mount the image at *image*, a path or a place that ``pull`` takes, with *layers* on *directory*.

    ``layers.objects`` is set by *verity*, and the flags in *layers* by *protection*. *scratch* is a directory for
    temporaries (``None``: ``/tmp`` or ``/var/tmp``), in which others must not be able to rename: for an image that is
    elsewhere, as hidden mount point, and for fetched objects that no store takes.

    With a *digest* or *keys* the image is checked against all of them first, and not interpreted before; the
    file that was checked is the one that is mounted, whatever its name leads to by then. Only fs-verity keeps others
    from writing to it afterwards. Signatures are those of ``verify``.

    *method* is found by trying what this process may do (docs/mount.md, "Which method"). With *lazy*, objects that no
    store has are fetched when they are read; an image elsewhere implies it. *check* says when contents are compared
    with the image by us. *serving* is about the processes of a mount that is served, *namespaces* about those of the
    method ``LINK``, for which *directory* is the name of the symbolic link to make. With *dry_run* all is checked and
    nothing mounted, and the report says what would be. Raises CheckFailed, InputError, StoreError, NetworkError,
    Unsupported and UsageError.
    """
    lazy = lazy or implied_stores(image)
    stores = tuple(map(local_path, layers.stores))
    with ExitStack() as stack:
        found = stack.enter_context(
            mountable_image(image, digest=digest, keys=keys, verity=verity, lazy=lazy, scratch=scratch, warn=warn)
        )
        chosen = choose(method, overlay=lambda: takes_overlay(found), kernel_only=layers.idmap is not None)
        refuse_contradictions(chosen, layers, verity, check, lazy)
        objects = object_check(verity, stores, sealed=found.measured is not None)
        layers = layers._replace(objects=OverlayVerity.OFF if lazy else objects, stores=stores)
        layers = protected(layers, protection, checked=found.checked)
        job = MountJob(
            image, found, layers, check or default_check(chosen), lazy, scratch or default_scratch(), serving
        )
        job.check_first()
        if dry_run:
            nothing = MountDone(Mounting(loop=False, objects_checked=False))
            return mount_report(job, directory, chosen, nothing, digest_checked=digest is not None)
        report, started = _mounted(job, directory, chosen, namespaces, digest_checked=digest is not None)
    if serving is not None:
        serving.on_ready(report)
    if started is not None:
        _keep(started, directory)
    return report


def _keep(started: Started, directory: bytes) -> None:
    """Stay until the mount is gone, if this process keeps it. Raises CfsError if it was given up, Interrupted."""
    with started:
        code = started.keep()
    if code:
        raise CfsError("the mount was given up", subject=shown_path(directory), hint="its log says why")


def _mounted(
    job: MountJob, directory: bytes, method: Method, namespaces: Namespaces | None, *, digest_checked: bool
) -> tuple[MountReport, Started | None]:
    """Mount *job*; the report, and what keeps the mount if this process started it."""
    if method is Method.LINK:
        return _mounted_in_holder(job, directory, namespaces, digest_checked=digest_checked), None
    done = job.mount(directory, method)
    return mount_report(job, directory, method, done, digest_checked=digest_checked), done.started


def _mounted_in_holder(
    job: MountJob, name: bytes, namespaces: Namespaces | None, *, digest_checked: bool
) -> MountReport:
    """Mount *job* by the method overlay where a process holds it, and make the symbolic link *name* that leads there.

    The mount covers the directory of temporaries, there only.
    """
    from cfstools.mount.inside.holder import start_holder
    from cfstools.mount.inside.ids import Namespaces
    from cfstools.report import from_dict

    def mount_at(place: bytes, choice: IdChoice | None) -> Told:
        done = job.mount(place, Method.OVERLAY)
        report = mount_report(job, name, Method.LINK, done, digest_checked=digest_checked)
        return {**report.to_dict(), "map": None if choice is None else choice.value}

    made = namespaces or Namespaces()
    held = start_holder(name, mount_at, scratch=job.scratch, ids=made.ids, helpers=made.helpers)
    return from_dict(MountReport, {**held.told, "pid": held.pid})


class MountDone(NamedTuple):
    """A mount, and what serves it, if anything does."""

    mounting: Mounting
    started: Started | None = None


class MountJob(NamedTuple):
    """What is to be mounted."""

    image: bytes
    found: Mountable
    layers: Layers
    check: Check
    lazy: LazyStores | None
    scratch: bytes
    serving: Serving | None

    def check_first(self) -> None:
        """Compare all objects with the image, if that is wanted before the mount. Raises CheckFailed."""
        if self.check is Check.FIRST:
            check_objects(self.found, self.layers.stores, missing_is_wrong=self.lazy is None)

    def mount(self, directory: bytes, method: Method) -> MountDone:
        """Mount by a method on *directory*."""
        with opened_directory(directory, directory, "cannot open") as target:
            match method:
                case Method.FUSE:
                    return self._served(target)
                case Method.OVERLAY:
                    return self._over_layer(target, self._overlay)
                case _:
                    return self._over_layer(target, self._kernel)

    def _kernel(self, layers: Layers, target: int) -> Mounting:
        return mount_image(self.found.fd, layers, target, size=self.found.size, scratch=self.scratch)

    def _overlay(self, layers: Layers, target: int) -> Mounting:
        from cfstools.mount.rootless import mount_tree

        return mount_tree(self.found.opened.mounted_tree(), layers, target)

    def _over_layer(self, target: int, mount: Callable[[Layers, int], Mounting]) -> MountDone:
        """Mount an overlay, over a layer of missing objects if there are lazy stores."""
        filling = self._filling()
        if filling is None:
            return MountDone(mount(self.layers, target))
        from cfstools.api.serve import serve_objects
        from cfstools.mount.daemon.namespace import mount_number

        place = os.readlink(linux.fd_path(target))
        with ExitStack() as stack:
            layer = stack.enter_context(serve_objects(filling, self.layers.stores, place, self._serving))
            stack.enter_context(layer.started)
            done = mount(self.layers._replace(lazy=layer.answering), target)
            layer.started.placed(mount_number(place))
            layer.close()
            stack.pop_all()
            return MountDone(done, layer.started)

    def _served(self, target: int) -> MountDone:
        from cfstools.api.serve import nodes_of, serve_tree

        filling = self._filling()
        nodes = nodes_of(self.found.opened.mounted_tree(), size=self.found.size)
        # The processes that serve live long, and need neither.
        self.found.forget()
        served = serve_tree(
            nodes,
            self.layers,
            target,
            source=self.image,
            check=self.check,
            filling=filling,
            serving=self._serving,
        )
        return MountDone(Mounting(loop=False, objects_checked=False, left_out=served.left_out), served.started)

    def _filling(self) -> Filling | None:
        if self.lazy is None:
            return None
        from cfstools.api.lazy import filling_of

        return filling_of(self.image, self.found, self.lazy, self.scratch)

    @property
    def _serving(self) -> Serving:
        from cfstools.api.serving import Serving

        return self.serving or Serving()


def implied_stores(image: bytes) -> LazyStores | None:
    """The lazy stores that an image elsewhere implies; ``None`` for one in a file."""
    if b":" not in image:
        return None
    from cfstools.api.lazy import LazyStores
    from cfstools.sources.oci_request import is_elsewhere

    return LazyStores() if is_elsewhere(image) else None


def takes_overlay(found: Mountable) -> bool:
    """Whether this kernel mounts the tree of the image from memory, and there is enough of that."""
    from cfstools.mount.rootless import fits, overlay_for_users

    return overlay_for_users() and fits(found.opened.mounted_tree())


def default_check(method: Method) -> Check:
    """When contents are compared by us if nothing else is said."""
    return Check.READ if method is Method.FUSE else Check.OFF


def refuse_contradictions(
    method: Method, layers: Layers, verity: VerityMode, check: Check | None, lazy: LazyStores | None
) -> None:
    """Raise UsageError for what a method does not have."""
    if verity is VerityMode.REQUIRE and lazy is not None:
        what = "objects fetched later cannot be sealed before they are opened"
        raise UsageError(what, hint="they are checked when they are fetched")
    if method is not Method.KERNEL and layers.idmap is not None:
        raise UsageError("owners are only mapped by the method kernel")
    if method is not Method.FUSE:
        if check in (Check.READ, Check.OPEN):
            raise UsageError(f"the method {method.value} does not check contents when they are read: the kernel reads")
        return
    if layers.upper is not None:
        raise UsageError("the method fuse takes no writes", hint=Phrase("{} does, for everybody", Remedy.RUN))
    if verity is VerityMode.REQUIRE:
        what = "the method fuse does not let the kernel check objects"
        raise UsageError(what, hint="it checks every block that it serves itself")


def mount_report(
    job: MountJob, directory: bytes, method: Method, done: MountDone, *, digest_checked: bool
) -> MountReport:
    """The report of what *job* has mounted."""
    layers, found = job.layers, job.found
    lazy: tuple[str, ...] = ()
    if job.lazy is not None:
        lazy = job.lazy.shown_for(job.image)
    return MountReport(
        image=shown_path(job.image) if job.lazy is None else job.lazy.shown(job.image),
        directory=shown_path(directory),
        method=method.value,
        stores=tuple(shown_path(store) for store in layers.stores),
        lazy=lazy,
        writable=layers.writable and layers.upper is not None,
        digest_checked=digest_checked,
        verified_by=found.verified_by,
        measured=found.measured is not None,
        objects_checked=done.mounting.objects_checked,
        check=job.check.value,
        loop=done.mounting.loop,
        nosuid=layers.nosuid,
        nodev=layers.nodev,
        noexec=layers.noexec,
        map=None,  # of namespaces; whoever made them adds it
        pid=None if done.started is None else done.started.pid,
        left_out=done.mounting.left_out,
    )
