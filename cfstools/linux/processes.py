"""Other processes: descriptors that they pass to this one, and signals that they have got."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress

from cfstools.lifetime import Closable

_SIGKILL = 1 << 8  # bit 8 for signal 9
_PENDING = re.compile(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", re.MULTILINE)


class Inlet(Closable):
    """Our end of a pair of connected sockets; ``theirs`` is the descriptor of the other end, for another process."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    @property
    def theirs(self) -> int:
        """The descriptor to pass on; it is not inherited by itself."""
        return self._theirs.fileno()

    def close_theirs(self) -> None:
        """Close the other end here, so that :meth:`receive` ends when the other process does."""
        self._theirs.close()

    def receive(self) -> int | None:
        """Wait for one descriptor; ``None`` if the other process ended without passing one. Raises ``OSError``."""
        data, descriptors, _flags, _address = socket.recv_fds(self._ours, 1, 1)
        if not data or not descriptors:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        os.set_inheritable(descriptors[0], False)  # noqa: FBT003 - has no other form
        return descriptors[0]

    def close(self) -> None:
        """Close both ends. Closing twice is allowed."""
        self._ours.close()
        self._theirs.close()


def is_being_killed(thread: int) -> bool:
    """Whether the thread has got a signal that ends it, and only waits for a system call to return.

    The kernel notes every such signal as SIGKILL. ``False`` if there is no such thread, or /proc does not show it.
    """
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            status = file.read()
    except OSError:
        return False
    return any(int(mask, 16) & _SIGKILL for mask in _PENDING.findall(status))


def send_datagram(address: bytes, text: bytes) -> None:
    """Send *text* to the socket at *address*, a path, or a name behind ``@``. Nobody has to be there."""
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours, suppress(OSError):
        ours.sendto(text, address)
