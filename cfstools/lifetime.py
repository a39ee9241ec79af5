"""How long objects live: until the end of a block, or on purpose until the process exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self


class Closable(ABC):
    """Base of classes that a ``with`` block closes, whether it ends normally or by an exception."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release what is held. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _UntilExit:
    """Objects kept on purpose so that exit does not free them one by one."""

    enabled = False
    kept: ClassVar[list[object]] = []


def free_at_exit() -> None:
    """Make :func:`keep_until_exit` keep: for a process that runs one command and leaves by ``os._exit``.

    A tree has a few objects for each name, and freeing them one by one takes a tenth of the time of a command that
    reads an image. The kernel frees the memory of a process at once.
    """
    _UntilExit.enabled = True


def keep_until_exit(thing: object) -> None:
    """Keep *thing* alive, and all that it refers to, if :func:`free_at_exit` was called; else do nothing."""
    if _UntilExit.enabled:
        _UntilExit.kept.append(thing)
