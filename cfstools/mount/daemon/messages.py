"""What the processes of a mount tell the one that started them, over a pipe: that all is ready, or what failed.

``0`` and the number of the keeper's process, or an error as JSON. A pipe that is closed before means failure as well.
"""

from __future__ import annotations

import json
import os

from cfstools.errors import CfsError, Phrase, Remedy
from cfstools.linux.files import close

READY = b"0"
_MOST = 1 << 16


def tell_ready(fd: int, pid: int) -> None:
    """Say that the file system answers; *pid* is the process that keeps it. Nobody may be listening any more."""
    _tell(fd, READY + b" %d" % pid)


def tell_error(fd: int, error: CfsError) -> None:
    """Say why the file system does not come."""
    _tell(fd, pack_error(error))


def await_ready(fd: int) -> int:
    """Wait for what is said at the other end of the pipe, and return the number of the keeper's process.

    Raises the error that was said, and CfsError if the other end closed without a word.
    """
    said = b""
    while len(said) < _MOST and (piece := os.read(fd, _MOST)):
        said += piece
    number = said.removeprefix(READY + b" ")
    if number != said and number.isdigit():
        return int(number)
    raise unpack_error(said)


def pack_error(error: CfsError) -> bytes:
    """An error as JSON."""
    record = {
        "error": type(error).__name__,
        "what": _packed(error.what),
        "where": error.where,
        "subject": error.subject,
        "hint": _packed(error.hint),
        "notes": list(getattr(error, "__notes__", ())),
    }
    return json.dumps(record).encode()


def unpack_error(said: bytes) -> CfsError:
    """The error that :func:`pack_error` packed, or one that says that there is none."""
    if not said:
        return CfsError("the process that serves the mount ended before it was ready")
    try:
        record = json.loads(said)
        kind = _kinds().get(record["error"], CfsError)
        error = kind(
            _unpacked(record["what"]) or "",
            where=record["where"],
            subject=record["subject"],
            hint=_unpacked(record["hint"]),
        )
        for note in record["notes"]:
            error.add_note(str(note))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as wrong:
        raise CfsError("the process that serves the mount said nothing that can be read") from wrong
    return error


def _tell(fd: int, text: bytes) -> None:
    try:
        while text:
            text = text[os.write(fd, text) :]
    except OSError:  # nobody listens any more
        return
    finally:
        close(fd)


def _kinds() -> dict[str, type[CfsError]]:
    """The classes of errors, by their names."""
    found: dict[str, type[CfsError]] = {}
    pending: list[type[CfsError]] = [CfsError]
    while pending:
        kind = pending.pop()
        found[kind.__name__] = kind
        pending += kind.__subclasses__()
    return found


def _packed(text: str | None) -> object:
    """A phrase by its template and the names of its remedies, so that the command can spell them as options."""
    if not isinstance(text, Phrase):
        return text
    template, remedies = text.parts
    return {"template": template, "remedies": list(remedies)}


def _unpacked(packed: object) -> str | None:
    if isinstance(packed, dict):
        known = {value for name, value in vars(Remedy).items() if name.isupper()}
        remedies = [str(remedy) for remedy in packed["remedies"]]
        if not known.issuperset(remedies):
            raise ValueError("unknown remedy")
        return Phrase(str(packed["template"]), *remedies)
    return None if packed is None else str(packed)
