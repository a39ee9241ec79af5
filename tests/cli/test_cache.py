"""Where the digest cache is, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cfstools.cli.app import run
from cfstools.cli.session import default_cache
from tests.mkcfs import COMMAND, mkcfs, unmeasured
from tests.store.conftest import as_nobody


@pytest.mark.parametrize(
    ("home", "base", "expected"),
    [
        ("/home/me", None, b"/home/me/.cache/cfstools"),
        ("/home/me", "", b"/home/me/.cache/cfstools"),
        ("/home/me", "/else/where", b"/else/where/cfstools"),
        ("/home/me", "relative", b"/home/me/.cache/cfstools"),
        (None, "/else/where", b"/else/where/cfstools"),
        ("/home/\udcff", None, b"/home/\xff/.cache/cfstools"),
        ("relative", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_the_place_of_the_cache(
    home: str | None, base: str | None, expected: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", base)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_cache() == expected
    # sudo and su may leave variables of another user in place.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_cache() == b"/var/cache/cfstools"


@pytest.fixture
def new_source(tmp_path: Path) -> Path:
    """Two files that are remembered once they are old enough, one that images hold."""
    place = tmp_path / "source"
    place.mkdir()
    for name, size in (("one", 100), ("two", 200), ("small", 10)):
        (place / name).write_bytes(bytes(size))
    return place


@pytest.fixture
def source(new_source: Path) -> Path:
    """The same, old enough."""
    time.sleep(3.1)
    return new_source


def build(source: Path, *words: str | Path, **environment: str) -> tuple[int, str]:
    """Build, and return how many files were known and what was said."""
    image, store = source.with_name("image.cfs"), source.with_name("store")
    command = [*COMMAND, "-v", "build", source, image, "--store", store, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured() | environment)
    return json.loads(done.stdout)["cache_hits"], done.stderr


def test_the_cache_by_option_and_by_variable(source: Path, tmp_path: Path) -> None:
    assert build(source, "--cache-dir", tmp_path / "by/option")[0] == 0
    assert build(source, MKCFS_CACHE_DIR=str(tmp_path / "by/option"))[0] == 2
    assert build(source, "--no-cache", MKCFS_CACHE_DIR=str(tmp_path / "by/option"))[0] == 0
    hits, said = build(source, "--cache-dir", tmp_path / "by/option", MKCFS_CACHE_DIR=str(tmp_path / "variable"))
    assert hits == 2
    assert "2 files known unread" in said
    assert not (tmp_path / "variable").exists()
    assert not (tmp_path / "store/.mkcfs").exists()


@pytest.mark.root
def test_a_user_without_options(
    new_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build", str(new_source), str(tmp_path / "image.cfs"), "--store", str(tmp_path / "store"), "--json"]
    assert run(words) == 0  # so that all is imported, which the user may not read
    shutil.rmtree(tmp_path / "store")
    home = tmp_path / "home"
    home.mkdir()
    for path in (tmp_path, home, new_source, *new_source.iterdir()):
        os.chown(path, 65534, 65534)
    time.sleep(3.1)
    monkeypatch.delenv("MKCFS_CACHE_DIR")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    hits = []
    for _ in range(2):
        capsys.readouterr()
        with as_nobody(tmp_path):
            assert run(words) == 0
        hits.append(json.loads(capsys.readouterr().out)["cache_hits"])
    assert hits == [0, 2]
    assert (home / ".cache").stat().st_mode == 0o40700
    assert (home / ".cache/cfstools").stat().st_uid == 65534


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    words: list[str | Path] = ["build", tmp_path, tmp_path / "image.cfs"]
    done = mkcfs(*words, "--store", tmp_path / "store", "--no-cache", "--cache-dir", tmp_path / "cache", check=False)
    assert (done.code, done.stderr.decode().count("contradict")) == (2, 1)
    done = mkcfs(*words, "--cache-dir", tmp_path / "cache", check=False)
    assert done.code == 2
    assert b"--cache-dir is about objects" in done.stderr
