"""What every verb is given: how talkative to be, and the streams to talk to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import click

from cfstools.errors import UsageError
from cfstools.progress import SILENT, Progress
from cfstools.report import Json

# Larger outputs are handed to the stream in pieces of about this size.
_WRITE_SIZE = 1 << 16


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
        """Say something on standard error unless told to be quiet."""
        if self.verbosity >= 0:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Warn on standard error unless told to be quiet."""
        self.note(f"mkcfs: warning: {text}")

    def detail(self, text: str) -> None:
        """Say something only wanted with ``--verbose``."""
        if self.verbosity > 0:
            click.echo(text, err=True)

    def summary(self, text: str) -> None:
        """Close the work with a summary: on a terminal, or with ``--verbose``."""
        if self.verbosity > 0 or (self.verbosity == 0 and sys.stderr.isatty()):
            click.echo(text, err=True)


def use_color() -> bool:
    """Whether colour is welcome: standard error is a terminal and ``NO_COLOR`` is not set (or empty)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def print_json(document: Json) -> None:
    """Print exactly one JSON document on standard output."""
    import json

    click.echo(json.dumps(document, indent=2))


def print_json_lines(documents: Iterable[Json]) -> None:
    """Print one JSON document a line on standard output."""
    import json

    for document in documents:
        click.echo(json.dumps(document))


def write_lines(lines: Iterable[bytes]) -> None:
    """Write lines of bytes, each already ending in a newline, to standard output."""
    stream = sys.stdout.buffer
    pending: list[bytes] = []
    size = 0
    for line in lines:
        pending.append(line)
        size += len(line)
        if size >= _WRITE_SIZE:
            stream.write(b"".join(pending))
            pending.clear()
            size = 0
    stream.write(b"".join(pending))
    stream.flush()


def binary_stdout(what: str) -> BinaryIO:
    """Standard output for bytes. Raises UsageError when it is a terminal."""
    if sys.stdout.isatty():
        raise UsageError(f"{what} is not written to a terminal", hint="redirect standard output or name a file")
    return sys.stdout.buffer
