"""Options about stores: how new objects are stored, and how long a verb waits for others that use one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from cfstools.cli.params import MODE
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.store.base import FsVerity, Sync
from cfstools.store.locking import Waiting
from cfstools.text import shown_path

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Float = click.ParamType[float]
else:  # generic only in newer versions of click
    _Float = click.ParamType

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = r"([0-9]{1,9})([smhd]?)"


class Duration(_Float):
    """A time span: a number of seconds, or one with a unit."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of ``90``, ``90s``, ``15m``, ``1h`` or ``2d``."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(_DURATION, value)
        if match is None:
            self.fail(f"{value!r} is no time span: 90s, 15m, 1h, 2d", param, ctx)
        return float(int(match[1]) * _SECONDS[match[2]])


def lock_timeout_option(function: F) -> F:
    """``--lock-timeout TIME``."""
    return click.option(
        "--lock-timeout",
        type=Duration(),
        metavar="TIME",
        help="Wait no longer than this for others that use the store (default: for ever): 0, 90s, 15m.",
    )(function)


def no_wait_option(function: F) -> F:
    """``--no-wait``, short for ``--lock-timeout 0``."""
    return click.option("--no-wait", is_flag=True, help="Fail instead of waiting while others use the store.")(function)


def waiting(session: Session, lock_timeout: float | None, *, no_wait: bool = False) -> Waiting:
    """What the options ask for; it is said that and for whom one waits. Raises UsageError for both options."""
    if no_wait and lock_timeout is not None:
        raise UsageError("--no-wait and --lock-timeout contradict each other")

    def tell(store: str, who: str) -> None:
        more = f": {who}" if who else ""
        session.note(f"mkcfs: {shown_path(store)}: waiting for other processes that use the store{more}")

    return Waiting(timeout=0.0 if no_wait else lock_timeout, on_wait=tell)


new_object_options = (
    click.option(
        "--verity",
        type=click.Choice(get_args(FsVerity)),
        default="auto",
        show_default=True,
        help="Turn on fs-verity for new objects: where the file system has it (auto), or else fail (require).",
    ),
    click.option(
        "--sync",
        type=click.Choice(get_args(Sync)),
        default="auto",
        show_default=True,
        help="Bring new objects to stable storage in batches, object by object, whichever is faster (auto), or not at "
        "all (none: for stores that end with the job; a power cut may leave objects that are not whole).",
    ),
    click.option(
        "--object-mode",
        type=MODE,
        default="0644",
        show_default=True,
        metavar="OCTAL",
        help="Permissions of new objects.",
    ),
)
"""How new objects are stored; they arrive as ``verity``, ``sync`` and ``object_mode``."""
