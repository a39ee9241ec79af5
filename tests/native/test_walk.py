"""A directory is the same tree whether inodes are made by the native functions or not."""

from __future__ import annotations

import os
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
from cfstools.sources.inodes import InodeReader, SourceRoot
from cfstools.sources.source import WalkOptions
from cfstools.tree import Directory, Entry, HardLink, Unread
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
        reader = InodeReader(SourceRoot(b""), policy=XattrPolicy.NONE, use_epoch=False)
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


INODES = [1, 2**63 + 1, 2**64 - 1]


def record(digest_size: int, *numbers: int) -> bytes:
    """One with a digest that tells its numbers apart."""
    return native.KNOWN_RECORD.pack(*numbers, 0) + (repr(numbers).encode() * 9)[-digest_size:]


FIELDS = st.tuples(
    st.sampled_from(INODES),
    st.sampled_from([0, 1, 2, 3, -1]),
    st.just(7),
    st.sampled_from([8, 9, -8]),
    st.sampled_from([0, 20, 2**32 - 1]),
)
SIZES = st.sampled_from([8, 32, 64])


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
    for data in (noise, noise[: len(noise) // 40 * 40], noise[: len(noise) // 72 * 72]):
        merged = _pure.merge_records(data, other, digest_size, 0)
        assert _native.merge_records(data, other, digest_size, 0) == merged


@pytest.mark.parametrize("module", [_native, _pure])
def test_records_in_their_order(module: ModuleType) -> None:
    made = [record(32, number * 3, number + 1, 7, 8, 0) for number in range(1000)]
    assert module.merge_records(b"", b"".join(made[::-1]), 32, 0) == b"".join(made)


def test_wrong_records_are_refused() -> None:
    for records in ("", None):
        with pytest.raises(TypeError):
            _native.merge_records(b"", records, 8, 0)
