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
from cfstools.sources.directory import WalkOptions, open_directory
from cfstools.sources.inodes import InodeReader, Place
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
RECORDS = st.builds(
    native.KNOWN_RECORD.pack,
    st.sampled_from(INODES),
    st.sampled_from([0, 1, 2, 3, -1]),
    st.just(7),
    st.sampled_from([8, 9, -8]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 255]),
    st.sampled_from([0, 1, 2, 3, 4, 63, 64, 65, 255]),
    st.binary(max_size=64),
)


@given(st.lists(STAMPS), st.lists(RECORDS).map(b"".join), st.sampled_from([0, 4, 64, 65, -1]))
def test_the_same_matches(stamps: list[tuple[int, int, int, int, int]], records: bytes, digest_size: int) -> None:
    expected = _pure.match_stamps(stamps, records, 5, digest_size, 2, -1, b"")
    assert _native.match_stamps(stamps, records, 5, digest_size, 2, -1, b"") == expected


@given(st.lists(STAMPS), st.lists(RECORDS, min_size=1).map(b"".join), st.data())
def test_the_same_of_records_that_were_damaged(
    stamps: list[tuple[int, int, int, int, int]], records: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(records)))
    noise = data.draw(st.binary(max_size=2 * native.KNOWN_RECORD.size))
    end = data.draw(st.integers(start, len(records)))
    for damaged in (noise, records[:start], records[start:], records[:start] + noise + records[end:]):
        expected = _pure.match_stamps(stamps, damaged, 5, 4, 2, -1, b"")
        assert _native.match_stamps(stamps, damaged, 5, 4, 2, -1, b"") == expected
        if len(damaged) % native.KNOWN_RECORD.size:
            assert expected == ([None] * len(stamps), 2**63 - 1, 0, 0, 0, 0)


@pytest.mark.parametrize("module", [_native, _pure])
def test_records_that_say_something(module: ModuleType) -> None:
    pack = native.KNOWN_RECORD.pack
    stamps = [(5, 2**64 - 1, 3, 7, -8), (5, 1, 2, 7, 8), (6, 1, 2, 7, 8)]
    digest = pack(2**64 - 1, 3, 7, -8, 20, 0, 4, b"abcdefgh")
    contents = pack(1, 2, 7, 8, 30, 1, 2, b"XYZ")
    other = pack(9, 2, 7, 8, 10, 1, 2, b"XYZ")
    said = ([(b"abcd", 3, -1), b"XY", None], 20, 0, 1, 3, 5)

    def match(*words: object) -> object:
        return module.match_stamps(*words, -1, b"")

    assert match(stamps, digest + other + contents, 5, 4, 2) == said
    # The last one counts.
    again = pack(1, 1, 7, 8, 1, 1, 1, b"X")
    assert match(stamps, contents + digest + again, 5, 4, 2) == ([said[0][0], None, None], 20, 0, 1, 3, 3)
    assert match(stamps, b"", 5, 4, 2) == ([None] * 3, 2**63 - 1, 0, 0, 0, 0)
    assert match([], digest, 5, 4, 2) == ([], 2**63 - 1, 0, 0, 0, 0)
    longest = pack(1, 64, 7, 8, 0, 1, 64, bytes(range(64)))
    assert match([(5, 1, 64, 7, 8)], longest, 5, 32, 64) == ([bytes(range(64))], 0, 0, 0, 0, 64)


@pytest.mark.parametrize("module", [_native, _pure])
@pytest.mark.parametrize("is_open", [True, False])
def test_objects_that_a_store_has_or_lacks(module: ModuleType, is_open: bool, tmp_path: Path) -> None:
    digests = [bytes([number]) * 32 for number in range(6)]
    records, stamps = [], []
    for number, digest in enumerate(digests):
        records.append(native.KNOWN_RECORD.pack(number, 100, 7, 8, 50 - number, 0, 32, digest))
        stamps.append((5, number, 100, 7, 8))
        (tmp_path / digest.hex()[:2]).mkdir()
        (tmp_path / digest.hex()[:2] / digest.hex()[2:]).write_bytes(bytes(100 if number % 2 else 99))
    (tmp_path / digests[3].hex()[:2] / digests[3].hex()[2:]).unlink()
    with DirectoryStore(os.fsencode(tmp_path)) as store:
        prefixes = store.prefix_fds if is_open else array("i", [-1]) * 256
        found = module.match_stamps(stamps, b"".join(records), 5, 32, 64, store.fd, prefixes)
    right = [None, (digests[1], 100, -1), None, None, None, (digests[5], 100, -1)]
    assert found == (right, 45, 4, 2, 200, 200)
    with pytest.raises((ValueError, TypeError), match=r"prefixes|length"):
        module.match_stamps(stamps, b"".join(records), 5, 32, 64, 0, b"abc")


def test_wrong_stamps_are_refused() -> None:
    for stamps in ([1], [(5, "x", 2, 7, 8)], [(5, 1)], ()):
        with pytest.raises(TypeError):
            _native.match_stamps(stamps, b"", 5, 4, 2, -1, b"")
    for records in ("", bytearray(), None):
        with pytest.raises(TypeError):
            _native.match_stamps([], records, 5, 4, 2, -1, b"")


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
