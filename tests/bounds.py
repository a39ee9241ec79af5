"""What a call on damaged input may cost: processor time and memory by the size of the input, and an end in any case."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType

SECONDS, SECONDS_PER_MIB = 1.0, 1.0
MEMORY = 64 << 20
# By the clock on the wall: it is only for hangs that no signal handler gets out of, on a machine under load too.
HANG = 120

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
"""Whether AddressSanitizer is in this process, which needs time, and memory of its own without bounds."""

_PEAK = re.compile(rb"VmHWM:\s+(\d+) kB")


def seconds_for(size: int) -> float:
    """The processor time for *size* bytes of input; more where each line is traced or each access is checked."""
    slowness = 10 if SANITIZED else 5 if sys.gettrace() is not None else 1
    return slowness * (SECONDS + SECONDS_PER_MIB * size / 2**20)


@dataclass
class Cost:
    """What a block has cost: seconds of processor time, bytes of memory at the peak; known at its end."""

    seconds: float = 0.0
    memory: int = 0


@contextmanager
def bounded(size: int, *, watchdog: bool = True) -> Iterator[Cost]:
    """Raise AssertionError if the block needs more time or memory than its share for *size* bytes of input.

    Memory counts at its peak, on top of what was in use before. With *watchdog* a block that hangs where no signal is
    handled, in C, ends the process with a traceback. Only for the main thread.
    """
    seconds = seconds_for(size)
    late = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal late
        late = True
        raise AssertionError(f"more than {seconds:.2f} s of processor time for {size} bytes")

    cost = Cost()
    before, begin = _memory(forget=True), time.process_time()
    handler = signal.signal(signal.SIGPROF, stop)
    if watchdog:
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield cost
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        if watchdog:
            faulthandler.cancel_dump_traceback_later()
    # What the handler raises is lost where exceptions cannot leave, as in finalizers.
    assert not late, f"more than {seconds:.2f} s of processor time for {size} bytes"
    cost.seconds, cost.memory = time.process_time() - begin, _memory() - before
    # The sanitizer keeps what was freed, and much beside it.
    assert SANITIZED or cost.memory <= MEMORY + size, f"{cost.memory >> 20} MiB of memory for {size} bytes"


def _memory(*, forget: bool = False) -> int:
    """The most memory this process had at once since it was told to forget that, in bytes."""
    status, peak = _files()
    if forget and peak >= 0:
        os.write(peak, b"5")
    found = _PEAK.search(os.pread(status, 4096, 0))
    return int(found[1]) << 10 if found else 0


@cache
def _files() -> tuple[int, int]:
    """Open files of this process: its status, and the one that sets its peak back (-1 where it cannot be set back)."""
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return status, os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return status, -1
