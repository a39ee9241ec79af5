"""The place of a store as users write it: a path, a ``file://`` URL, or the URL of a place over a network."""

from __future__ import annotations

import re

from cfstools.errors import UsageError
from cfstools.linux.contents import is_directory
from cfstools.text import shown_path, without_secrets

_URL = rb"(?s:([A-Za-z][A-Za-z0-9+.-]*)://(.*))"  # compiled when a place looks like one
_REMOTE = frozenset({b"https", b"http", b"s3", b"gs", b"az"})


def _url(place: bytes) -> re.Match[bytes] | None:
    return re.fullmatch(_URL, place) if b"://" in place else None


def is_remote(place: bytes) -> bool:
    """Whether *place* is the URL of a store over a network."""
    match = _url(place)
    return match is not None and match[1].lower() in _REMOTE


def local_path(place: bytes) -> bytes:
    """The path of the store at *place*, a path or a ``file://`` URL. Raises ``UsageError`` for any other scheme."""
    match = _url(place)
    if match is None:
        return place
    scheme, rest = match[1].lower(), match[2]
    if scheme != b"file":
        raise UsageError(
            f"{without_secrets(shown_path(place))}: a store of the scheme {scheme.decode()}:// cannot be used here",
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
    """Split *text* into places: one place, or several paths joined by colons. Empty paths stay empty.

    An existing directory whose name contains a colon takes precedence, then existing directories, then a URL. Raises
    ``UsageError`` for an unknown URL scheme, ``InputError`` if a lookup fails.
    """
    if b":" not in text:
        return [text]
    url = _url(text)
    if url is not None and url[1].lower() == b"file":
        return [local_path(text)]
    if is_directory(text):
        return [b"./" + text if url else text]
    if is_remote(text):
        return [text]
    parts = text.split(b":")
    if b"://" in text and not all(part and is_directory(part) for part in parts):
        # A colon before two slashes ends a scheme, also after other stores.
        local_path(text[text.rfind(b":", 0, text.index(b"://")) + 1 :])
    return parts
