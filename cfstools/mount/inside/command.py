"""A command in namespaces of its own, for which something is mounted first.

Two pipes connect it with the process that waits: on one it tells what was mounted, or what failed; when the other
closes it goes on. Both end with the command's start, and the first then carries the reason if it does not start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from cfstools.linux import children
from cfstools.linux.files import close, write_all
from cfstools.mount.inside.ids import IdChoice, spawn
from cfstools.mount.inside.telling import Told, prepare_and_tell, read_told, silence

_FAILED = 1
_REASON_MAX = 4096


class Command(NamedTuple):
    """A program, its arguments, its environment, and the signals that it ignores from its start on."""

    words: Sequence[bytes]
    environment: Mapping[bytes, bytes]
    ignored: Collection[int] = ()


class Ended(NamedTuple):
    """How a command ended: the exit code as a shell shows it, and why it could not be started, if it was not."""

    code: int
    not_started: str | None


def run_command(
    command: Command,
    prepare: Callable[[IdChoice | None], Told],
    *,
    ids: IdChoice,
    helpers: tuple[bytes, bytes] | None,
    started: Callable[[int, Told], None],
) -> Ended:
    """Run *command* in new namespaces, in which *prepare* mounts something first; wait for its end.

    *started* gets the number of the process and what *prepare* returned, before the command starts. Signals of this
    process are passed on to the command. *ids* and *helpers* are those of
    :func:`~cfstools.mount.inside.ids.spawn`. Raises what it and *prepare* raise, and Interrupted.
    """
    told_end, teller = os.pipe()
    waiter, going_end = os.pipe()
    with children.held_signals(), open(told_end, "rb") as told, open(going_end, "wb", buffering=0) as going:
        ends = _Ends(teller, waiter, going_end)
        try:
            pid = spawn(ids, helpers, lambda choice: _become(command, lambda: prepare(choice), ends))
        finally:
            close(teller)
            close(waiter)
        try:
            first = read_told(told)
            if first is not None:
                started(pid, first)
        except BaseException:
            children.end(pid)
            raise
        going.close()
        reason = told.read(_REASON_MAX)
        code = children.wait_for(pid)
    if first is None:
        raise silence(code)
    return Ended(code, reason.decode("utf-8", "replace") or None)


class _Ends(NamedTuple):
    """Ends of the pipes in the child; *going* is the other one of *waiter*."""

    teller: int
    waiter: int
    going: int


def _become(command: Command, prepare: Callable[[], Told], ends: _Ends) -> int:
    """Prepare, then become the command; the exit code where that fails."""
    close(ends.going)
    children.restore_signals(command.ignored)
    if not prepare_and_tell(prepare, ends.teller):
        return _FAILED
    os.read(ends.waiter, 1)  # nothing is written: it only closes
    try:
        children.execute(command.words, command.environment)
    except OSError as error:
        write_all(ends.teller, (error.strerror or str(error)).encode())
        return children.code_of(error)
