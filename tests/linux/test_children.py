"""Children that become commands: found as a shell finds them, with the signals of an ordinary process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cfstools.linux import children
from tests import processes


def started(words: list[bytes], environment: dict[bytes, bytes]) -> int:
    """The exit code of a child that becomes a command, or fails to as a shell says."""
    with children.held_signals():
        pid = os.fork()
        if not pid:
            code = 99
            try:
                children.restore_signals()
                children.execute(words, environment)
            except OSError as error:
                code = children.code_of(error)
            finally:
                os._exit(code)
        return children.wait_for(pid)


def test_commands_are_found_by_path(tmp_path: Path) -> None:
    for number, mode in (("none", 0o644), ("runs", 0o755)):
        (tmp_path / number).mkdir()
        (tmp_path / number / "tool").write_text("#!/bin/sh\nexit 5\n")
        (tmp_path / number / "tool").chmod(mode)
    path = b"/nonexistent:%b:%b" % (bytes(tmp_path / "none"), bytes(tmp_path / "runs"))
    assert started([b"tool"], {b"PATH": path}) == 5
    # What is there and may not be run counts more than what is not there.
    assert started([b"tool"], {b"PATH": b"%b:/nonexistent" % bytes(tmp_path / "none")}) == children.NOT_EXECUTABLE
    assert started([b"tool"], {b"PATH": b"/nonexistent:/dev/null"}) == children.NOT_FOUND
    assert started([bytes(tmp_path / "runs/tool")], {}) == 5
    assert started([b"sh", b"-c", b"exit 6"], {}) == 6


def test_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program\n")
    (tmp_path / "text").chmod(0o755)
    assert started([bytes(tmp_path / "text")], {}) == children.NOT_EXECUTABLE
    assert started([bytes(tmp_path)], {}) == children.NOT_EXECUTABLE


def test_the_environment_is_the_one_given() -> None:
    assert started([b"/bin/sh", b"-c", b'test "$A" = b && test -z "$HOME"'], {b"A": b"b"}) == 0


def test_signals_are_passed_on_and_end_the_child() -> None:
    here, others = threading.get_ident(), processes.children()

    def send() -> None:
        processes.until(lambda: processes.children() > others)
        # To this thread: others of the test run do not hold it back, and would end it.
        signal.pthread_kill(here, signal.SIGUSR2)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert started([b"/bin/sleep", b"1000"], {}) == 128 + signal.SIGUSR2
    finally:
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_signals_are_held_only_meanwhile() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with children.held_signals():
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with nohup; but what Python ignores itself is none of the command's business."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        script = b"kill -HUP $$; kill -PIPE $$; exit 0"
        assert started([b"/bin/sh", b"-c", script], {}) == 128 + signal.SIGPIPE
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_child_ends_though_a_handler_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes at the last moment, in which an exception would lead back into the caller's code."""
    leave = os._exit

    def interrupted(code: int) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        leave(code)

    def stop(*_signal: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "_exit", interrupted)
    before = signal.signal(signal.SIGUSR2, stop)
    try:
        parent = os.getpid()
        child = children.fork(lambda: 42)
        if os.getpid() != parent:
            leave(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_forked_child_that_fails() -> None:
    def fail() -> int:
        raise KeyboardInterrupt

    assert os.waitstatus_to_exitcode(os.waitpid(children.fork(fail), 0)[1]) == 1


def test_a_child_is_ended() -> None:
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    children.end(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
