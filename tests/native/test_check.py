"""Which objects a tree needs, and whether a store has them right: the same in C and in Python."""

from __future__ import annotations

import os
import random
import time
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.formats.base import OpenImage
from cfstools.formats.registry import open_image
from cfstools.native import _pure
from cfstools.store import DirectoryStore
from cfstools.store.care import check as checking
from cfstools.store.care.check import ObjectKey, SmallFiles
from cfstools.tree import Blob, Directory, External, HardLink, Located, Piece, RegularFile, Stamp, Symlink, Unread
from cfstools.tree.model import KINDS, Content, Entry
from cfstools.tree.objects import sizes_of_packed
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from cfstools.verity.merkle import descriptor
from cfstools.view.needed import needed_objects
from tests.formats.images import write_image

_native = pytest.importorskip("cfstools.native._native")
pytestmark = pytest.mark.usefixtures("native_in_use")

PARAMS = Params()
ARENA = 64 << 10
DIGESTS = [bytes([number]) * 32 for number in (0, 7, 255)]


@st.composite
def contents(draw: st.DrawFn, *, odd: bool) -> Content:
    digest = draw(st.sampled_from(DIGESTS))
    paths = [object_path(digest)]
    return External(digest, draw(st.sampled_from([*paths, None, b"", b"a/b", b"/" + paths[0]] if odd else paths)))


@st.composite
def trees(draw: st.DrawFn, *, odd: bool) -> Directory:
    """Trees with few different objects, in directories that are met in an order of their own."""
    root = Directory(mode=0o40755)
    places = [root]
    for number in draw(st.lists(st.integers(0, 255), max_size=25, unique=True)):
        name = b"%02x" % (number * 37 % 256)
        place = places[number % len(places)]
        kind = draw(st.sampled_from("ffffdsh"))
        if kind == "d":
            place.entries[name] = made = Directory(mode=0o40755)
            places.append(made)
        elif kind == "s":
            place.entries[name] = Symlink(mode=0o120777, target=b"x")
        else:
            content = draw(st.one_of(contents(odd=odd), st.just(b"inline")))
            size = 6 if isinstance(content, bytes) else draw(st.sampled_from([0, 1, 6, 2**62, 2**63]))
            file = RegularFile(mode=0o100644, size=size, content=content)
            place.entries[name] = file
            if kind == "h":
                places[0].entries[name + b"+"] = HardLink(file)
    return root


def keys(root: Directory, loops: str) -> list[ObjectKey]:
    native.use(loops)
    needed = needed_objects(root, Algorithm.SHA256)
    return [needed.key(number) for number in range(len(needed))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), odd=st.booleans())
def test_what_a_tree_needs(data: st.DataObject, odd: bool) -> None:
    root = data.draw(trees(odd=odd))
    assert keys(root, "native") == keys(root, "pure")


def test_contents_of_a_kind_that_native_code_does_not_know_are_left() -> None:
    file = RegularFile(mode=0o100644, size=9, content=Located([Piece(9, Blob(1, 9, DIGESTS[0]))]))
    root = Directory(mode=0o40755, entries={b"f": file})
    assert _native.needed_objects(root, KINDS, 32) is None
    assert keys(root, "native") == [(object_path(DIGESTS[0]), DIGESTS[0], 9)]
    file.content = Unread(b"f", Stamp(0, 0, 9, 0, 0))
    assert _native.needed_objects(root, KINDS, 32) == (b"", b"")


def test_digests_that_begin_alike() -> None:
    """Somebody may choose digests that all come to one place of a table: then another table is taken."""
    root = Directory(mode=0o40755)
    for number in range(2000):
        digest = bytes(8) + number.to_bytes(24, "big")
        content = External(digest, object_path(digest))
        root.entries[b"%d" % number] = RegularFile(mode=0o100644, size=9, content=content)
    assert _native.needed_objects(root, KINDS, 32) is None
    assert len(keys(root, "native")) == 2000
    del root.entries[b"1999"], root.entries[b"1998"]
    few = Directory(mode=0o40755, entries=dict(list(root.entries.items())[:200]))
    assert len(_native.needed_objects(few, KINDS, 32)[0]) == 200 * 32


