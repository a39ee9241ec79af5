"""The layers of a mount, the result of mounting them, and the errors of a kernel that cannot.

Those name the missing feature and the Linux that has it (docs/mount.md, "What the kernel needs").
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum

from cfstools.errors import CfsError, InputError, Phrase, Remedy, Unsupported, UsageError
from cfstools.report import LeftOut
from cfstools.values import Value

__all__ = ["Layers", "LeftOut", "Mounting", "OverlayVerity", "cannot", "missing"]


class OverlayVerity(Enum):
    """Whether the kernel compares objects with their digests when they are opened.

    ``TRY`` leaves it out where the kernel's overlay file system does not know the option, ``REQUIRE`` fails there.
    """

    OFF = "off"
    TRY = "try"
    REQUIRE = "require"


class Layers(Value):
    """The layers below a mount, by path.

    ``stores`` hold the objects, the first that has one counts. Writes go to ``upper``, with ``work`` as scratch space
    on the same file system; without both there are none. ``idmap`` is the file of a user namespace that owners in
    the image are mapped with. ``nosuid`` (file capabilities as well), ``nodev`` and ``noexec`` say what the kernel
    ignores or refuses in the whole mount; with ``noatime`` it keeps no times of reading.

    ``lazy`` gives the descriptor of a detached mount that looks like a store, for objects that no store has, once its
    server answers; the holder closes it when the layers are mounted. Raises UsageError for what contradicts itself.
    """

    stores: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    idmap: bytes | None = None
    writable: bool = False
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    noatime: bool = False
    objects: OverlayVerity = OverlayVerity.OFF
    lazy: Callable[[], int] | None = None

    def _check(self) -> None:
        if not self.stores and self.lazy is None:
            hint = Phrase("name one with {}", Remedy.LAYER_STORES)
            raise UsageError("there is no store to take objects from", hint=hint)
        if (self.upper is None) != (self.work is None):
            raise UsageError("an upper directory and a work directory only go together")
        if self.lazy is not None and self.objects is OverlayVerity.REQUIRE:
            what = "objects fetched later cannot be sealed before they are opened"
            raise UsageError(what, hint="they are checked when they are fetched")


class Mounting(Value):
    """The result of a mount: whether a loop device was needed, whether the kernel checks objects, and what is missing.

    ``left_out`` has what the image has and this mount cannot show.
    """

    loop: bool
    objects_checked: bool
    left_out: tuple[LeftOut, ...] = ()


def missing(what: str, since: str, *, hint: str | None = None) -> Unsupported:
    """*what* needs a newer kernel."""
    return Unsupported(f"{what} needs Linux {since} or newer, and this is {os.uname().release}", hint=hint)


def cannot(what: str, error: OSError) -> CfsError:
    """A system call failed: for want of rights, or for what the kernel says."""
    if error.errno == errno.EPERM:
        hint = Phrase("{} works for everybody", Remedy.EXTRACT)
        return Unsupported(f"cannot {what}: only root can", hint=hint)
    log = "the kernel's log may say more (dmesg)" if error.errno == errno.EINVAL else None
    return InputError(f"cannot {what}: {error.strerror}", hint=log)
