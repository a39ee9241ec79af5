"""Verb ``cat``: the contents of one file of an image."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from cfstools.api.listing import type_name
from cfstools.errors import InputError, naming
from cfstools.formats.escape import escape_text
from cfstools.sources.image_file import load_image
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace
from cfstools.store.write.keeping import open_and_keep
from cfstools.view.contents import PIECE
from cfstools.view.nodes import View, find


def cat(image: bytes, path: bytes, *, stores: Sequence[StorePlace] = ()) -> Iterator[bytes]:
    """The contents of the file at *path* in the image at *image*, links followed, from front to back.

    No byte is yielded before all contents were checked, and what is read then is checked again. Raises
    CheckFailed for contents that are not what the image says, InputError for a path that leads to no file, StoreError
    and ImageError.
    """
    with naming(image), open_and_keep(stores) as opened:
        view = View(load_image(image), StoreChain(opened))
        node = find(view, path, follow=True)
        mode = view.attributes(node).mode
        if not stat.S_ISREG(mode):
            raise InputError(f"is a {type_name(mode)}, not a file", where=escape_text(path))
        with view.open(node, path) as contents:
            if contents.size > PIECE:
                contents.check()
            yield from contents.pieces()
