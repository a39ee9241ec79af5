"""Stores over a network as members of a chain: on a web server and in object storage, as the command takes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.requirements import NEEDS_GO
from tests.servers.nginx import nginx
from tests.servers.s3 import SECRET, versitygw

FILES = {f"dir/{number}": bytes([number]) * (number * 9000 + 100) for number in range(1, 200, 9)}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A directory with an image and its store, ``www/objects``."""
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    mkcfs("build", tmp_path / "source", tmp_path / "image.cfs", "--store", tmp_path / "www/objects")
    return tmp_path


@pytest.fixture(params=["web", pytest.param("s3", marks=NEEDS_GO)])
def place(request: pytest.FixtureRequest, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the same store elsewhere."""
    if request.param == "web":
        with nginx(built / "www", built / "nginx") as base:
            yield f"{base}objects"
        return
    with versitygw(built / "s3") as storage:
        shutil.copytree(built / "www/objects", storage.bucket / "a/objects")
        for name, value in storage.environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/a/objects"


def test_an_image_with_its_objects_elsewhere(built: Path, place: str) -> None:
    image = built / "image.cfs"
    report = json.loads(mkcfs("verify", image, "--store", place, "--json").stdout)
    assert report["ok"]
    assert mkcfs("cat", image, "/dir/10", "--store", place).stdout == FILES["dir/10"]
    mkcfs("extract", image, built / "out", "--store", place)
    assert {name: (built / "out" / name).read_bytes() for name in FILES} == FILES
    assert mkcfs("objects", image, "--missing", "--store", place).stdout == b""


def test_what_was_fetched_is_kept_in_the_first_store(built: Path, place: str) -> None:
    (built / "local").mkdir()
    stores: list[str | Path] = ["--store", built / "local", "--store", place]
    assert mkcfs("cat", built / "image.cfs", "/dir/199", *stores).stdout == FILES["dir/199"]
    kept = [path for path in (built / "local").rglob("*") if path.is_file() and len(path.name) == 62]
    assert len(kept) == 1
    mkcfs("verify", built / "image.cfs", "--store", built / "local", "--store", place)
    shutil.rmtree(built / "www")
    mkcfs("verify", built / "image.cfs", "--store", built / "local")


def test_objects_that_are_wrong_or_missing_elsewhere(built: Path, place: str) -> None:
    elsewhere = built / ("www/objects" if place.startswith("http") else "s3/data/bucket/a/objects")
    first, second, *_ = sorted(path for path in elsewhere.rglob("*") if len(path.name) == 62)
    first.write_bytes(b"wrong" + first.read_bytes()[5:])
    second.unlink()
    done = mkcfs("verify", built / "image.cfs", "--store", place, check=False)
    assert done.code == 3
    assert b"contents are wrong" in done.stdout + done.stderr
    assert b"it is in none of the stores" in done.stdout + done.stderr
    (built / "local").mkdir()
    mkcfs("verify", built / "image.cfs", "--store", built / "local", "--store", place, check=False)
    found = {path.parent.name + path.name for path in (built / "local").rglob("*") if len(path.name) == 62}
    assert len(found) == len(FILES) - 2
    assert first.parent.name + first.name not in found
    missing = mkcfs("objects", built / "image.cfs", "--missing", "--store", place, check=False).stdout
    assert missing.decode().strip().endswith(second.name)


def test_a_store_is_repaired_from_elsewhere(built: Path, place: str) -> None:
    shutil.copytree(built / "www/objects", built / "local")
    damaged = sorted(path for path in (built / "local").rglob("*") if len(path.name) == 62)[:3]
    for path in damaged:
        path.write_bytes(b"!" + path.read_bytes()[1:])
    done = mkcfs("store", "fsck", "--store", built / "local", "--repair", "--from", place)
    assert done.stdout.count(b"replaced from ") == 3 or done.stderr.count(b"replaced from ") == 3
    for path in damaged:
        assert path.read_bytes() == (built / "www/objects" / path.parent.name / path.name).read_bytes()


def test_a_place_that_cannot_be_reached(built: Path) -> None:
    done = mkcfs("cat", built / "image.cfs", "/dir/10", "--store", "http://127.0.0.1:1/objects?key=hidden", check=False)
    assert done.code == 1
    assert done.stderr.endswith(b"/image.cfs: /dir/10: http://127.0.0.1:1: cannot connect: Connection refused\n")
    assert b"hidden" not in done.stderr
    for words in (["build", built / "source", "-"], ["store", "stat"], ["mount", built / "image.cfs", built / "mnt"]):
        done = mkcfs(*words, "--store", "https://user:word@h.example/x?key=hidden", check=False)
        assert done.code == 2
        assert b"cannot be used here" in done.stderr
        assert b"hidden" not in done.stderr
        assert b"word@" not in done.stderr


@NEEDS_GO
def test_wrong_credentials(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with versitygw(built / "s3") as storage:
        for name, value in {**storage.environment, "AWS_SECRET_ACCESS_KEY": "wrong-secret"}.items():
            monkeypatch.setenv(name, value)
        place = "s3://bucket/objects"
        done = mkcfs("cat", built / "image.cfs", "/dir/10", "--store", place, "--debug", check=False)
    assert done.code == 1
    assert b"access denied (SignatureDoesNotMatch" in done.stderr
    assert b"wrong-secret" not in done.stderr
    assert SECRET.encode() not in done.stderr
