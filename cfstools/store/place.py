"""Where a store is, as users write it: a path, or a URL of a scheme that is known."""

from __future__ import annotations

import re

from cfstools.errors import UsageError, shown_path
from cfstools.linux.lookup import is_directory

_URL = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def local_path(place: bytes) -> bytes:
    """The path of the store at *place*, a path or a ``file://`` URL. Raises ``UsageError`` for any other scheme."""
    match = _URL.fullmatch(place)
    if match is None:
        return place
    scheme, rest = match[1].lower(), match[2]
    if scheme != b"file":
        raise UsageError(
            f"{shown_path(place)}: stores of the scheme {scheme.decode()}:// are not supported",
            hint="give the path of a directory, or file:///PATH",
        )
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415 - loading it takes longer than opening a store

    host, slash, path = rest.partition(b"/")
    path = slash + unquote_to_bytes(path)
    if host not in (b"", b"localhost") or not path:
        raise UsageError(f"{shown_path(place)}: a file:// URL needs an absolute path", hint="write file:///PATH")
    if b"\0" in path:
        raise UsageError(f"{shown_path(place)}: the path holds a zero byte")
    return path


def split_places(text: bytes) -> list[bytes]:
    """The places in *text*: one, or several paths joined by colons. An empty path among them is left empty.

    A directory whose name holds a colon wins, then directories that exist, then a URL. Raises ``UsageError`` for a URL
    of an unknown scheme, ``InputError`` where it cannot be told what exists.
    """
    if b":" not in text:
        return [text]
    url = _URL.fullmatch(text)
    if url is not None and url[1].lower() == b"file":
        return [local_path(text)]
    if is_directory(text):
        return [b"./" + text if url else text]
    parts = text.split(b":")
    if b"://" in text and not all(part and is_directory(part) for part in parts):
        # A colon before two slashes ends a scheme, also behind other stores.
        local_path(text[text.rfind(b":", 0, text.index(b"://")) + 1 :])
    return parts
