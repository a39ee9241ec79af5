"""What is laid over what, and what came of it."""

from __future__ import annotations

from enum import Enum

from cfstools.errors import UsageError
from cfstools.values import Value


class ObjectCheck(Enum):
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
    ignores or refuses in the whole mount. Raises UsageError for what contradicts itself.
    """

    stores: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    idmap: bytes | None = None
    writable: bool = False
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    objects: ObjectCheck = ObjectCheck.OFF

    def _check(self) -> None:
        if not self.stores:
            raise UsageError("there is no store to take objects from", hint="name one with --store or -o basedir=")
        if (self.upper is None) != (self.work is None):
            raise UsageError("an upper directory and a work directory only go together")


class Mounting(Value):
    """How it was mounted: over a loop device or not, and whether the kernel checks objects."""

    loop: bool
    objects_checked: bool
