"""A format made up for tests: a line with the length of the dump text that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfstools.formats.base import Format, ImagePlan, PlanOptions
from cfstools.formats.dump import dump_text, parse_dump
from cfstools.formats.tree_image import TreeImage
from cfstools.tree import Directory
from cfstools.tree.walk import iter_inodes

if TYPE_CHECKING:
    from typing_extensions import Buffer

START = 15


class Lines(Format):
    name = "lines"

    def recognises(self, head: bytes) -> bool:
        return head.startswith(b"lines ")

    def open(self, data: Buffer, *, allow_tail: bool = False) -> TreeImage:
        view = memoryview(data)
        length = START + int(bytes(view[6:14]))
        assert length <= len(view) if allow_tail else length == len(view)
        return TreeImage(self, parse_dump(view[START:length]), length, len(view))

    def plan(self, root: Directory, options: PlanOptions) -> ImagePlan:
        text = b"".join(dump_text(root))
        image = b"lines %08d\n%b" % (len(text), text)
        word = f"lines0-{options.algorithm.value}"
        return ImagePlan(word, 0, len(image), sum(1 for _ in iter_inodes(root)), lambda: iter([image]))


LINES = Lines()
