"""What a process in new namespaces tells the one that started it: what it has mounted, or what failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO

from cfstools.errors import CfsError, Exhausted, Interrupted, os_error
from cfstools.linux import children
from cfstools.linux.files import write_all
from cfstools.mount.daemon.messages import pack_error, unpack_error

Told = dict[str, object]
"""What was mounted, as JSON has it."""

_MOST = 1 << 20


def prepare_and_tell(prepare: Callable[[], Told], teller: int) -> bool:
    """Call *prepare* and write what it returns, or its error, to the pipe *teller*; whether it succeeded."""
    try:
        told = prepare()
    except (CfsError, OSError, MemoryError) as failure:
        write_all(teller, pack_error(_deliberate(failure)) + b"\n")
        return False
    write_all(teller, json.dumps({"told": told}).encode() + b"\n")
    return True


def read_told(told: IO[bytes]) -> Told | None:
    """Read what was told; ``None`` if the process ended before. Raises the error that was told."""
    line = told.readline(_MOST)
    if not line:
        return None
    record = json.loads(line)
    if "told" not in record:
        raise unpack_error(line)
    found: Told = record["told"]
    return found


def silence(code: int) -> CfsError:
    """The error for a process that ended with *code* before it told anything: for a signal, most often."""
    return Interrupted("interrupted") if code > children.SIGNALLED else CfsError("what prepares the namespaces failed")


def _deliberate(failure: Exception) -> CfsError:
    match failure:
        case CfsError():
            return failure
        case OSError():
            return os_error(failure, "cannot prepare the namespaces")
        case _:
            return Exhausted("out of memory")
