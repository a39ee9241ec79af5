"""A directory is the same tree whether inodes are made by the native functions or not."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.native import _pure
from cfstools.sources.directory import open_directory
from cfstools.sources.inodes import InodeReader, Place
from cfstools.sources.source import WalkOptions
from cfstools.store import DirectoryStore
from cfstools.tree import Directory, Entry, External, HardLink, RegularFile, Symlink, Unread
from cfstools.tree.model import KINDS
from cfstools.tree.walk import inode_of, iter_entries
from cfstools.tree.xattrs import XattrPolicy

_native = pytest.importorskip("cfstools.native._native")

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
KEYS = [b"user.a", b"user.b", *([b"trusted.c"] if os.geteuid() == 0 else [])]
TIMES = st.one_of(st.integers(0, 1 << 62), st.integers(-(10**9) * 5, 5 * 10**9))
FILES = st.tuples(
    st.sampled_from(["file", "symlink", "fifo", "link", "directory"]),
    st.binary(max_size=100),
    TIMES,
    st.dictionaries(
        st.sampled_from([b"user.a", b"user.b", *([b"trusted.c"] if os.geteuid() == 0 else [])]),
        st.binary(max_size=9),
        max_size=2,
    ),
    st.sampled_from([0o600, 0o4755, 0o1777]),
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = native.IMPLEMENTATION
    yield
    native.use(before)


def create(kind: str, path: bytes, data: bytes, earlier: list[bytes]) -> str:
    if kind == "file":
        Path(os.fsdecode(path)).write_bytes(data)
    elif kind == "symlink":
        os.symlink(data.replace(b"\0", b"") or b"x", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link" and earlier:
        os.link(earlier[-1], path, follow_symlinks=False)
    else:
        os.mkdir(path)
        return "directory"
    earlier.append(path)
    return kind


def make(root: bytes, files: dict[bytes, tuple[str, bytes, int, dict[bytes, bytes], int]]) -> None:
    here = root
    earlier: list[bytes] = []
    for name, (kind, data, time, xattrs, mode) in files.items():
        path = here + b"/" + name
        made = create(kind, path, data, earlier)
        if made in ("file", "directory"):
            os.chmod(path, mode)
            for key, value in xattrs.items():
                os.setxattr(path, key, value)
        with suppress(OverflowError, OSError):  # times that Python or the file system does not have
            os.utime(path, ns=(0, time), follow_symlinks=False)
        if made == "directory":
            here = path


def told(entry: Entry) -> tuple[object, ...]:
    inode = inode_of(entry)
    fields = [
        (slot, getattr(inode, slot))
        for kind in type(inode).__mro__
        for slot in getattr(kind, "__slots__", ())
        if slot not in ("entries", "xattrs", "content")
    ]
    content = getattr(inode, "content", None)
    if isinstance(content, Unread):
        content = (content.path, type(content.stamp), content.stamp)
    return type(entry) is HardLink, type(inode), sorted(fields), dict(inode.xattrs), content


def walked(name: str, path: bytes, options: WalkOptions) -> list[tuple[bytes, object]]:
    native.use(name)
    with open_directory(path, options=options) as source:
        return [(path, told(entry)) for path, _, entry in iter_entries(source.root)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(NAMES, FILES, max_size=12),
    use_epoch=st.booleans(),
    hardlinks=st.booleans(),
    policy=st.sampled_from(XattrPolicy),
)
def test_the_same_tree(
    files: dict[bytes, tuple[str, bytes, int, dict[bytes, bytes], int]],
    use_epoch: bool,
    hardlinks: bool,
    policy: XattrPolicy,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = os.fsencode(tmp_path_factory.mktemp("tree"))
    make(root, files)
    options = WalkOptions(use_epoch=use_epoch, hardlinks=hardlinks, xattrs=policy)
    assert walked("native", root, options) == walked("pure", root, options)


def test_ordinary_entries_are_made_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "symlink").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "empty", tmp_path / "link")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        reader = InodeReader(Place(b""), policy=XattrPolicy.NONE, use_epoch=False)
        names = [b"file", b"empty", b"symlink", b"fifo", b"gone"]
        made = _native.stat_names(fd, names, False, b"a/", reader.maker(1))
        assert [type(one).__name__ for one in made] == ["RegularFile", "tuple", "Symlink", "tuple", "NoneType"]
        assert made[0].content.path == b"a/file"
        assert made[1] == _pure.stat_names(fd, [b"empty"], False, b"a/", reader.maker(1))[0]
        made = _native.stat_names(fd, names, False, b"", reader.maker(0))
        assert [type(one).__name__ for one in made] == ["RegularFile", "RegularFile", "Symlink", "tuple", "NoneType"]
        with pytest.raises(TypeError):
            _native.stat_names(fd, names, False, b"", (KINDS, Directory, {}, {}, False, True))
        with pytest.raises(ValueError, match="kinds"):
            _native.stat_names(fd, names, False, b"", (KINDS[:4], tuple, {}, {}, False, True))
    finally:
        os.close(fd)


@given(
    st.lists(
        st.one_of(st.none(), st.binary(), st.tuples(st.binary(min_size=1, max_size=64), st.integers(), st.just(-1)))
    )
)
def test_the_same_contents(digested: list[bytes | tuple[bytes, int, int] | None]) -> None:
    def outcome(module: ModuleType) -> tuple[object, list[object]]:
        files = [RegularFile(mode=0o100644, size=number % 3, content=b"?") for number in range(len(digested))]
        tally = module.give_contents(files, digested, KINDS)
        contents = [file.content for file in files]
        return tally, [(one.digest, one.payload) if isinstance(one, External) else one for one in contents]

    assert outcome(_native) == outcome(_pure)
    for module in (_native, _pure):
        with pytest.raises(ValueError, match=r"one result|argument 2"):
            module.give_contents([], [None], KINDS)


def test_the_same_names(tmp_path: Path) -> None:
    made = [b"%d" % number for number in range(500)] + [bytes(range(1, 47)), b"\xff" * 200, b"...", b". "]
    for name in made:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert _pure.list_names(fd) == _native.list_names(fd) == _native.list_names(fd) == sorted(made)
    finally:
        os.close(fd)
    for module in (_native, _pure):
        with pytest.raises(OSError, match="Bad file descriptor"):
            module.list_names(fd)


INODES = [1, 2**63 + 1, 2**64 - 1]
STAMPS = st.tuples(
    st.sampled_from([5, 6]),
    st.sampled_from([*INODES, 2**64, -1]),
    st.sampled_from([0, 1, 2, 3, -1, 2**63]),
    st.just(7),
    st.sampled_from([8, 9, -8, -(2**63) - 1]),
)


def record(digest_size: int, *numbers: int) -> bytes:
    """One with a digest that tells its numbers apart."""
    return native.KNOWN_RECORD.pack(*numbers) + (repr(numbers).encode() * 9)[-digest_size:]


FIELDS = st.tuples(
    st.sampled_from(INODES),
    st.sampled_from([0, 1, 2, 3, -1]),
    st.just(7),
    st.sampled_from([8, 9, -8]),
    st.sampled_from([0, 20, 2**32 - 1]),
)
SIZES = st.sampled_from([8, 32, 64])


@given(st.lists(STAMPS), st.lists(FIELDS), SIZES, st.booleans())
def test_the_same_matches(
    stamps: list[tuple[int, int, int, int, int]], made: list[tuple[int, ...]], digest_size: int, is_sorted: bool
) -> None:
    records = b"".join(record(digest_size, *one) for one in (sorted(made) if is_sorted else made))
    expected = _pure.match_stamps(stamps, records, 5, digest_size, 1, -1, b"")
    assert _native.match_stamps(stamps, records, 5, digest_size, 1, -1, b"") == expected


@given(st.lists(FIELDS), st.lists(FIELDS), SIZES, st.booleans(), st.sampled_from([0, 20, 21]))
def test_the_same_are_merged(
    records: list[tuple[int, ...]], made: list[tuple[int, ...]], digest_size: int, is_sorted: bool, oldest: int
) -> None:
    """Also into what is out of order."""
    if is_sorted:
        records = sorted({one[0]: one for one in records}.values())
    old, new = (b"".join(record(digest_size, *one) for one in some) for some in (records, made))
    merged = _native.merge_records(old, new, digest_size, oldest)
    assert merged == _pure.merge_records(old, new, digest_size, oldest)
    if is_sorted:
        kept = {one[0]: one for one in records if one[4] >= oldest} | {one[0]: one for one in made}
        assert merged == b"".join(record(digest_size, *one) for _, one in sorted(kept.items()))


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([-8, 0, 4, 8, 32, 33, 64, 72, 2**63 - 8]))
def test_what_are_no_records_is_nothing(noise: bytes, other: bytes, digest_size: int) -> None:
    stamps = [(5, inode, 3, 7, 8) for inode in (0, int.from_bytes(noise[:8], "little"))]
    for data in (noise, noise[: len(noise) // 40 * 40], noise[: len(noise) // 72 * 72]):
        expected = _pure.match_stamps(stamps, data, 5, digest_size, 1, -1, b"")
        assert _native.match_stamps(stamps, data, 5, digest_size, 1, -1, b"") == expected
        merged = _pure.merge_records(data, other, digest_size, 0)
        assert _native.merge_records(data, other, digest_size, 0) == merged
        if digest_size % 8 or not 0 < digest_size <= 64 or len(data) % (40 + digest_size):
            assert expected == ([None] * 2, 2**63 - 1, 0, 0, 0)


@pytest.mark.parametrize("module", [_native, _pure])
def test_records_that_say_something(module: ModuleType) -> None:
    numbers = [(1, 2, 7, 8, 30), (9, 2, 7, 8, 10), (2**64 - 1, 3, 7, -8, 20)]
    records = b"".join(record(8, *one) for one in numbers)
    stamps = [(5, 2**64 - 1, 3, 7, -8), (5, 1, 2, 7, 8), (6, 1, 2, 7, 8), (6, 4, 0, 0, 0), (5, 2**64, 0, 0, 0)]
    last, first = (record(8, *numbers[number])[40:] for number in (2, 0))

    def match(*words: object) -> object:
        return module.match_stamps(*words, -1, b"")

    assert match(stamps, records, 5, 8, 1) == ([(last, 3, -1), (first, 2, -1), None, b"", None], 20, 0, 2, 5)
    assert match(stamps, memoryview(records), 5, 8, 2) == ([(last, 3, -1), None, None, b"", None], 20, 0, 1, 3)
    for field in range(2, 5):
        other = [(*stamp[:field], stamp[field] + 1, *stamp[field + 1 :]) for stamp in stamps[:2]]
        assert match(other, records, 5, 8, 1) == ([None] * 2, 2**63 - 1, 0, 0, 0)
    assert match(stamps, b"", 5, 8, 1) == ([None] * 3 + [b"", None], 2**63 - 1, 0, 0, 0)
    assert match([], records, 5, 8, 2) == ([], 2**63 - 1, 0, 0, 0)


@pytest.mark.parametrize("module", [_native, _pure])
def test_a_record_among_many(module: ModuleType) -> None:
    made = [record(32, number * 3, number + 1, 7, 8, 0) for number in range(1000)]
    records = module.merge_records(b"", b"".join(made[::-1]), 32, 0)
    assert records == b"".join(made)
    stamps = [(5, inode, inode // 3 + 1, 7, 8) for inode in range(-1, 3002)]
    found = module.match_stamps(stamps, records, 5, 32, 0, -1, b"")[0]
    assert [number - 1 for number, one in enumerate(found) if one is not None] == list(range(0, 3000, 3))


@pytest.mark.parametrize("module", [_native, _pure])
@pytest.mark.parametrize("is_open", [True, False])
def test_objects_that_a_store_has_or_lacks(module: ModuleType, is_open: bool, tmp_path: Path) -> None:
    digests = [bytes([number]) * 32 for number in range(6)]
    records, stamps = [], []
    for number, digest in enumerate(digests):
        records.append(native.KNOWN_RECORD.pack(number, 100, 7, 8, 50 - number) + digest)
        stamps.append((5, number, 100, 7, 8))
        (tmp_path / digest.hex()[:2]).mkdir()
        (tmp_path / digest.hex()[:2] / digest.hex()[2:]).write_bytes(bytes(100 if number % 2 else 99))
    stamps.append((5, 6, 0, 7, 8))
    (tmp_path / digests[3].hex()[:2] / digests[3].hex()[2:]).unlink()
    with DirectoryStore(os.fsencode(tmp_path)) as store:
        prefixes = store.prefix_fds if is_open else array("i", [-1]) * 256
        found = module.match_stamps(stamps, b"".join(records), 5, 32, 64, store.fd, prefixes)
    right = [None, (digests[1], 100, -1), None, None, None, (digests[5], 100, -1), b""]
    assert found == (right, 45, 4, 2, 200)
    with pytest.raises((ValueError, TypeError), match=r"prefixes|length"):
        module.match_stamps(stamps, b"".join(records), 5, 32, 64, 0, b"abc")


def test_wrong_stamps_are_refused() -> None:
    for stamps in ([1], [(5, "x", 2, 7, 8)], [(5, 1)], ()):
        with pytest.raises(TypeError):
            _native.match_stamps(stamps, b"", 5, 8, 2, -1, b"")
    for records in ("", None):
        with pytest.raises(TypeError):
            _native.match_stamps([], records, 5, 8, 2, -1, b"")
        with pytest.raises(TypeError):
            _native.merge_records(b"", records, 8, 0)


@given(st.lists(st.sampled_from(["file", "empty", "link", "other", "nothing"]), max_size=12), st.integers(0, 14))
def test_the_same_entries_are_taken(kinds: list[str], first: int) -> None:
    met: list[object] = []
    for kind in kinds:
        if kind in {"file", "empty"}:
            met.append(RegularFile(mode=0o100644, size=int(kind == "file"), content=b"x"[: kind == "file"]))
        elif kind == "link":
            met.append(Symlink(mode=0o120777, target=b"x"))
        else:
            met.append(None if kind == "nothing" else (0o40755, 2))
    names = [b"%d" % number for number in range(len(met))]

    def take(module: ModuleType) -> object:
        entries: dict[bytes, object] = {}
        files: list[object] = []
        return module.take_entries(names, met, first, entries, files, KINDS), list(entries.items()), files

    assert take(_native) == take(_pure)


def test_entries_that_cannot_be_taken() -> None:
    for names, first in (([], 0), ([b"a"], -1)):
        with pytest.raises(ValueError, match="no such name"):
            _native.take_entries(names, [Symlink(mode=0o120777, target=b"x")], first, {}, [], KINDS)
    with pytest.raises(TypeError):
        _native.take_entries((), [], 0, {}, [], KINDS)
