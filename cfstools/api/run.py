"""Verb ``run``: a command that sees an image, in namespaces of its own, without root."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cfstools.api.mount import (
    MountDone,
    MountJob,
    default_check,
    implied_stores,
    mount_report,
    refuse_contradictions,
    takes_overlay,
)
from cfstools.api.mountable import (
    DEFAULT_PROTECTION,
    Mountable,
    Protection,
    VerityMode,
    default_scratch,
    mountable_image,
    object_check,
    protected,
)
from cfstools.errors import UsageError
from cfstools.lifetime import Closable
from cfstools.linux import children
from cfstools.linux.files import close
from cfstools.mount import Layers, OverlayVerity
from cfstools.mount.choose import Check, Method
from cfstools.mount.inside.command import Command, run_command
from cfstools.mount.inside.ids import IdChoice, Namespaces
from cfstools.mount.inside.root import RootPlaces, enter_top
from cfstools.mount.inside.telling import Told
from cfstools.report import LeftOut, Report, from_dict
from cfstools.signing import Verifier
from cfstools.store.place import local_path
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from cfstools.api.lazy import LazyStores
    from cfstools.api.serving import Serving

# For a keeper after the end of its command, in seconds.
_PATIENCE = 10.0
_METHODS = (Method.AUTO, Method.OVERLAY, Method.FUSE)


class RunReport(Report):
    """A command that saw an image. ``directory``: where; ``None`` if the image was its root directory.

    ``method``, ``stores``, ``lazy``, ``writable``, ``digest_checked``, ``verified_by``, ``objects_checked``, ``check``,
    ``nosuid``, ``nodev``, ``noexec`` and ``left_out`` are those of a mount. ``map``: how its user namespace maps ids;
    ``None`` without one. ``pid`` is the command's process, ``exit_code`` as a shell shows it (``None`` while it runs),
    ``not_started`` why it could not be started, if it was not.
    """

    image: str
    directory: str | None
    method: str
    map: str | None
    pid: int
    stores: tuple[str, ...]
    lazy: tuple[str, ...]
    writable: bool
    digest_checked: bool
    verified_by: tuple[str, ...]
    objects_checked: bool
    check: str
    nosuid: bool
    nodev: bool
    noexec: bool
    left_out: tuple[LeftOut, ...]
    exit_code: int | None = None
    not_started: str | None = None


def run(
    image: bytes,
    command: Sequence[bytes],
    *,
    environment: Mapping[bytes, bytes],
    ignored: Collection[int] = (),
    directory: bytes | None,
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
    started: Callable[[RunReport], None] = lambda _report: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> RunReport:
    """Run *command* with *environment* where the image at *image* is mounted on *directory*, and wait for its end.

    It starts with the signals *ignored* that its caller has ignored, and otherwise as any program.
    Nobody but the command and its children sees the mount; it ends with the last of them. Without a *directory* the
    image is their root directory, with /dev, /proc, /sys and /etc/resolv.conf of this one where it has such places.

    *method* is ``OVERLAY`` or ``FUSE``; ``AUTO`` takes the first if the kernel lets users have it and there is memory
    for the names of the image. *started* gets the report once all is mounted, before the command starts. Signals that
    this process gets are passed on. In a user namespace set-ID bits mean nothing outside and work inside, unless
    *protection* says otherwise. The rest is as :func:`~cfstools.api.mount.mount` has it. The processes of a mount that
    is served are never in the foreground. Raises CheckFailed, InputError, StoreError, NetworkError, Unsupported,
    UsageError and Interrupted; a command that cannot be started is reported, not raised.
    """
    if method not in _METHODS:
        raise UsageError(f"the method {method.value} has no meaning for a command in namespaces of its own")
    if not command:
        raise UsageError("there is no command to run")
    namespaces = namespaces or Namespaces()
    lazy = lazy or implied_stores(image)
    stores = tuple(map(local_path, layers.stores))
    with mountable_image(
        image, digest=digest, keys=keys, verity=VerityMode.AUTO, lazy=lazy, scratch=scratch, warn=warn
    ) as found:
        objects = object_check(verity, stores, sealed=found.measured is not None)
        layers = layers._replace(objects=OverlayVerity.OFF if lazy else objects, stores=stores)
        job = MountJob(image, found, layers, check or Check.OFF, lazy, scratch or default_scratch(), serving)
        job.check_first()
        with _Shown(directory, started) as shown:
            ended = run_command(
                Command(command, environment, ignored),
                partial(_prepare, job, directory, _Wishes(method, check, verity, protection, digest is not None)),
                ids=namespaces.ids,
                helpers=namespaces.helpers,
                started=shown.tell,
            )
    return shown.report._replace(exit_code=ended.code, not_started=ended.not_started)


class _Wishes(NamedTuple):
    """What was asked for, and is decided where the command will be; ``digest_checked`` is for the report."""

    method: Method
    check: Check | None
    verity: VerityMode
    protection: Protection
    digest_checked: bool


def _prepare(job: MountJob, directory: bytes | None, wishes: _Wishes, choice: IdChoice | None) -> Told:
    """Mount in the namespaces of the command, whose ids are mapped by *choice*; what there is to tell."""
    method = _choose(wishes.method, job.found)
    refuse_contradictions(method, job.layers, wishes.verity, wishes.check, job.lazy)
    layers = protected(job.layers, wishes.protection, checked=job.found.checked or choice is not None)
    job = job._replace(layers=layers, check=wishes.check or default_check(method))
    done = _mounted(job, directory, method)
    report = mount_report(job, directory or b"/", method, done, digest_checked=wishes.digest_checked)
    return {**report.to_dict(), "map": None if choice is None else choice.value}


class _Shown(Closable):
    """What a command sees, once it was told, and the process that keeps it, if there is one.

    At the end it waits a moment for that: traces are written and objects published once the mount has gone. Children
    that the command has left behind may keep it.
    """

    report: RunReport

    def __init__(self, directory: bytes | None, started: Callable[[RunReport], None]) -> None:
        self._is_root = directory is None
        self._started = started
        self._keeper = -1

    def tell(self, pid: int, told: Told) -> None:
        """Take what the process *pid* tells before it becomes the command."""
        keeper = told["pid"]
        if isinstance(keeper, int):
            with suppress(ProcessLookupError):
                self._keeper = os.pidfd_open(keeper)
        directory = None if self._is_root else told["directory"]
        self.report = from_dict(RunReport, {**told, "pid": pid, "directory": directory})
        self._started(self.report)

    def close(self) -> None:
        """Wait for the end of the keeper. Closing twice is allowed."""
        if self._keeper >= 0:
            children.has_ended(self._keeper, _PATIENCE)
            close(self._keeper)
            self._keeper = -1


def _choose(method: Method, found: Mountable) -> Method:
    if method is not Method.AUTO:
        return method
    return Method.OVERLAY if takes_overlay(found) else Method.FUSE


def _mounted(job: MountJob, directory: bytes | None, method: Method) -> MountDone:
    """Mount on *directory*, or on the root directory and enter that."""
    if directory is not None:
        done = job.mount(directory, method)
        # The working directory may be there, or below.
        with suppress(OSError):
            os.chdir(os.getcwdb())
        return done
    with ExitStack() as stack:
        places = RootPlaces(stack)
        done = job.mount(b"/", method)
        enter_top()
        places.bind()
        return done
