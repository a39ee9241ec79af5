"""What was sent as credentials, so that no message repeats it: servers echo what they got."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections import deque
from contextlib import suppress

from cfstools.errors import CfsError

_KEPT = 256
_SHORTEST = 4  # hiding a shorter one would tell it, by what is missing


class Secrets:
    """The last values of ``Authorization`` that were sent."""

    def __init__(self) -> None:
        self._values: deque[str] = deque(maxlen=_KEPT)

    def add(self, authorization: str) -> None:
        """Hide the credentials of a header from now on; also the password that is encoded in them."""
        scheme, _, credentials = authorization.partition(" ")
        values = [credentials.strip() or scheme]
        if scheme.lower() == "basic":
            with suppress(Error, ValueError):
                values.append(b64decode(credentials, validate=True).decode().partition(":")[2])
        for value in values:
            if len(value) >= _SHORTEST and value not in self._values:
                self._values.append(value)

    def hide(self, text: str) -> str:
        """*text* without any of them."""
        for value in tuple(self._values):
            text = text.replace(value, "***")
        return text

    def hide_in(self, error: BaseException) -> None:
        """Take them out of the texts of *error* and of what it came from, which a traceback shows."""
        pending: list[BaseException | None] = [error]
        seen: set[int] = set()
        while pending:
            one = pending.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            pending += [one.__cause__, one.__context__]
            if isinstance(one, CfsError):
                one.what = self.hide(one.what)
                one.subject = one.subject and self.hide(one.subject)
