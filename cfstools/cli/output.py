"""The one door to standard output and standard error: whatever is printed for people is escaped here, line by line.

Names, tags and messages may quote what somebody else chose. A line given to this module comes out as one line, in which
nothing moves the cursor, changes the terminal or hides (:func:`cfstools.text.printable`); what the stream's encoding
does not have is escaped in the same way. Formats with escapes of their own (listings, dumps, JSON) and contents are
bytes, and go through :func:`write_lines` and :func:`binary_stdout`.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable
from itertools import chain
from types import TracebackType
from typing import BinaryIO, TextIO

from cfstools.errors import UsageError
from cfstools.report import Json
from cfstools.text import escaped, printable

# Larger outputs are handed to the stream in pieces of about this size.
_WRITE_SIZE = 1 << 16
_ESCAPING = "mkcfs-escaping"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def open_streams() -> None:
    """Make the standard streams fit for :func:`print_lines`, and give a process without one of them an empty one.

    Python leaves a closed stream out, and the first file opened would get its number and receive what is printed.
    """
    codecs.register_error(_ESCAPING, _escape_unencodable)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPING)


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes in place of characters its encoding does not have."""
    assert isinstance(error, UnicodeEncodeError)
    return escaped(error.object[error.start : error.end]), error.end


def print_line(line: str) -> None:
    """Print one line of a result on standard output."""
    _write(sys.stdout, (line,))


def print_lines(lines: Iterable[str]) -> None:
    """Print the lines of a result on standard output."""
    _write(sys.stdout, lines)


def tell(line: str) -> None:
    """Say one line on standard error."""
    _write(sys.stderr, (line,))


def tell_lines(lines: Iterable[str]) -> None:
    """Say some lines on standard error."""
    _write(sys.stderr, lines)


def tell_traceback(error: BaseException) -> None:
    """Show where *error* comes from, on standard error; no line of it can be taken for one of a message."""
    import traceback

    for part in traceback.format_exception(error):
        tell_lines(f"| {line}" for line in part.removesuffix("\n").split("\n"))


def report_defect(_kind: type[BaseException], error: BaseException, _place: TracebackType | None) -> None:
    """What ends the process though nothing should (a ``sys.excepthook``)."""
    tell_traceback(error)
    tell(f"mkcfs: this is a defect of mkcfs: {type(error).__name__}: {error}")


def print_json(document: Json) -> None:
    """Print exactly one JSON document on standard output, in ASCII."""
    import json

    pieces = json.JSONEncoder(indent=2).iterencode(document)
    write_lines(piece.encode("ascii") for piece in chain(pieces, "\n"))


def print_json_lines(documents: Iterable[Json]) -> None:
    """Print one JSON document a line on standard output, in ASCII."""
    import json

    write_lines(json.dumps(document).encode("ascii") + b"\n" for document in documents)


def write_lines(lines: Iterable[bytes]) -> None:
    """Write lines of a format that has escapes of its own to standard output, each already ending as it should."""
    sys.stdout.flush()
    stream = sys.stdout.buffer
    pending: list[bytes] = []
    size = 0
    for line in lines:
        pending.append(line)
        size += len(line)
        if size >= _WRITE_SIZE:
            _write_all(stream, b"".join(pending))
            pending.clear()
            size = 0
    _write_all(stream, b"".join(pending))
    stream.flush()


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """Write *data*, also where the stream has no buffer (``PYTHONUNBUFFERED``) and takes only a part at a time."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def binary_stdout(what: str) -> BinaryIO:
    """Standard output for bytes. Raises UsageError when it is a terminal."""
    if sys.stdout.isatty():
        raise UsageError(f"{what} is not written to a terminal", hint="redirect standard output or name a file")
    return sys.stdout.buffer


def _write(stream: TextIO, lines: Iterable[str]) -> None:
    pending: list[str] = []
    size = 0
    for line in lines:
        pending.append(printable(line))
        size += len(line) + 1
        if size >= _WRITE_SIZE:
            stream.write("\n".join(pending) + "\n")
            pending.clear()
            size = 0
    if pending:
        stream.write("\n".join(pending) + "\n")
    stream.flush()


def size_text(size: int) -> str:
    """*size* in bytes with a binary unit: ``512 B``, ``1.5 MiB``."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size} B" if power == 0 else f"{size / 1024**power:.1f} {_UNITS[power]}"
