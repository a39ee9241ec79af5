"""One request and its answer over one connection: what :mod:`cfstools.transport.http` has rules for.

:class:`Wire` is the seam below those rules: ``pool`` is the real one, ``scripted`` a twin that answers from a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from cfstools.transport.base import Body
from cfstools.transport.url import Url


class Sent(NamedTuple):
    """A request as it goes out, with all of its headers."""

    method: str
    url: Url
    headers: Mapping[str, str]
    body: Body | None = None


class Received(Protocol):
    """The head of an answer, with its body still to come."""

    @property
    def status(self) -> int:
        """The status code."""

    def values(self, name: str) -> Sequence[str]:
        """All values of a header, one for each line of this name."""

    def read(self, count: int) -> bytes:
        """The next bytes as they come, at most *count*; none at the end. Raises ``NetworkError``."""

    def allow(self, count: int) -> None:
        """Raise ``NetworkError`` in :meth:`read` once more than *count* bytes came, with all that frames them."""

    def close(self, *, reuse: bool) -> None:
        """Give up the connection, or keep it for the next request if the body was read to its end."""


class Wire(Protocol):
    """Sends requests, from several threads."""

    def send(self, request: Sent) -> Received:
        """The answer to one request. Raises ``NetworkError``, and ``TransientError`` where a retry may help."""

    def close(self) -> None:
        """Close all connections."""
