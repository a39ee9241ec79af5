"""Reasons for cases that images from real sources do not give; the others are told through ``mkcfs diff``'s tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.base import Format, PlanOptions
from cfstools.formats.explain import Form, Reason, Rule, explain
from cfstools.formats.registry import COMPOSEFS
from cfstools.formats.tree_image import TreeImage
from cfstools.tree import Directory
from cfstools.tree.diff import Notes
from cfstools.verity import Algorithm
from tests.formats.images import directory, regular, write_image
from tests.formats.lines import LINES, START, Lines

if TYPE_CHECKING:
    from typing_extensions import Buffer

TOO_MUCH = {b"user.%d" % number: bytes(9000) for number in range(4)}


def form(name: str, root: Directory, data: bytes | None = None, format: Format = COMPOSEFS) -> Form:
    view = None if data is None else memoryview(data)
    return Form(name=name, root=root, version=0, algorithm=Algorithm.SHA256, format=format, data=view)


def reasons(a: Form, b: Form) -> dict[Rule, str]:
    return {reason.rule: reason.what for reason in explain(a, b, [], Notes())}


def test_what_nothing_explains_is_said_so() -> None:
    found = reasons(form("A", directory({b"f": regular(b"1")})), form("B", directory({b"f": regular(b"2")})))
    assert found.keys() == {Rule.OTHER}
    assert "the images of both trees also differ at 0x" in found[Rule.OTHER]


def test_a_tree_that_cannot_be_written() -> None:
    good = directory({b"f": regular(b"")})
    bad = directory({b"f": regular(b"", xattrs=TOO_MUCH)})
    found = reasons(form("A", bad, write_image(good)), form("B", good))
    assert found.keys() == {Rule.WRITER}
    assert found[Rule.WRITER].startswith("no writer makes A: /f: no room for extended attribute")


def test_images_with_other_names_are_not_compared_further() -> None:
    one = directory({b"a": regular(b"")})
    other = directory({b"b": regular(b"")})
    found = reasons(form("A", one, write_image(other)), form("B", one))
    assert found.keys() == {Rule.WRITER}
    assert reasons(form("A", one), form("B", other)).keys() == {Rule.OTHER}


def lines_image(root: Directory) -> bytes:
    return b"".join(LINES.plan(root, PlanOptions()).chunks())


def unusual_lines() -> tuple[Directory, bytes]:
    """A tree, and an image of it as no writer makes it: a letter is escaped that need not be."""
    root = directory({b"f": regular(b"1")})
    text = lines_image(root)[START:].replace(b"/f ", rb"/\x66 ")
    return root, b"lines %08d\n%b" % (len(text), text)


def test_a_format_without_reasons_of_its_own() -> None:
    root, data = unusual_lines()
    assert reasons(form("A", root, data, LINES), form("B", root, format=LINES)) == {
        Rule.WRITER: "A is not what a canonical writer makes of its tree; first difference at 0xd in the image (lines)"
    }
    other = directory({b"f": regular(b"2")})
    found = reasons(form("A", root, format=LINES), form("B", other, format=LINES))
    assert found.keys() == {Rule.OTHER}
    assert found[Rule.OTHER].endswith("in the image (lines)")


def test_a_format_that_explains_itself() -> None:
    class Explained(Lines):
        def explain(self, name: str, image: memoryview, canonical: memoryview) -> Iterator[Reason]:
            yield Reason(rule=Rule.PADDING, what=f"{name} has {len(image) - len(canonical)} bytes too many")

    root, data = unusual_lines()
    explained = Explained()
    found = reasons(form("A", root, data, explained), form("B", root, format=explained))
    assert found == {Rule.PADDING: "A has 3 bytes too many"}


def test_images_of_two_formats_are_each_compared_with_their_own_writer() -> None:
    root, data = unusual_lines()
    found = reasons(form("A", root, data, LINES), form("B", root, write_image(root)))
    assert found.keys() == {Rule.FORMAT, Rule.WRITER}
    assert found[Rule.FORMAT] == "A is in the format lines, B is in composefs"
    assert found[Rule.WRITER].startswith("A is not what a canonical writer makes")


def test_a_place_in_an_image_that_cannot_be_read() -> None:
    class Unreadable(Lines):
        def open(self, data: Buffer, *, allow_tail: bool = False) -> TreeImage:
            raise ImageError("is damaged")

    assert Unreadable().role_at(b"", 16) == "0x10"
    assert LINES.role_at(lines_image(directory()), 1 << 20) == "0x100000"
    assert COMPOSEFS.role_at(b"no image", 3) == "0x3"
