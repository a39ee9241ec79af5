"""How much the user wants to be told, and what the environment says about colours and the digest cache."""

from __future__ import annotations

import os
import sys

from cfstools.cli.output import tell, tell_lines
from cfstools.errors import UsageError
from cfstools.progress import SILENT, Progress
from cfstools.values import Value

_CACHE_OF_ROOT = b"/var/cache/cfstools"


class Session(Value):
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


def default_cache() -> bytes | None:
    """The directory of this user's digest cache; ``None`` where the environment tells of no home.

    Root's is not where variables say: sudo and su may leave those of another user in place.
    """
    if os.geteuid() == 0:
        return _CACHE_OF_ROOT
    home = os.environb.get(b"HOME", b"")
    base = os.environb.get(b"XDG_CACHE_HOME", b"")
    if not base.startswith(b"/"):  # others are to be passed over, the specification says
        base = os.path.join(home, b".cache")
    return os.path.join(base, b"cfstools") if base.startswith(b"/") else None
