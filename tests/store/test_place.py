"""Where stores are, as users write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.errors import StoreError, UsageError
from cfstools.store import DirectoryStore, MemoryStore
from cfstools.store.open import open_directory, open_store, open_stores, open_to_write
from cfstools.store.place import is_remote, local_path, split_places


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (b"objects", b"objects"),
        (b"/a/b", b"/a/b"),
        (b"file:///a/b", b"/a/b"),
        (b"FILE:///a/b/", b"/a/b/"),
        (b"file://localhost/a%20b%ff", b"/a b\xff"),
        (b"file:x", b"file:x"),
        (b"a/https://b", b"a/https://b"),
        (b"./https://b", b"./https://b"),
        (b"://x", b"://x"),
        (b"\xff://x", b"\xff://x"),
    ],
)
def test_paths_and_files(place: bytes, path: bytes) -> None:
    assert local_path(place) == path


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (b"ssh://host/objects", "^ssh://host/objects: a store of the scheme ssh:// cannot be used here$"),
        (b"ftp://user:word@host/x?key", "^ftp://host/x: a store"),
        (b"x-a+b.c://y", r"scheme x-a\+b\.c://"),
        (b"file://objects", "needs an absolute path"),
        (b"file://host/objects", "needs an absolute path"),
        (b"file://", "needs an absolute path"),
        (b"file:///a%00b", "zero byte"),
    ],
)
def test_refused_places(place: bytes, why: str) -> None:
    for attempt in (local_path, split_places, open_directory):
        with pytest.raises(UsageError, match=why):
            attempt(place)


@pytest.mark.parametrize("place", [b"https://host/objects", b"HTTP://h", b"s3://bucket/x", b"gs://b", b"az://c/d"])
def test_places_over_a_network(place: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_remote(place)
    assert split_places(place) == [place]
    for attempt in (local_path, open_directory):
        with pytest.raises(UsageError, match="cannot be used here"):
            attempt(place)
    monkeypatch.chdir(tmp_path)
    os.makedirs(place)
    assert split_places(place) == [b"./" + place]
    for other in (b"x", b"file:///x", b"ssh://x", b"./https://x"):
        assert not is_remote(other)


def test_several_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_places(b"a") == [b"a"]
    assert split_places(b"a:b") == [b"a", b"b"]
    assert split_places(b"a::b") == [b"a", b"", b"b"]
    assert split_places(b"file:///a:b") == [b"/a:b"]
    for text in (b"a:https://host/x", b"a:b:s3://x:y"):
        with pytest.raises(UsageError, match=r"scheme (https|s3)://"):
            split_places(text)
    # What is there counts, whatever it looks like.
    (tmp_path / "s3:" / "x").mkdir(parents=True)
    assert split_places(b"s3://x") == [b"./s3://x"]
    assert local_path(b"./s3://x") == b"./s3://x"
    (tmp_path / "one").mkdir()
    two = os.fsencode(tmp_path)
    assert split_places(b"one:/" + two) == [b"one", b"/" + two]


def test_the_one_door(tmp_path: Path) -> None:
    path, other = bytes(tmp_path / "a b"), MemoryStore()
    with pytest.raises(StoreError, match="No such file"), open_stores([path]):
        pass
    with open_to_write([path, other, path]) as (first, others):
        assert (first.path, others) == (os.fsdecode(path), (other,))
    assert first.fd == -1
    url = b"file://" + path.replace(b" ", b"%20")
    with open_stores([url, other]) as (store, same):
        assert isinstance(store, DirectoryStore)
        assert store.path == os.fsdecode(path)
        assert same is other
    with open_store(other) as found:
        assert found is other
    with pytest.raises(UsageError, match="only be written to a directory"), open_to_write([other]):
        pass
    missing = bytes(tmp_path / "missing")
    with pytest.raises(StoreError), open_to_write([bytes(tmp_path / "new"), missing]):
        pass
    assert not (tmp_path / "new").exists()
