"""A path is looked at once, by the source that takes it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, SourceKind
from cfstools.tree import Directory
from cfstools.verity import Algorithm
from tests.formats.images import write_image
from tests.oci import making

DUMP = b"/ 0 40755 1 0 0 0 0.0 - - -\n"
IMAGE = bytes(write_image(Directory(mode=0o40755)))
FILES = {
    "image": (IMAGE, SourceKind.IMAGE),
    "dump": (DUMP, SourceKind.DUMP),
    "layer": (making.hello(), SourceKind.CONTAINER),
    "packed": (making.COMPRESSORS["+gzip"](making.hello()), SourceKind.CONTAINER),
    "archive": (making.archive(making.image([making.hello()])), SourceKind.CONTAINER),
    "docker": (making.archive(making.docker([making.hello()])), SourceKind.CONTAINER),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_looked_at_once_and_opened_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kind = FILES[name]
    path = bytes(tmp_path / "it")
    (tmp_path / "it").write_bytes(data)
    calls: Counter[str] = Counter()

    def counted(function: str) -> Any:
        real = getattr(os, function)

        def call(place: Any, *words: Any, **named: Any) -> Any:
            calls[function] += place == path
            return real(place, *words, **named)

        return call

    for function in ("stat", "lstat", "open"):
        monkeypatch.setattr(os, function, counted(function))
    before = os.listdir("/proc/self/fd")
    with recognise(path) as source:
        assert source.kind is kind
        # What comes in its place is not what was recognised.
        (tmp_path / "other").write_bytes(b"something else")
        (tmp_path / "other").rename(tmp_path / "it")
        with source.open(Reading()) as tree:
            assert tree.kind is kind
            assert isinstance(tree.root, Directory)
    assert calls == Counter(stat=1, open=1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", FILES)
def test_what_is_only_recognised_is_closed(name: str, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(FILES[name][0])
    before = os.listdir("/proc/self/fd")
    with recognise(bytes(tmp_path / "it")) as source:
        assert source.kind is FILES[name][1]
    assert os.listdir("/proc/self/fd") == before


def test_an_image_as_its_writer_had_it(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(IMAGE + b"tail")
    with (
        recognise(bytes(tmp_path / "it")) as source,
        source.open(Reading(algorithm=None, as_written=True)) as tree,
    ):
        assert tree.opened is not None
        assert tree.opened.word(Algorithm.SHA256) == "v0-sha256-12"
        assert bytes(tree.data or b"") == IMAGE


def test_what_only_reading_tells(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with recognise(bytes(tmp_path / "pipe")) as source:
        assert source.kind is SourceKind.UNKNOWN
        fd = os.open(tmp_path / "pipe", os.O_RDWR)
        os.write(fd, DUMP)
        reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        os.close(fd)
        with source.open(Reading()) as tree:
            assert tree.kind is SourceKind.DUMP
        os.close(reading)
