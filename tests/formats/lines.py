"""Formats made up for tests: a line with the length of the dump text that follows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cfstools.formats.base import Format, ImagePlan, PlanOptions
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import dump_text
from cfstools.formats.tree_image import TreeImage
from cfstools.tree import Blob, Directory, External, Located, Piece, RegularFile
from cfstools.tree.copying import copy_tree
from cfstools.tree.walk import iter_inodes

if TYPE_CHECKING:
    from typing_extensions import Buffer

START = 15


class Lines(Format):
    name = "lines"

    def recognises(self, head: bytes) -> bool:
        return head.startswith(self.name.encode() + b" ")

    def open(self, data: Buffer, *, allow_tail: bool = False) -> TreeImage:
        view = memoryview(data)
        length = START + int(bytes(view[6:14]))
        assert length <= len(view) if allow_tail else length == len(view)
        return TreeImage(self, self.parse(view[START:length]), length, len(view))

    def plan(self, root: Directory, options: PlanOptions) -> ImagePlan:
        text = self.print(root)
        image = b"%b %08d\n%b" % (self.name.encode(), len(text), text)
        word = f"{self.name}0-{options.algorithm.value}"
        return ImagePlan(
            word=word,
            version=0,
            size=len(image),
            inode_count=sum(1 for _ in iter_inodes(root)),
            chunks=lambda: iter([image]),
        )

    def parse(self, text: Buffer) -> Directory:
        return parse_dump(text)

    def print(self, root: Directory) -> bytes:
        return b"".join(dump_text(root))


class Parts(Lines):
    """The same with a payload that is made up for contents inside blobs: their pieces in JSON."""

    name = "parts"

    def parse(self, text: Buffer) -> Directory:
        root = super().parse(text)
        for inode in iter_inodes(root):
            if isinstance(inode, RegularFile) and isinstance(inode.content, External):
                start, _, pieces = (inode.content.payload or b"").partition(b":")
                if start == b"pieces":
                    inode.content = Located([_piece(*piece) for piece in json.loads(pieces)])
        return root

    def print(self, root: Directory) -> bytes:
        root = copy_tree(root)
        for inode in iter_inodes(root):
            if isinstance(inode, RegularFile) and isinstance(inode.content, Located):
                pieces = json.dumps(inode.content.pieces, default=bytes.hex)
                inode.content = External(None, b"pieces:" + pieces.encode())
        return super().print(root)


def _piece(length: int, blob: tuple[int, int, str, str] | None, offset: int) -> Piece:
    if blob is None:
        return Piece(length, None)
    number, size, digest, payload = blob
    return Piece(length, Blob(number, size, bytes.fromhex(digest), bytes.fromhex(payload)), offset)


LINES = Lines()
PARTS = Parts()
