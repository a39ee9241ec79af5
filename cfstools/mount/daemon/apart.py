"""Work in a process of its own, whose threads and connections end with it before a server is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from cfstools.errors import CfsError, Interrupted
from cfstools.linux.children import fork
from cfstools.linux.files import close, write_all
from cfstools.mount.daemon import messages

_DONE, _FAILED = b"+", b"-"
_PIECE = 1 << 20


def run_apart(work: Callable[[], bytes]) -> bytes:
    """Call *work* in a child process and return its bytes. Raises the CfsError that it raises.

    The child has copies of all that this process has, also of its descriptors.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)

    def run() -> int:
        close(ours)
        return _run(work, theirs)

    child = fork(run)
    close(theirs)
    said = bytearray()
    try:
        while piece := os.read(ours, _PIECE):
            said += piece
    finally:
        close(ours)
        os.waitpid(child, 0)
    if said[:1] == _DONE:
        return bytes(memoryview(said)[1:])
    raise messages.unpack_error(bytes(said[1:]))


def _run(work: Callable[[], bytes], pipe: int) -> int:
    try:
        said = _DONE + work()
    except CfsError as error:
        said = _FAILED + messages.pack_error(error)
    except BaseException as error:  # noqa: BLE001 - of a process that ends here
        said = _FAILED + messages.pack_error(_as_error(error))
    with suppress(OSError):  # nobody listens any more
        write_all(pipe, said)
    return 0


def _as_error(error: BaseException) -> CfsError:
    if isinstance(error, Exception):
        return CfsError(f"this is a defect of mkcfs: {type(error).__name__}: {error}")
    return Interrupted("interrupted")
