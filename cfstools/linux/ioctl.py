"""Numbers of ioctl requests (asm-generic/ioctl.h and the architectures that differ from it)."""

from __future__ import annotations

import os

_MACHINE = os.uname().machine

# These architectures keep the direction in three bits instead of two.
_THREE_BITS = _MACHINE.startswith(("ppc", "mips", "sparc", "alpha"))

IOC_WRITE = 4 if _THREE_BITS else 1
IOC_READ = 2


def ioctl_number(direction: int, kind: int, number: int, size: int) -> int:
    """The request *number* of the family *kind* whose argument has *size* bytes."""
    return direction << (29 if _THREE_BITS else 30) | size << 16 | kind << 8 | number
