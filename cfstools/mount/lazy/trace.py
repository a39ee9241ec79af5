"""The order in which objects were wanted first, written down to be fetched so the next time.

A trace is a hint: it is not signed and never trusted, and objects that the image has not are passed over. Beside our
own JSON, lines of digests or of paths are read, as ``api.objects`` gives them (docs/mount.md, "Traces").
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from cfstools.errors import FormatError, LimitExceeded
from cfstools.output.files import output_file
from cfstools.strictjson import JsonLimits, NotJson, parse_json
from cfstools.transport.retry import REAL_TIME, Clock

MAX_TRACE = 64 << 20
MAX_ENTRIES = 1_000_000

_SCHEMA = 1
_DIGEST = re.compile(rb"(?:sha(?:256|512):)?([0-9a-f]{2})/?([0-9a-f]{62}|[0-9a-f]{126})(?:\s.*)?")


class Touch(NamedTuple):
    """An object, and how many milliseconds after the first one it was wanted."""

    digest: bytes
    ms: int


class Recorder:
    """Notes objects when they are opened for the first time. Thread-safe."""

    def __init__(self, clock: Clock = REAL_TIME) -> None:
        self._clock = clock
        self._times: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def note(self, digest: bytes) -> None:
        """An object is opened."""
        if digest not in self._times:
            with self._lock:
                self._times.setdefault(digest, self._clock.now())

    def touches(self) -> list[Touch]:
        """What was opened, in order."""
        with self._lock:
            times = list(self._times.items())
        first = times[0][1] if times else 0.0
        return [Touch(digest, round((time - first) * 1000)) for digest, time in times]


def format_trace(image: bytes, touches: Iterable[Touch]) -> bytes:
    """A trace of the image with this fs-verity digest as text: an entry in each line."""
    entries = ",\n".join(json.dumps({"digest": touch.digest.hex(), "ms": touch.ms}) for touch in touches)
    return f'{{"schema": {_SCHEMA}, "image": "{image.hex()}", "objects": [\n{entries}\n]}}\n'.encode("ascii")


def write_trace(path: bytes, image: bytes, touches: Iterable[Touch]) -> None:
    """Write a trace to *path*, whole or not at all. Raises ``InputError``."""
    with output_file(path) as file:
        file.write(format_trace(image, touches))


def parse_trace(data: bytes, known: Container[bytes]) -> list[bytes]:
    """The objects of a trace that are among *known*, in its order, each once.

    Raises ``FormatError`` for what is no trace, ``LimitExceeded`` beyond :data:`MAX_TRACE` bytes or
    :data:`MAX_ENTRIES` entries.
    """
    if len(data) > MAX_TRACE:
        raise LimitExceeded(f"a trace of {len(data)} bytes is larger than {MAX_TRACE}")
    found = _from_json(data) if data.lstrip()[:1] == b"{" else _from_lines(data)
    return list(dict.fromkeys(digest for digest in found if digest in known))


def _from_lines(data: bytes) -> Iterator[bytes]:
    number, start = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)].strip()
        start = end + 1 if end >= 0 else len(data)
        number += 1
        if number > MAX_ENTRIES:
            raise LimitExceeded(f"more than {MAX_ENTRIES} lines in a trace")
        if not line:
            continue
        match = _DIGEST.fullmatch(line)
        if match is None:
            raise FormatError("neither a digest nor an object's path", where=f"line {number}")
        yield bytes.fromhex((match[1] + match[2]).decode("ascii"))


def _from_json(data: bytes) -> list[bytes]:
    limits = JsonLimits(size=MAX_TRACE, depth=4, values=4 * MAX_ENTRIES, string=256, number=32)
    document = parse_json(data, limits, _entry)
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise NotJson(f"a trace has schema {_SCHEMA}")
    entries = document.get("objects")
    if not isinstance(entries, list):
        raise NotJson("a trace has a list of objects")
    if len(entries) > MAX_ENTRIES:
        raise LimitExceeded(f"more than {MAX_ENTRIES} objects in a trace")
    return [entry for entry in entries if isinstance(entry, bytes)]


def _entry(members: dict[str, object]) -> object:
    """The digest of an entry; ``None`` for an entry without one, and the members of anything else."""
    if "objects" in members:
        return members
    text = members.get("digest")
    try:
        return bytes.fromhex(text) if isinstance(text, str) else None
    except ValueError:
        return None
