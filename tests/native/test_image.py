"""Images written by the C copy are those of the Python writer, byte for byte, for every tree."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.errors import TreeError
from cfstools.formats.composefs.overlay_xattrs import METACOPY_HEADERS, rewrite_xattrs
from cfstools.tree import Device, Directory, External, Fifo, HardLink, RegularFile, Stamp, Symlink, Unread
from cfstools.tree.model import KINDS
from cfstools.verity import Algorithm
from tests.bounds import bounded
from tests.formats.images import write_image
from tests.strategies import trees

try:
    _native: ModuleType | None = importlib.import_module("cfstools.native._native")
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="the native functions were not built")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = native.IMPLEMENTATION
    yield
    native.use(before)


def encode(root: object, algorithm: Algorithm = Algorithm.SHA256, version: int = 0) -> bytes | None:
    assert _native is not None
    found = _native.encode_tree(
        root, KINDS, rewrite_xattrs, METACOPY_HEADERS[algorithm], algorithm.digest_size, version
    )
    assert found is None or isinstance(found[0], bytes)
    return None if found is None else found[0]


def by_python(root: Directory, algorithm: Algorithm = Algorithm.SHA256, version: int = 0) -> bytes:
    native.use("pure")
    return write_image(root, min_version=version, max_version=version, algorithm=algorithm)


def is_whiteout(entry: object) -> bool:
    return isinstance(entry, Device) and entry.is_whiteout


def entries_below(root: Directory) -> list[object]:
    found: list[object] = []
    left = [root]
    while left:
        entries = left.pop().entries.values()
        found += entries
        left += [entry for entry in entries if isinstance(entry, Directory)]
    return found


@settings(max_examples=300)
@given(data=st.data(), algorithm=st.sampled_from(Algorithm), version=st.integers(0, 1))
def test_any_tree(data: st.DataObject, algorithm: Algorithm, version: int) -> None:
    root = data.draw(trees(algorithm=algorithm))
    image = encode(root, algorithm, version)
    try:
        expected = by_python(root, algorithm, version)
    except TreeError:
        assert image is None
        return
    if any(map(is_whiteout, entries_below(root))):
        assert image is None
    else:
        assert image == expected


def directory(entries: dict[bytes, object] | None = None, **fields: object) -> Directory:
    return Directory(mode=0o40755, entries=entries or {}, **fields)  # type: ignore[arg-type]


def file(size: int, content: object, **fields: object) -> RegularFile:
    return RegularFile(mode=0o100644, size=size, content=content, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [*range(2030, 2066), 4030, 4095, 4096, 4097, 5000])
def test_tails_around_block_borders(size: int) -> None:
    entries: dict[bytes, object] = {b"%03d" % number: file(size, b"x" * size) for number in range(40)}
    entries |= {b"l%03d" % at: Symlink(mode=0o120777, target=b"t" * (3900 + at)) for at in range(0, 196, 7)}
    root = directory(entries)
    assert encode(root) == by_python(root)


@pytest.mark.parametrize("chunks", [1, 2, 900, 1000, 1005, 1010, 1016, 1024])
def test_chunk_tables(chunks: int) -> None:
    root = directory({b"%d" % at: file(chunks << 43, External(bytes(32), b"ab/cd")) for at in range(9)})
    assert encode(root) == by_python(root)


def test_very_many_names_of_attributes() -> None:
    """They are not searched one by one, so there is no number from which on all is left to Python."""
    entries: dict[bytes, object] = {b"%d" % at: file(0, b"", xattrs={b"user.%d" % at: b"v"}) for at in range(9000)}
    root = directory(entries)
    with bounded(1 << 20):
        image = encode(root)
    assert image == by_python(root)


def test_many_names_and_attributes() -> None:
    labels = [{b"security.selinux": b"label %d" % at, b"user.x": b"", b"trusted.overlay.x": b"y"} for at in range(3)]
    entries: dict[bytes, object] = {}
    for number in range(3000):
        name = b"n" * (number % 200) + b"%d" % number
        digest = b"%032d" % (number // 2)
        entries[name] = file(number + 1, External(digest, b"%d/x" % number), xattrs=labels[number % 3])
    # More shared attributes than one inode can refer to, and one with an area of its own.
    many = {b"user.%03d" % at: b"v" for at in range(140)}
    root = directory({b"d": directory(entries), b"a": file(0, b"", xattrs=many), b"b": file(0, b"", xattrs=many)})
    root.xattrs = {b"security.selinux": b"root", b"system.posix_acl_access": b"acl"}
    assert encode(root) == by_python(root)
    assert encode(root, version=1) == by_python(root, version=1)


def test_names_in_any_order() -> None:
    names = [b"zz", b"!", b".", b"a" * 255, b"a", b"\xff", b"..."]
    names.remove(b".")
    root = directory({name: directory({b"x": Fifo(mode=0o10644), b"00": file(0, b"")}) for name in names})
    root.entries[b"00"] = file(1, b"1")
    assert encode(root) == by_python(root)


BAD_DIRECTORY = directory()
BAD_DIRECTORY.entries = {"text": file(0, b"")}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "entry",
    [
        file(2, b"1"),
        file(5001, bytes(5001)),
        file(9, Unread(b"f", Stamp(0, 0, 9, 0, 0))),
        file(1, External(bytes(31), None)),
        file(1, External(bytes(32), b"p" * 4096)),
        file((1 << 53) + 1, External(None, None)),
        file((1 << 64) - 1, External(None, None)),
        file(1 << 64, External(None, None)),
        file(-1, b""),
        file(1, None),
        file(0, b"", uid=1 << 32),
        file(0, b"", gid=-1),
        file(0, b"", nlink=1 << 32),
        file(0, b"", mtime_sec=1 << 63),
        file(0, b"", mtime_nsec=1 << 32),
        file(0, b"", xattrs={b"user.%d" % at: b"v" * 100 for at in range(400)}),
        file(0, b"", xattrs={b"": b""}),
        file(0, b"", xattrs=None),
        RegularFile(mode="0", size=0, content=b""),  # type: ignore[arg-type]
        RegularFile(mode=0o040644, size=0, content=b""),
        Symlink(mode=0o120777, target=b""),
        Symlink(mode=0o120777, target=b"t" * 4096),
        Symlink(mode=0o120777, target=b"a\0b"),
        Symlink(mode=0o120777, target="text"),  # type: ignore[arg-type]
        Device(mode=0o020644, rdev=0),
        Directory(mode=0o100644),
        Directory(mode=0o40755, entries=5),  # type: ignore[arg-type]
        HardLink(Fifo(mode=0o10644)),
        BAD_DIRECTORY,
        "no entry",
        None,
    ],
)
def test_what_is_left_to_python(entry: object) -> None:
    assert encode(directory({b"d": directory({b"f": entry})})) is None


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_names_that_are_left_to_python(name: bytes) -> None:
    assert encode(directory({name: file(0, b"")})) is None


def test_not_a_tree() -> None:
    assert encode(None) is None
    assert encode(file(0, b"")) is None


def test_what_is_no_refusal_comes_through() -> None:
    """An interruption must not be taken for a tree that Python should look at."""

    def interrupted(_: object) -> list[tuple[bytes, bytes]]:
        raise KeyboardInterrupt

    assert _native is not None
    with pytest.raises(KeyboardInterrupt):
        _native.encode_tree(directory(xattrs={b"user.a": b""}), KINDS, interrupted, b"", 32, 0)
    with pytest.raises(ValueError, match="nine kinds"):
        _native.encode_tree(directory(), (), interrupted, b"", 32, 0)
    with pytest.raises(AttributeError):
        _native.encode_tree(directory(), (int,) * 9, interrupted, b"", 32, 0)


def test_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    native.use("native")
    monkeypatch.setattr("cfstools.formats.composefs.plan.place_tree", None)
    image = write_image(directory({b"f": file(1, b"1")}))
    monkeypatch.undo()
    assert image == by_python(directory({b"f": file(1, b"1")}))