def external(digest: bytes, size: int = 9, path: bytes | None = None, **fields: object) -> RegularFile:
    content = External(digest, object_path(digest) if path is None else path)
    return RegularFile(mode=0o100644, size=size, content=content, **fields)  # type: ignore[arg-type]


def image_of(*files: RegularFile, algorithm: Algorithm = Algorithm.SHA256) -> OpenImage:
    below = Directory(mode=0o40700, entries={b"%d" % number: file for number, file in enumerate(files[1:])})
    link = Symlink(mode=0o120777, target=b"x")
    entries: dict[bytes, Entry] = {b"a": below, b"b": files[0], b"c": HardLink(files[0]), b"l": link}
    return open_image(write_image(Directory(mode=0o40755, entries=entries), algorithm=algorithm))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_objects_of_an_image_without_its_tree(algorithm: Algorithm) -> None:
    one, two, three = (bytes([number]) * algorithm.digest_size for number in (1, 2, 3))
    inline = RegularFile(mode=0o100644, size=3, content=b"abc", xattrs={b"user.a": b"b"})
    image = image_of(
        external(one, 5, nlink=2), external(three), inline, external(two), external(three), algorithm=algorithm
    )
    packed = image.packed_objects()
    assert packed is not None
    assert (packed[0], [*packed[1]]) == (three + two + one, [9, 18, 23])
    assert sizes_of_packed(packed) == image.objects() == {one: 5, two: 9, three: 9}
    native.use("pure")
    assert image.packed_objects() is None


@pytest.mark.parametrize(
    "odd",
    [
        external(DIGESTS[0], 10),
        external(DIGESTS[1], path=object_path(DIGESTS[0])),
        external(DIGESTS[1], path=b""),
        RegularFile(mode=0o100644, size=9, content=External(None, object_path(DIGESTS[1]))),
    ],
    ids=["two sizes", "elsewhere", "no path", "no digest"],
)
def test_rare_objects_are_left(odd: RegularFile) -> None:
    image = image_of(external(DIGESTS[0], nlink=2), odd)
    assert image.packed_objects() is None
    expected = image.objects()
    native.use("pure")
    assert image.objects() == expected


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    return tmp_path / "objects"


def packed(objects: list[tuple[bytes, int]]) -> tuple[bytes, bytes]:
    ends = array("Q")
    for _, size in objects:
        ends.append(size + (ends[-1] if ends else 0))
    return b"".join(digest for digest, _ in objects), ends.tobytes()


