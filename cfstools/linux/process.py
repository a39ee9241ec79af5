"""What this process lets others see of itself."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress

_PR_SET_DUMPABLE = 4  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def forbid_core_dumps() -> None:
    """Let no core dump be made of this process, and no other process of the user read its memory, until it ends.

    The limit alone is not enough: where the kernel hands dumps to a program, it does not count.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
