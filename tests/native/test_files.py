"""Which paths the functions that read files in batches take: the same in C and in Python."""

from __future__ import annotations

import errno
import hashlib
import os
from array import array
from pathlib import Path

import pytest

from cfstools import native
from cfstools.native import _pure
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.merkle import descriptor

CONTENT = b"x" * 5000


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(CONTENT)
    (tmp_path / "d/up").symlink_to("..")
    (tmp_path / "link").symlink_to("d/file")
    return tmp_path


def read(top: Path, name: bytes) -> object:
    fd = os.open(top, os.O_RDONLY)
    params = Params(algorithm=Algorithm.SHA256)
    start, prefixes = descriptor(b"", 0, params), array("i", [-1] * 256)
    try:
        (found,) = native.digest_files(
            fd, [(name, None)], bytearray(16384), "sha256", 4096, b"", start, 0, -1, prefixes
        )
    finally:
        os.close(fd)
    return found


@pytest.mark.parametrize("name", [b"d/file", b"./d/file", b"d/./file"])
def test_plain_names_are_read(each_implementation: str, top: Path, name: bytes) -> None:
    assert read(top, name) == (digest_bytes(CONTENT, Params(algorithm=Algorithm.SHA256)), len(CONTENT), 0)


@pytest.mark.parametrize(
    "name",
    [
        b"d/../d/file",
        b"../d/file",
        b"d//file",
        b"/d/file",
        b"d/file/",
        b"d/..",
        b"..",
        b"",
        b"d",
        b"link",
        b"d/up/d/file",
        b"d/fil\0e",
        b"./" * 2048 + b"d/file",
    ],
)
def test_all_else_is_left_to_the_caller(each_implementation: str, top: Path, name: bytes) -> None:
    assert read(top, name) is None


def test_links_are_made_or_their_errors_told(each_implementation: str, top: Path) -> None:
    store = os.open(top, os.O_RDONLY)
    one, two = native.write_files(store, b"ab", [(0, 1), (1, 1)], 0o600, -1)
    links = [(one, store, b"one"), (two, store, b"link"), (-1, store, b"x"), (two, -1, b"x"), (two, store, b"d/two")]
    errors = native.link_files(links)
    for fd in (one, two, store):
        os.close(fd)
    assert errors == [0, errno.EEXIST, errno.ENOENT, errno.EBADF, 0]
    assert ((top / "one").read_bytes(), (top / "d/two").read_bytes()) == (b"a", b"b")


def test_no_link_is_made_where_a_name_has_a_zero(each_implementation: str, top: Path) -> None:
    store = os.open(top, os.O_RDONLY)
    (fd,) = native.write_files(store, b"a", [(0, 1)], 0o600, -1)
    with pytest.raises(ValueError, match="embedded null byte"):
        native.link_files([(fd, store, b"one"), (fd, store, b"t\0wo")])
    os.close(fd)
    os.close(store)
    assert sorted(os.listdir(top)) == ["d", "link"]


