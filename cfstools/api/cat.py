"""Verb ``cat``: the contents of one file of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cfstools.api.listing import load_image, type_name
from cfstools.errors import InputError, naming
from cfstools.formats.escape import escape_text
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace, open_stores
from cfstools.tree import RegularFile
from cfstools.view import PIECE, View


def cat(image: bytes, path: bytes, *, stores: Sequence[StorePlace] = ()) -> Iterator[bytes]:
    """The contents of the file at *path* in the image at *image*, links followed, from front to back.

    Nothing is given out before the whole was found right; what is then read is checked again on the way. Raises
    CheckFailed for contents that are not what the image says, InputError for a path that leads to no file, StoreError
    and ImageError.
    """
    with naming(image), open_stores(stores) as opened:
        view = View(load_image(image), StoreChain(opened))
        inode = view.lookup(path, follow=True)
        if not isinstance(inode, RegularFile):
            raise InputError(f"is a {type_name(inode.mode)}, not a file", where=escape_text(path))
        with view.open(inode, path) as contents:
            if contents.size > PIECE:
                contents.check()
            yield from contents.pieces()
