"""Trees appear whole on disk or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Self

import pytest

from cfstools.errors import (
    InputError,
)
from cfstools.store import MemoryStore
from cfstools.tree import Entry, External, HardLink
from cfstools.view.contents import PIECE
from cfstools.view.disk_inodes import InodeWriter
from tests.api.extracting import Stop, directory, file, put, stop_after
from tests.store.conftest import loop_mount


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_interrupted(out: Path, existing: bool, threads: int, count: int) -> None:
    if existing:
        out.mkdir()
    inside: dict[bytes, Entry] = {b"d%d" % number: directory({b"f": file()}, mode=0o500) for number in range(500)}
    with pytest.raises(Stop):
        put(directory(inside), out, threads=threads, progress=stop_after(count, Stop()))
    assert os.listdir(out.parent) == (["out"] if existing else [])
    assert not existing or os.listdir(out) == []


def test_threads_stop_in_the_middle_of_a_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file fails while others, larger, are being copied: these are not finished first."""
    store = MemoryStore()
    data = bytes(64 * PIECE)
    large = file(data)
    large.content = External(store.add(data), None)
    started, stopped, advanced = threading.Event(), threading.Event(), 0

    class Watch:
        def stage(self, name: str, total: int | None, unit: str) -> Self:
            return self

        def advance(self, amount: int) -> None:
            nonlocal advanced
            if amount == 3:
                assert started.wait(60)
                raise Stop
            advanced += 1
            started.set()
            if advanced == 2:
                assert stopped.wait(60)

        def finish(self) -> None:
            pass

    def noted(writer: InodeWriter, name: str, value: object) -> None:
        object.__setattr__(writer, name, value)
        if (name, value) == ("stopped", True):
            stopped.set()

    monkeypatch.setattr(InodeWriter, "__setattr__", noted)
    root = directory({b"a": directory({b"f": file(b"abc")}), b"b": directory({b"f": large})})
    with pytest.raises(Stop):
        put(root, out, store=store, threads=2, progress=Watch())
    assert advanced <= 2
    assert not out.exists()


@pytest.mark.root
@pytest.mark.parametrize("existing", [False, True])
def test_no_space(tmp_path: Path, existing: bool) -> None:
    for place in loop_mount(tmp_path, "ext4", 8 << 20):
        target = place / "out"
        if existing:
            target.mkdir()
        store = MemoryStore()
        data = os.urandom(64 << 20)
        large = file(data)
        large.content = External(store.add(data), None)
        before = sorted(place.rglob("*"))
        with pytest.raises(InputError, match="out/sub/large: cannot write: No space left on device"):
            put(directory({b"sub": directory({b"large": large})}), target, store=store)
        assert sorted(place.rglob("*")) == before


def test_failures_of_the_file_system(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    shared = file()
    root = directory({b"a": shared, b"b": HardLink(shared)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(InputError, match="out/b: cannot write: Too many links"):
            put(root, out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        with pytest.raises(InputError, match="out/: cannot write: Too many links"):
            put(directory(), out)
    assert not out.exists()
