"""A path that is refused because of a symbolic link: which one, where it leads, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree, its image and its store, and links of all kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_bytes(b"x" * 5000)
    mkcfs("build", "src", "image.cfs", "--store", "store")
    for name, target in {
        "nowhere": "missing/\x1b[1m",
        "loop": "loop",
        "to-file": "src/file",
        "to-dir": "src",
        "to-store": "store",
        "deep": "to-dir",
    }.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


NOWHERE = r"nowhere is a symbolic link to missing/\x1b[1m, where nothing is: mend it, or name another path"
LOOP = "loop is a symbolic link that leads back to itself: mend it, or name another path"
TO_FILE = "to-file is a symbolic link to src/file, which is no directory"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["build", "nowhere", "new.cfs"], NOWHERE),
        (["build", "loop", "new.cfs"], LOOP),
        (["build", "to-dir", "new.cfs"], "add a trailing slash to read the directory it points to"),
        (["build", "deep", "new.cfs"], "add a trailing slash to read the directory it points to"),
        (["build", "loop/x", "new.cfs"], LOOP),
        (["build", "src", "new.cfs", "--store", "nowhere"], NOWHERE),
        (["build", "src", "new.cfs", "--store", "loop"], LOOP),
        (["build", "src", "new.cfs", "--store", "to-file"], TO_FILE),
        (["build", "src", "new.cfs", "--store", "nowhere/store"], NOWHERE),
        (["build", "src", "loop"], LOOP),
        (["build", "src", "nowhere/new.cfs"], NOWHERE),
        (["build", "oci:nowhere", "new.cfs"], NOWHERE),
        (["inspect", "nowhere"], NOWHERE),
        (["verify", "loop"], LOOP),
        (["verify", "image.cfs", "--store", "to-file"], TO_FILE),
        (["diff", "image.cfs", "nowhere"], NOWHERE),
        (["digest", "nowhere"], NOWHERE),
        (["extract", "image.cfs", "loop", "--store", "store"], LOOP),
        (["store", "stat", "--store", "nowhere"], NOWHERE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("place")
def test_a_link_that_leads_nowhere(words: list[str], hint: str) -> None:
    done = mkcfs(*words, check=False)
    assert done.code == 1
    lines = done.stderr.decode().splitlines()
    assert f"hint: {hint}" in lines
    assert len([line for line in lines if line.startswith("mkcfs: ")]) == 1
    assert "\x1b" not in done.stderr.decode()
    assert not os.path.lexists("new.cfs")


@pytest.mark.parametrize(
    "words",
    [
        ["build", "to-dir/", "new.cfs", "--store", "to-store"],
        ["build", "deep/", "new.cfs"],
        ["extract", "image.cfs", "out", "--store", "to-store"],
        ["diff", "image.cfs", "to-dir/"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("place")
def test_a_link_that_may_be_followed(words: list[str]) -> None:
    assert mkcfs(*words).code == 0


def test_a_directory_of_a_store_that_is_a_link(place: Path) -> None:
    (prefix,) = (place / "store").glob("??")
    prefix.rename(place / "moved")
    prefix.symlink_to("../moved")
    done = mkcfs("build", "src", "new.cfs", "--store", "store", "--no-cache", check=False)
    assert done.code == 1
    hint = f"store/{prefix.name} is a symbolic link to ../moved, which is not followed here: put there what it leads to"
    assert f"hint: {hint}" in done.stderr.decode().splitlines()


def test_an_object_that_is_a_link(place: Path) -> None:
    (path,) = (place / "store").glob("??/*")
    path.rename(place / "moved")
    path.symlink_to("../../moved")
    done = mkcfs("extract", "image.cfs", "out", "--store", "store", check=False)
    assert done.code == 1
    assert f"{path.relative_to(place)}: not a regular file" in done.stderr.decode()


@pytest.mark.usefixtures("place")
def test_what_is_missing_without_a_link() -> None:
    done = mkcfs("inspect", "missing", check=False)
    assert "hint" not in done.stderr.decode()
    for words in (["inspect", "to-dir/missing"], ["inspect", "to-dir/file/x"], ["build", "to-dir/file/x", "new.cfs"]):
        done = mkcfs(*words, check=False)
        assert done.code == 1
        assert "hint" not in done.stderr.decode()
