"""Options of ``build`` about objects, and options that mean nothing for the source at hand."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from cfstools.linux import verity as kernel_verity
from tests.cli.test_app import failing, small_tree
from tests.mkcfs import mkcfs
from tests.oci import making

DUMP = "/ 4096 40755 2 0 0 0 0.0 - - -\n/f 2 100644 1 0 0 0 0.0 - hi -\n"


def objects_of(store: Path) -> list[Path]:
    return [path for path in store.glob("??/*") if path.is_file()]


def has_verity(place: Path) -> bool:
    """Whether the file system of *place* takes fs-verity."""
    trial = place / "trial"
    trial.write_bytes(b"x")
    fd = os.open(trial, os.O_RDONLY)
    try:
        kernel_verity.enable(fd, 1, 4096)
    except OSError:
        return False
    finally:
        os.close(fd)
        trial.unlink()
    return True


def measured(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return kernel_verity.measure(fd) is not None
    finally:
        os.close(fd)


def test_verity_is_required(tmp_path: Path) -> None:
    root, image, store = small_tree(tmp_path), tmp_path / "image.cfs", tmp_path / "store"
    words: list[str | Path] = ["build", root, image, "--store", store, "--verity", "require"]
    if has_verity(tmp_path):
        mkcfs(*words)
        assert [measured(path) for path in objects_of(store)] == [True]
        return
    said = failing(*words, code=1)
    assert said.startswith(f"mkcfs: {store}: cannot turn on fs-verity: ")
    assert not image.exists()
    assert objects_of(store) == []


@pytest.mark.parametrize("word", ["auto", "off"])
def test_verity_where_it_can_be_or_not_at_all(word: str, tmp_path: Path) -> None:
    root, image, store = small_tree(tmp_path), tmp_path / "image.cfs", tmp_path / "store"
    done = mkcfs("build", root, image, "--store", store, "--verity", word)
    assert done.stderr == b""
    assert [measured(path) for path in objects_of(store)] == [word == "auto" and has_verity(tmp_path)]


@pytest.mark.parametrize(("words", "mode"), [([], 0o644), (["--object-mode", "0444"], 0o444)])
def test_mode_of_objects(words: list[str], mode: int, tmp_path: Path) -> None:
    root, store = small_tree(tmp_path), tmp_path / "store"
    mkcfs("build", root, tmp_path / "image.cfs", "--store", store, *words)
    assert [stat.S_IMODE(path.stat().st_mode) for path in objects_of(store)] == [mode]


@pytest.mark.parametrize("mode", ["8", "rw", "1777", "0", "0044", "-1", "0o644"])
def test_modes_that_objects_cannot_have(mode: str, tmp_path: Path) -> None:
    root, store = small_tree(tmp_path), tmp_path / "store"
    done = mkcfs("build", root, tmp_path / "image.cfs", "--store", store, f"--object-mode={mode}", check=False)
    assert done.code == 2
    assert b"--object-mode" in done.stderr
    assert not store.exists()


@pytest.mark.parametrize("words", [["--verity", "auto"], ["--object-mode", "0644"]])
def test_how_objects_are_stored_needs_a_store(words: list[str], tmp_path: Path) -> None:
    said = failing("build", small_tree(tmp_path), tmp_path / "image.cfs", *words, code=2)
    assert words[0] in said
    assert "--store" in said


CONTAINER_WORDS = [
    ["--platform", "linux/amd64"],
    ["--layer", "top.tar"],
    ["--oci-mapping", "composefs"],  # the default, but asked for
    ["--oci-xattrs", "all"],
    ["--oci-strict"],
    ["--allow-duplicates"],
    ["--max-unpacked", "1000"],
    ["--max-ratio", "10"],
]


@pytest.mark.parametrize("words", CONTAINER_WORDS, ids=lambda words: words[0])
def test_container_options_on_a_directory(words: list[str], tmp_path: Path) -> None:
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    said = failing("build", small_tree(tmp_path), image, "--store", store, *words, code=2)
    assert f"{words[0]} is only for a container image, and the source is a directory" in said
    assert not image.exists()
    assert not store.exists()


def test_container_options_on_other_sources(tmp_path: Path) -> None:
    (tmp_path / "tree.dump").write_text(DUMP)
    image = tmp_path / "image.cfs"
    said = failing("build", "--from-file", tmp_path / "tree.dump", image, "--oci-strict", code=2)
    assert "--oci-strict is only for a container image, and the source is a dump text" in said
    mkcfs("build", tmp_path / "tree.dump", image)
    said = failing("build", image, tmp_path / "again.cfs", "--oci-strict", "--max-ratio", "5", code=2)
    assert "--oci-strict, --max-ratio is only for" in said


def test_strictness_is_for_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, image = small_tree(tmp_path), tmp_path / "image.cfs"
    assert "and the source is a directory" in failing("build", root, image, "--strict", code=2)
    (tmp_path / "layer.tar").write_bytes(making.hello())
    assert "a container image" in failing("build", tmp_path / "layer.tar", image, "--strict", code=2)
    (tmp_path / "tree.dump").write_text(DUMP)
    mkcfs("build", tmp_path / "tree.dump", image, "--strict")
    again = tmp_path / "again.cfs"
    assert "--strict is only for" in failing("build", image, again, "--strict", code=2)
    assert not again.exists()
    monkeypatch.setenv("CFS_PARSE_STRICT", "1")
    mkcfs("build", root, image)
    mkcfs("build", image, again)


def test_the_first_store_is_made_when_the_others_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = failing("build", root, "image.cfs", "--store", "co:lon/st", code=1)
    assert "lon/st" in said
    assert sorted(os.listdir()) == ["rootfs"]
    mkcfs("build", root, "image.cfs", "--store", "same:same")
    assert len(objects_of(tmp_path / "same")) == 1


def test_inodes_are_counted_as_inspect_does(tmp_path: Path) -> None:
    root, image = small_tree(tmp_path), tmp_path / "image.cfs"
    (root / "ab").mkdir()  # takes the place of an automatic whiteout
    for version in ("0", "1"):
        built = json.loads(mkcfs("build", root, image, "--json", "--format-version", version).stdout)
        told = json.loads(mkcfs("inspect", "--json", image).stdout)
        assert built["inodes"] == sum(told["contents"]["inodes"].values()) == 5


def test_targets_inside_the_source_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "way").symlink_to(root)
    said = mkcfs("build", "rootfs", "way/in.cfs", "--store", "rootfs/st").stderr.decode().splitlines()
    assert [line.split(" lies inside the source")[0] for line in said] == [
        "mkcfs: warning: way/in.cfs",
        "mkcfs: warning: rootfs/st",
    ]
    done = mkcfs(
        "build", "rootfs", "rootfs/in.cfs", "--store", "rootfs/st", "--exclude", "/in.cfs", "--exclude", "/st/"
    )
    assert done.stderr == b""
    assert mkcfs("build", "rootfs", "rootfs-not.cfs", "--store", "rootfs.st").stderr == b""
    assert root.is_dir()


def test_versions(tmp_path: Path) -> None:
    root, image = small_tree(tmp_path), tmp_path / "image.cfs"
    done = mkcfs("build", root, image, "--format-version", "2", check=False)
    assert done.code == 2
    assert b"--format-version" in done.stderr
    crossed = mkcfs("build", root, "--print-digest-only", "--min-version", "1", "--max-version", "0").stdout
    assert crossed == mkcfs("build", root, "--print-digest-only", "--format-version", "1").stdout