def test_what_is_closed_is_closed_whatever_is_said(
    each_implementation: str, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number must not be closed a second time, and what was read is right."""
    (top / "ab").mkdir()
    (top / "ab" / ("ab" * 31)).write_bytes(b"object")
    store = os.open(top, os.O_RDONLY)
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    free = os.dup(store)
    real(free)
    monkeypatch.setattr(os, "close", close)
    files = [(b"d/./file", None), (b"link", None), (b"d", None)]
    start, prefixes = descriptor(b"", 0, Params()), array("i", [-1] * 256)
    found = native.digest_files(store, files, bytearray(16384), "sha256", 4096, b"", start, 0, -1, prefixes)
    monkeypatch.undo()
    assert found == [(digest_bytes(CONTENT, Params()), len(CONTENT), 0), None, None]
    # Nothing was left open.
    assert os.dup(store) == free
    real(free)
    real(store)


def test_a_file_that_cannot_be_written_is_closed_whatever_is_said(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = os.open(top, os.O_RDONLY)
    real = os.close

    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(fd: int) -> None:
        real(fd)
        fail()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        patched.setattr(os, "close", close)
        assert _pure.write_files(store, b"ab", [(0, 2), (0, 1)], 0o600, -1) == []
        assert _pure.write_files(store, b"ab", [(0, 2), (0, 1)], 0o600, 7) == []
    assert not (top / "7").exists()
    os.close(store)


def test_files_named_by_numbers(each_implementation: str, top: Path) -> None:
    directory = os.open(top / "d", os.O_RDONLY)
    fds = native.write_files(directory, b"abc", [(0, 1), (1, 2)], 0o600, 41)
    assert [os.pread(fd, 9, 0) for fd in fds] == [b"a", b"bc"]
    assert ((top / "d/41").read_bytes(), (top / "d/42").read_bytes()) == (b"a", b"bc")
    # The third name is taken.
    (top / "d/45").symlink_to("file")
    more = native.write_files(directory, b"abc", [(0, 1)] * 4, 0o600, 43)
    assert len(more) == 2
    for fd in (*fds, *more, directory):
        os.close(fd)
    assert (top / "d/file").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("salt", [b"", b"salt"])
def test_contents_in_memory(each_implementation: str, top: Path, algorithm: Algorithm, salt: bytes) -> None:
    params = Params(algorithm=algorithm, salt=salt)
    contents = [b"a", b"x" * 4096, b"y" * 4097, b"z" * 600_000, b"a"]
    arena, spans = bytearray(), []
    for data in contents:
        spans.append((len(arena), len(data)))
        arena += data + bytes(-len(data) % 4096)
    digests = [digest_bytes(data, params) for data in contents]
    for number, data in ((0, b"a"), (1, b"short")):
        name = digests[number].hex()
        (top / name[:2]).mkdir()
        (top / name[:2] / name[2:]).write_bytes(data)
    store, none = os.open(top, os.O_RDONLY), array("i", [-1] * 256)
    words = (arena, spans, algorithm.value, 4096, params.salt_prefix, descriptor(b"", 0, params))
    found = native.digest_spans(*words, store, none)
    assert found == [
        (digests[0], 1, -1),
        None,  # the object has another size
        (digests[2], 4097, spans[2][0]),
        (digests[3], 600_000, spans[3][0]),
        (digests[4], 1, -1),
    ]
    os.close(store)
    plain = native.digest_spans(*words, -1, b"")
    assert plain == [
        (digest, len(data), place) for digest, data, (place, _) in zip(digests, contents, spans, strict=True)
    ]
    for wrong in ((-4096, 1), (1, 1), (0, 0), (0, -1), (len(arena), 1), (0, len(arena) + 1)):
        with pytest.raises(ValueError, match="a span is empty"):
            native.digest_spans(arena, [wrong], *words[2:], -1, b"")


def test_objects_of_an_algorithm_that_c_does_not_know_are_checked(each_implementation: str, tmp_path: Path) -> None:
    start = bytearray(descriptor(b"", 0, Params()))
    filled = start.copy()
    filled[8:16] = len(CONTENT[:4096]).to_bytes(8, "little")
    filled[16:64] = hashlib.sha384(CONTENT[:4096]).digest()
    digest = hashlib.sha384(filled).digest()
    prefix = tmp_path / f"{digest[0]:02x}"
    prefix.mkdir()
    (prefix / digest.hex()[2:]).write_bytes(CONTENT[:4096])
    prefixes = array("i", [-1] * 256)
    prefixes[digest[0]] = os.open(prefix, os.O_PATH)
    wrong = bytes([digest[0], digest[1] ^ 1]) + digest[2:]
    words = (bytearray(1 << 16), "sha384", 4096, b"", bytes(start))
    try:
        assert native.check_objects(prefixes, digest + wrong, array("Q", [4096, 8192]), 0, 2, *words) == b"\1\0"
        with pytest.raises(ValueError, match="no such objects"):
            native.check_objects(prefixes, digest + wrong, array("Q", [4096]), 0, 1, *words)
    finally:
        os.close(prefixes[digest[0]])
