"""Ports of loopback for servers that cannot say which one they took."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The kernel gives none of these to who asks for any port, nor to who connects.
_PORTS = range(20_000, 30_000)


@contextmanager
def own_port() -> Iterator[int]:
    """A port that nobody listens on but who got it from here; no other test has it meanwhile, in any process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as claim:
        yield next(port for port in random.sample(_PORTS, len(_PORTS)) if _claimed(claim, port))


def _claimed(claim: socket.socket, port: int) -> bool:
    """Take the port of the same number for datagrams, which stands for this one while a server starts and ends."""
    with suppress(OSError):
        socket.create_server(("127.0.0.1", port)).close()
        claim.bind(("127.0.0.1", port))
        return True
    return False


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until *process* listens on *port*."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} does not listen")
