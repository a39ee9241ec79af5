"""What every verb is given: how talkative to be, and the streams to talk to."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from cfstools.cli.output import tell, tell_lines
from cfstools.errors import UsageError
from cfstools.progress import SILENT, Progress


class Session(NamedTuple):
    """How much to tell."""

    verbosity: int = 0  # -1 quiet, 0 normal, 1 and more verbose

    def louder(self) -> Session:
        """One step more verbose. Raises UsageError after :meth:`silenced`."""
        if self.verbosity < 0:
            raise UsageError("--verbose and --quiet contradict each other")
        return self._replace(verbosity=self.verbosity + 1)

    def silenced(self) -> Session:
        """Quiet. Raises UsageError after :meth:`louder`."""
        if self.verbosity > 0:
            raise UsageError("--verbose and --quiet contradict each other")
        return self._replace(verbosity=-1)

    def progress(self) -> Progress:
        """The observer for long work: bars on a terminal, silence elsewhere."""
        if self.verbosity < 0 or not sys.stderr.isatty():
            return SILENT
        from cfstools.cli.bars import Bars

        return Bars(color=use_color())

    def note(self, text: str) -> None:
        """Say a line on standard error unless told to be quiet."""
        if self.verbosity >= 0:
            tell(text)

    def warn(self, text: str) -> None:
        """Warn on standard error unless told to be quiet."""
        self.note(f"mkcfs: warning: {text}")

    def detail(self, *lines: str) -> None:
        """Say lines only wanted with ``--verbose``."""
        if self.verbosity > 0:
            tell_lines(lines)

    def summary(self, *lines: str) -> None:
        """Close the work with a summary: on a terminal, or with ``--verbose``."""
        if self.verbosity > 0 or (self.verbosity == 0 and sys.stderr.isatty()):
            tell_lines(lines)


def use_color() -> bool:
    """Whether colour is welcome: standard error is a terminal and ``NO_COLOR`` is not set (or empty)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
