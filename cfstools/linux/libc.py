"""The C library, for system calls that Python does not have.

Loading ctypes takes longer than reading a small image, and many commands make none of these calls: the library is
loaded with the first one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import Any

_PR_SET_DUMPABLE = 4  # linux/prctl.h


class Calls:
    """The functions, with the types of their arguments; each returns -1 or another number but 0 when it fails."""

    def __init__(self) -> None:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        self.get_errno = ctypes.get_errno
        self.syncfs = library.syncfs
        self.syncfs.argtypes = [ctypes.c_int]
        self.sync_file_range = library.sync_file_range
        self.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        self.fstatfs = library.fstatfs
        self.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
        self.linkat = library.linkat
        self.linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self.prctl = library.prctl
        self.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        # Not every C library has it.
        self.renameat2: Any = getattr(library, "renameat2", None)
        self.openat2 = library["syscall"]
        """Takes the number of the system call, then the arguments of openat2(2)."""
        self.openat2.restype = ctypes.c_long
        self.openat2.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
        self._long = ctypes.c_long
        self._buffer = ctypes.create_string_buffer
        self._address = ctypes.addressof

    def failure(self, name: bytes | None = None) -> OSError:
        """The error of the call that has just failed."""
        number = self.get_errno()
        if name is None:
            return OSError(number, os.strerror(number))
        return OSError(number, os.strerror(number), name)

    def filesystem_type(self, fd: int) -> int:
        """``f_type`` of fstatfs(2). Raises ``OSError``."""
        buffer = self._buffer(256)
        if self.fstatfs(fd, buffer):
            raise self.failure()
        # The first member of struct statfs, a long on most machines; its magic numbers all have 32 bits.
        magic: int = self._long.from_buffer(buffer).value & 0xFFFFFFFF
        return magic

    def copied(self, data: bytes) -> tuple[object, int]:
        """A copy of *data* for the kernel, and its address, which is good as long as the copy is kept; 0 for none."""
        buffer = self._buffer(data, max(len(data), 1))
        return buffer, self._address(buffer) if data else 0


@cache
def calls() -> Calls:
    """The library, loaded once."""
    return Calls()


def forbid_core_dumps() -> None:
    """Disable core dumps, and keep other processes of the user from reading this process's memory.

    The resource limit alone is not enough: it does not apply if the kernel pipes dumps to a program.
    """
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if calls().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise calls().failure()
