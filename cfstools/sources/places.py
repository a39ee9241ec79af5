"""Places of image files and of stores: directories, and URLs of web servers and object storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import unquote_to_bytes

from cfstools.errors import LimitExceeded, NotFound, UsageError, os_error
from cfstools.store.place import is_remote, local_path
from cfstools.streams.buffered import read_up_to
from cfstools.text import shown_path, without_secrets
from cfstools.transport.base import Place, Target
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.objects import PlaceObjects
from cfstools.transport.open import NetworkOptions, open_place, open_target
from cfstools.transport.reading import DEFAULT_RULES
from cfstools.transport.retry import RetryRules
from cfstools.verity.object_id import leaves_name, object_name

OBJECTS = "objects"
"""Where the objects of images are, beside these."""


def split_file(address: bytes) -> tuple[bytes, str]:
    """The place that the file at *address*, a path or URL, is in, and its name there. Raises ``UsageError``.

    A path is followed to the file that it leads to.
    """
    if not is_remote(address):
        path = os.path.realpath(local_path(address))
        return os.path.dirname(path), os.fsdecode(os.path.basename(path))
    whole, mark, query = address.partition(b"?")
    scheme, rest = whole.split(b"://", 1)
    directory, slash, name = rest.rpartition(b"/")
    plain = os.fsdecode(unquote_to_bytes(name))
    if not slash or not directory or plain in {"", ".", ".."} or "/" in plain:
        raise UsageError(f"{without_secrets(shown_path(address))} names no image", hint="write its file too: …/app.cfs")
    return scheme + b"://" + directory + mark + query, plain


@contextmanager
def open_files(place: bytes, network: NetworkOptions) -> Iterator[Place]:
    """Open a directory or the place at a URL for reading. Raises ``InputError``, ``UsageError``, ``Unsupported``."""
    if is_remote(place):
        with open_place(place, network) as opened:
            yield opened
        return
    target = DirectoryTarget(local_path(place))
    try:
        yield target
    finally:
        target.close()


@contextmanager
def open_to_fill(place: bytes, network: NetworkOptions) -> Iterator[Target]:
    """Open a directory, made if it is missing, or the place at a URL for writing. Raises as :func:`open_files` does."""
    if is_remote(place):
        with open_target(place, network) as opened:
            yield opened
        return
    path = local_path(place)
    make_directory(path)
    target = DirectoryTarget(path)
    try:
        yield target
    finally:
        target.close()


def make_directory(path: bytes) -> None:
    """Make a directory unless there is one. Raises InputError."""
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except OSError as error:
        raise os_error(error, "cannot make", subject=shown_path(path)) from error


def store_objects(place: Place, prefix: str = "", *, rules: RetryRules = DEFAULT_RULES) -> PlaceObjects:
    """The objects of the store at *prefix* of a place, as something to fetch from; *rules* are for what breaks."""
    return PlaceObjects(
        place,
        partial(object_name, prefix=prefix),
        place.describe(prefix),
        leaves_of=partial(leaves_name, prefix=prefix),
        rules=rules,
    )


def read_file(place: Place, name: str, limit: int) -> bytes:
    """The contents of a file in a place, resumed where the connection breaks.

    Raises ``NotFound``, ``NetworkError``, and ``LimitExceeded`` for more than *limit* bytes.
    """
    subject = place.describe(name)
    size = place.size(name)
    if size is None:
        raise NotFound("not found", subject=subject)
    if size > limit:
        raise LimitExceeded(f"has {size} bytes; at most {limit} are read", subject=subject)
    with PlaceObjects(place, lambda _key: name, subject).reader(b"", size) as reader:
        return read_up_to(reader.read, size)
