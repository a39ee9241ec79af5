"""What a path leads to, and why it cannot be said."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfstools.api.build import build
from cfstools.api.diff import diff
from cfstools.api.sign import sign
from cfstools.errors import InputError
from cfstools.linux.contents import file_type, is_directory
from cfstools.oci.files import DirectoryFiles
from cfstools.signing.files import read_envelope
from cfstools.sources.oci_containers import open_images
from cfstools.sources.oci_request import Form, parse_reference
from cfstools.store.chain import missing_objects
from tests.descriptors import descriptors


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "dangling").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    there = {
        "file": stat.S_IFREG,
        "dir": stat.S_IFDIR,
        "fifo": stat.S_IFIFO,
        "link": stat.S_IFDIR,
        "dangling": 0,
        "loop": 0,
        "missing": 0,
        "file/below": 0,
        "n" * 256: 0,
        "zero\0byte": 0,
    }
    for name, kind in there.items():
        path = os.fsencode(tmp_path / name)
        assert file_type(path) == kind, name
        assert is_directory(path) is (kind == stat.S_IFDIR), name
    assert file_type(bytes(tmp_path / "link"), follow=False) == stat.S_IFLNK
    assert file_type(bytes(tmp_path / "dangling"), follow=False) == stat.S_IFLNK


def references(path: bytes) -> object:
    return parse_reference(b"oci:%b:name" % path)


def opened(path: bytes, stdin: int | None = None) -> None:
    with open_images(Form.OCI_ARCHIVE, [path], stdin=stdin):
        pass


ASKING: list[Callable[[bytes], object]] = [
    is_directory,
    references,
    opened,
    read_envelope,
    lambda path: build(path, None),
    lambda path: diff(path, path),
    lambda path: sign(path, [], output=path + b".other"),
    lambda path: missing_objects([path], {b"x": 1}),
]


@pytest.mark.parametrize("ask", range(len(ASKING)))
def test_what_cannot_be_looked_at_is_not_taken_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: int
) -> None:
    looking = os.stat

    def fail(path: Any, **words: Any) -> os.stat_result:
        if not isinstance(path, int) and os.fsencode(path).startswith(bytes(tmp_path / "it")):
            raise OSError(errno.EIO, "Input/output error", path)
        return looking(path, **words)

    (tmp_path / "it").mkdir()
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(InputError, match=r"/it(:name)?: cannot look at: Input/output error"):
        ASKING[ask](bytes(tmp_path / "it"))


def test_statuses_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that are open; nothing stays open."""
    (tmp_path / "file").write_bytes(b"x")
    file = bytes(tmp_path / "file")
    files = DirectoryFiles(bytes(tmp_path))

    def fail(*_words: object) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    with (tmp_path / "file").open("rb") as stdin:
        before = descriptors()
        asking: list[tuple[str, str, Callable[[], object]]] = [
            ("fstat", "cannot look up file", lambda: files.size("file")),
            ("fstat", "file: cannot look up", lambda: opened(file)),
            ("fstat", "standard input: cannot look up", lambda: build(b"-", None, stdin=stdin)),
            ("dup", "standard input: cannot open", lambda: opened(b"-", stdin.fileno())),
            ("set_blocking", "file: cannot open", lambda: opened(file)),
        ]
        for function, why, ask in asking:
            with monkeypatch.context() as patch:
                patch.setattr(os, function, fail)
                with pytest.raises(InputError, match=f"{why}: Input/output error"):
                    ask()
        assert descriptors() <= before
    files.close()
