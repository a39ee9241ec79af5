"""Which paths the functions that read files in batches take: the same in C and in Python."""

from __future__ import annotations

import errno
import os
from array import array
from pathlib import Path

import pytest

from cfstools import native
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.descriptor import descriptor

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
    one, two = native.write_files(store, b"ab", [(0, 1), (1, 1)], 0o600)
    links = [(one, store, b"one"), (two, store, b"link"), (-1, store, b"x"), (two, -1, b"x"), (two, store, b"d/two")]
    errors = native.link_files(links)
    for fd in (one, two, store):
        os.close(fd)
    assert errors == [0, errno.EEXIST, errno.ENOENT, errno.EBADF, 0]
    assert ((top / "one").read_bytes(), (top / "d/two").read_bytes()) == (b"a", b"b")


def test_no_link_is_made_where_a_name_has_a_zero(each_implementation: str, top: Path) -> None:
    store = os.open(top, os.O_RDONLY)
    (fd,) = native.write_files(store, b"a", [(0, 1)], 0o600)
    with pytest.raises(ValueError, match="embedded null byte"):
        native.link_files([(fd, store, b"one"), (fd, store, b"t\0wo")])
    os.close(fd)
    os.close(store)
    assert sorted(os.listdir(top)) == ["d", "link"]
