"""Dump text printed natively is the text that Python prints."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from cfstools import native
from cfstools.errors import TreeError
from cfstools.formats.dump import print as dump_print
from cfstools.formats.dump.print import dump_text, ls_text, print_dump, print_listing
from cfstools.tree import NO_XATTRS, Directory, External, HardLink, RegularFile, Stamp, Symlink, Unread
from cfstools.tree.model import KINDS
from tests.strategies import trees

_native = pytest.importorskip("cfstools.native._native")
pytestmark = pytest.mark.usefixtures("native_in_use")


def compare(root: Directory) -> None:
    dump, listing = b"".join(print_dump(root)), b"".join(print_listing(root))
    for loops in ("pure", "native"):
        native.use(loops)
        assert b"".join(dump_text(root)) == dump
        assert b"".join(ls_text(root)) == listing


@settings(max_examples=300, deadline=None)
@given(trees())
def test_any_tree(root: Directory) -> None:
    compare(root)


def directory(**entries: object) -> Directory:
    return Directory(mode=0o40755, entries={name.encode(): entry for name, entry in entries.items()})  # type: ignore[misc]


def file(content: object, **fields: object) -> RegularFile:
    return RegularFile(mode=0o100644, size=5, content=content, **fields)  # type: ignore[arg-type]


def test_every_field() -> None:
    odd = bytes(range(1, 256))
    inside = directory(dash=file(b"-"), empty=file(b""), all=file(odd, mtime_sec=-5, mtime_nsec=999_999_999))
    inside.entries[odd.replace(b"/", b"")] = Symlink(mode=0o120777, target=b"-")
    shared = file(External(b"\xab" * 64, b"-"), nlink=2, xattrs={b"user.=": odd})
    inside.entries[b"second"] = HardLink(shared)
    compare(directory(inside=inside, z=shared, unknown=file(External(None, None), uid=2**32 - 1)))


@pytest.mark.parametrize("count", [1, 100, 120, 150, 160, 240, 400])
@pytest.mark.parametrize("name", [b"!", b"-", b"n", b"long name" * 20])
def test_sizes_of_directories(count: int, name: bytes) -> None:
    """Names before and behind the dots, around the borders of blocks."""
    entries = {b"%b%d" % (name, number): file(b"12345") for number in range(count)}
    compare(directory(below=Directory(mode=0o40700, entries={**entries})))


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_print, "_PIECE", 1)
    root = directory(a=file(b"x"), b=directory(c=Symlink(mode=0o120777, target=b"t")))
    assert list(dump_text(root)) == list(print_dump(root))
    assert list(ls_text(root)) == [b"/a\n", b"/b/\t\n", b"/b/c\t-> t\n"]


def test_deep_trees() -> None:
    root = directory()
    for _ in range(5000):
        root = directory(d=root)
    compare(root)


def test_contents_not_read_yet() -> None:
    root = directory(a=file(Unread(b"a", Stamp(0, 0, 5, 0, 0))))
    with pytest.raises(TreeError, match="not read yet"):
        list(dump_text(root))


def test_wrong_arguments_are_refused() -> None:
    def fail(*_: object) -> bytes:
        raise KeyboardInterrupt

    root = directory()

    def run(stack: list[object], kinds: tuple[type, ...] = KINDS, line: object = fail) -> object:
        return _native.print_entries(stack, bytearray(b"/a"), {}, line, fail, NO_XATTRS, kinds, 100)

    assert run([]) == b""
    with pytest.raises(TypeError, match="items, length"):
        run([b"/"])
    with pytest.raises(TypeError):
        run([(b"/", root)])
    with pytest.raises(TypeError, match="name, entry"):
        run([([b"/"], 0)])
    for length in (-1, 3):
        with pytest.raises(ValueError, match="shorter"):
            run([([(b"a", root)], length)])
    assert run([([], 0), ([], 5)]) == b""
    with pytest.raises(ValueError, match="nine kinds"):
        run([], ())
    with pytest.raises(KeyboardInterrupt):
        run([([(b"", directory())], 0)])
    with pytest.raises(KeyboardInterrupt):
        run([([(b"a", file(b"x", xattrs={b"user.a": b""}))], 0)])
    for wrong in (file("text"), file(b"x", uid=-1), Symlink(mode=0o120777, target=None)):  # type: ignore[arg-type]
        with pytest.raises((TypeError, OverflowError, KeyboardInterrupt)):
            run([([(b"a", wrong)], 0)])
    with pytest.raises(TypeError):
        run([([(b"a", Directory(mode=0o40755, entries=5))], 0)])  # type: ignore[arg-type]
    for wrong in (Symlink(mode=0o120777, target=5), file(External(None, "text")), file(External(None, 5))):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            run([([(b"a", wrong)], 0)], line=None)
