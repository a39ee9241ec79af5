"""What lasts until the process ends.

A tree is a few objects for each name, and Python gives them back one by one: a tenth of the time of a command that
reads an image. A process that ends after its command leaves that to the kernel, which takes it all at once.
"""

from __future__ import annotations

from typing import ClassVar


class _Lasting:
    """What was kept, if it is to be."""

    wanted = False
    kept: ClassVar[list[object]] = []


def end_soon() -> None:
    """From now on let last what is kept: for a process that does one thing and ends."""
    _Lasting.wanted = True


def keep(thing: object) -> None:
    """Let *thing* last, if the process ends soon."""
    if _Lasting.wanted:
        _Lasting.kept.append(thing)
