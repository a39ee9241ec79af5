"""Processes that tests did not start themselves: whether they live, and waiting for what they do; late signals."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

_PATIENCE = 60


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1][0]
    except OSError:
        return False
    return state != "Z"


def sleeps(pid: int) -> bool:
    """Whether no thread of a process has anything to do just now."""
    try:
        stats = [stat.read_text(encoding="ascii") for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread that has just ended
        return False
    return all(stat.rsplit(") ", 1)[1][0] == "S" for stat in stats)


def children() -> set[int]:
    """The children of this process, ended ones that nobody waited for too."""
    return {
        int(number)
        for thread in os.listdir("/proc/self/task")
        for number in Path(f"/proc/self/task/{thread}/children").read_text(encoding="ascii").split()
    }


def server_of(keeper: int) -> int | None:
    """The server of a keeper, which is its latest child; ``None`` while there is none."""
    try:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(children[-1]) if children else None


def late(number: signal.Signals) -> int:
    """A length for ``os.read`` that sends this process a signal when it is asked for.

    That is after Python has looked for signals, and before it waits in the kernel: nothing of it is written in Python.
    """
    kill = partial(ctypes.CDLL(None).kill, os.getpid())
    length: int = type("Late", (), {"__index__": staticmethod(partial(max, [int(number)], key=kill))})()
    return length
