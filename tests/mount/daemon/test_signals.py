"""What a server does on signals, in a process of its own."""

from __future__ import annotations

import os
import signal

import pytest

from cfstools.linux.children import fork
from cfstools.mount.daemon.log import log_to_descriptor
from cfstools.mount.daemon.signals import Signals, Stopped
from tests.processes import late


@pytest.mark.parametrize("first", ["asked", "watched"])
def test_counters_are_said_once_however_early_they_are_asked_for(first: str) -> None:
    ours, theirs = os.pipe()

    def server() -> int:
        signals = Signals(log_to_descriptor(theirs))
        signals.handle()
        if first == "watched":
            signals.watch(lambda: "counters")
        os.kill(os.getpid(), signal.SIGUSR1)
        if first == "asked":
            signals.watch(lambda: "counters")
        signal.pause()
        return 0

    pid = fork(server)
    os.close(theirs)
    said = os.read(ours, 100)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said += os.read(ours, 100)
    os.close(ours)
    assert said == b"mkcfs: counters\n"


def test_the_main_thread_is_woken_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may miss what wakes it too, as it missed the signal."""
    wake = signal.pthread_kill
    missed: list[int] = []

    def sometimes(thread: int, number: int) -> None:
        if len(missed) == 2:
            wake(thread, number)
        else:
            missed.append(number)

    monkeypatch.setattr(signal, "pthread_kill", sometimes)

    def server() -> int:
        Signals(log_to_descriptor(2)).handle()
        ours, _theirs = os.pipe()
        try:
            os.read(ours, late(signal.SIGTERM))
        except Stopped:
            return 42 + len(missed)
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(fork(server), 0)[1]) == 44
