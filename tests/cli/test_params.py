"""Options that several verbs share."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from cfstools.cli.params import StorePaths
from cfstools.errors import CfsError, Exhausted, InputError
from tests.mkcfs import mkcfs
from tests.store.conftest import as_nobody


def stores(value: bytes | Path) -> list[bytes]:
    found: Any = StorePaths().convert(os.fsdecode(value), None, None)
    assert isinstance(found, list)
    return found


def test_a_store_and_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    (tmp_path / "file:b").touch()
    (tmp_path / "loop:b").symlink_to("loop:b")
    assert stores(b"a:b") == [b"a:b"]
    assert stores(b"a:b/") == [b"a:b/"]
    assert stores(b"a:c") == [b"a", b"c"]
    assert stores(b"\xff:c:d") == [b"\xff", b"c", b"d"]
    assert stores(b"file:b") == [b"file", b"b"]
    assert stores(b"file:b/c") == [b"file", b"b/c"]
    # Nothing can have such a name, so these are several, and opening each of them tells what is wrong with it.
    assert stores(b"loop:b") == [b"loop", b"b"]
    assert stores(b"n" * 200 + b":" + b"m" * 200) == [b"n" * 200, b"m" * 200]
    with pytest.raises(click.BadParameter, match="a store's path is empty"):
        stores(b"a::c")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM, errno.ESTALE])
def test_what_cannot_be_looked_at_is_not_several_stores(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(CfsError) as caught:
        stores(b"place/a:b")
    assert type(caught.value) is (Exhausted if number == errno.ENOMEM else InputError)
    assert str(caught.value) == f"place/a:b: cannot look at: {os.strerror(number)}"
    # Without a colon there is nothing to tell apart.
    assert stores(b"place/a") == [b"place/a"]


@pytest.mark.root
def test_a_place_that_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    (place / "a:b").mkdir(parents=True)
    place.chmod(0)
    with as_nobody(tmp_path), pytest.raises(InputError, match="closed/a:b: cannot look at: Permission denied"):
        stores(bytes(place / "a:b"))
    assert stores(bytes(place / "a:b")) == [bytes(place / "a:b")]


FAILING = """
import errno, os
from cfstools.cli import main
real = os.stat
def stat(path, **options):
    if path == b"a:b":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return real(path, **options)
os.stat = stat
main()
"""


def test_the_command_names_path_and_reason() -> None:
    words = [sys.executable, "-c", FAILING, "cat", "image", "/file", "--store", "a:b"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mkcfs: a:b: cannot look at: Input/output error\n"


def test_places_of_stores(tmp_path: Path) -> None:
    image, objects = tmp_path / "image.cfs", tmp_path / "objects"
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_bytes(b"contents" * 100)
    mkcfs("build", tmp_path / "source", image, "--store", f"file://{objects}")
    assert mkcfs("cat", image, "/f", "--store", f"FILE://localhost{objects}").stdout == b"contents" * 100
    assert mkcfs("store", "stat", "--store", f"file://{objects}").code == 0
    for words in (["verify", image], ["build", tmp_path / "source", "-"], ["store", "fsck"]):
        done = mkcfs(*words, "--store", "ssh://host/x", check=False)
        assert done.code == 2
        assert done.stderr.startswith(b"mkcfs: ssh://host/x: a store of the scheme ssh:// cannot be used here\n")
        assert b"\nhint: " in done.stderr
