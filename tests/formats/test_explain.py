"""Reasons for cases that images from real sources do not give; the others are told through ``mkcfs diff``'s tests."""

from __future__ import annotations

import stat

from cfstools.formats.composefs import write_image
from cfstools.formats.composefs_reader import read_image
from cfstools.formats.explain import Form, Rule, drop_version_marks, explain
from cfstools.tree import Device, Directory
from cfstools.tree.diff import Notes
from cfstools.verity import Algorithm
from tests.formats.images import directory, regular
from tests.strategies import describe

TOO_MUCH = {b"user.%d" % number: bytes(9000) for number in range(4)}


def form(name: str, root: Directory, data: bytes | None = None) -> Form:
    view = None if data is None else memoryview(data)
    return Form(name=name, root=root, version=0, algorithm=Algorithm.SHA256, data=view)


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


def test_marks_of_version_1_are_dropped_where_they_were_made() -> None:
    whiteout = Device(mode=stat.S_IFCHR | 0o600, rdev=0)
    own = {b"user.overlay.opaque": b"x", b"user.k": b"v"}
    root = directory(
        {
            b"marked": directory({b"gone": whiteout, b"kept": regular(b"")}, xattrs={b"user.k": b"v"}),
            b"plain": directory({b"gone": whiteout}),
            b"with": directory({b"f": regular(b"")}, xattrs=own),
        }
    )
    data = write_image(root, min_version=1)
    read = read_image(data)
    assert describe(read) != describe(root)
    drop_version_marks(read)
    assert describe(read) == describe(root)
    assert write_image(read, min_version=1) == data