def fill(store: Path, seed: int, params: Params) -> tuple[list[tuple[bytes, int]], list[bool]]:
    """Objects of many sizes, some of them damaged; and which of them are right and small enough."""
    chance = random.Random(seed)
    objects, right = [], []
    for _ in range(120):
        data = chance.randbytes(chance.choice([1, 100, 4095, 4096, 4097, 9000, ARENA // 4, ARENA // 4 + 1, 70_000]))
        digest = digest_bytes(data, params)
        path = store / os.fsdecode(object_path(digest))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        what = chance.choice(["right"] * 6 + ["flipped", "cut", "longer", "gone", "link", "directory", "empty"])
        if what == "flipped":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif what == "cut":
            path.write_bytes(data[:-1])
        elif what == "longer":
            path.write_bytes(data + b"\0")
        elif what != "right":
            path.unlink()
            if what == "link":
                (store / digest.hex()).write_bytes(data)
                path.symlink_to(store / digest.hex())
            elif what == "directory":
                path.mkdir()
        objects.append((digest, 0 if what == "empty" else len(data)))
        right.append(what == "right" and len(data) <= ARENA // 4)
    return objects, right


@pytest.mark.parametrize("salt", [b"", b"salt"])
@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("seed", range(4))
def test_objects_of_all_kinds(seed: int, algorithm: Algorithm, salt: bytes, store: Path) -> None:
    params = Params(algorithm=algorithm, salt=salt)
    objects, right = fill(store, seed, params)
    digests, ends = packed(objects)
    shared = (bytearray(ARENA), algorithm.value, 4096, params.salt_prefix, descriptor(b"", 0, params))
    with DirectoryStore(os.fsencode(store)) as opened:
        for first, end in ((0, len(objects)), (0, 0), (17, 18), (30, 90)):
            found = _native.check_objects(opened.prefix_fds, digests, ends, first, end, *shared)
            assert found == _pure.check_objects(opened.prefix_fds, digests, ends, first, end, *shared)
            assert [flag == 1 for flag in found] == right[first:end]
        none = array("i", [-1]) * 256
        assert _native.check_objects(none, digests, ends, 0, 5, *shared) == bytes(5)
        assert _pure.check_objects(none, digests, ends, 0, 5, *shared) == bytes(5)


@pytest.mark.parametrize("module", [_native, _pure])
@pytest.mark.parametrize(
    "wrong",
    [
        {"prefixes": bytes(8)},
        {"digests": bytes(31)},
        {"ends": bytes(16)},
        {"first": -1},
        {"first": 1, "end": 0},
        {"end": 2},
        {"block_size": 0},
        {"start": b"short"},
    ],
)
def test_objects_that_cannot_be(module: object, wrong: dict[str, object]) -> None:
    given = {
        "prefixes": array("i", [-1]) * 256,
        "digests": bytes(32),
        "ends": bytes(8),
        "first": 0,
        "end": 1,
        "arena": bytearray(8192),
        "algorithm": "sha256",
        "block_size": 4096,
        "salt": b"",
        "start": descriptor(b"", 0, PARAMS),
    }
    check = getattr(module, "check_objects")  # noqa: B009 - of either module
    assert check(*given.values()) == b"\0"
    with pytest.raises(ValueError, match=r"wrong size|256 prefixes|no such objects"):
        check(*{**given, **wrong}.values())


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_a_call_may_return_before_the_end(together: int, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a moment: the caller looks whether to go on, and asks for the rest."""
    objects, right = fill(store, 1, PARAMS)
    digests, ends = packed(objects)
    check: Any = native.check_objects
    asked: list[int] = []

    def some(*words: Any) -> bytes:
        asked.append(words[3])
        found: bytes = check(*words[:4], min(words[3] + together, words[4]), *words[5:])
        return found

    monkeypatch.setattr(native, "check_objects", some)
    monkeypatch.setattr(checking, "_ARENA_BYTES", ARENA)
    with DirectoryStore(os.fsencode(store)) as opened:
        small = SmallFiles(opened, PARAMS)
        found = small.right((digests, memoryview(ends).cast("B").cast("Q")), range(5, len(objects)))
    assert list(found) == right[5:]
    assert asked == list(range(5, len(objects), together))


def test_the_pure_one_returns_after_a_moment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, right = fill(store, 1, PARAMS)
    ticks = iter(range(1000))
    monkeypatch.setattr(_pure, "_TOGETHER", 2)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) * 0.02)
    start = descriptor(b"", 0, PARAMS)
    digests, ends = packed(objects)
    with DirectoryStore(os.fsencode(store)) as opened:
        found = _pure.check_objects(
            opened.prefix_fds, digests, ends, 0, len(objects), bytearray(ARENA), "sha256", 4096, b"", start
        )
    assert list(found) == right[:4]


@pytest.mark.parametrize("module", [_native, _pure])
def test_what_cannot_be_read_at_a_place_is_no_object(module: ModuleType, store: Path) -> None:
    """Nothing waits for the other end of a FIFO."""
    digest = digest_bytes(b"x", PARAMS)
    path = store / os.fsdecode(object_path(digest))
    path.parent.mkdir()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"x")
    words = (bytearray(ARENA), "sha256", 4096, b"", descriptor(b"", 0, PARAMS))
    with DirectoryStore(os.fsencode(store)) as opened:
        assert module.check_objects(opened.prefix_fds, *packed([(digest, 1)]), 0, 1, *words) == b"\0"
    os.close(writer)
