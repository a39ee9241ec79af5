"""Layers that were read once are not fetched again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import OciError
from cfstools.oci.layer_record import unpack
from tests.mkcfs import COMMAND, mkcfs
from tests.oci import making
from tests.oci.making import link, member, tar
from tests.oci.registry.conftest import some_layers
from tests.processes import sleeps, until
from tests.servers.faulty import Asked, FaultyServer, Part, Wait, head
from tests.servers.images import OneImage

BASE, MIDDLE, TOP = some_layers()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("MKCFS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", "/dev/null")
    return tmp_path / "cache"


class Serving:
    """A scripted registry whose image a test may exchange; ``fetched`` are the layers that were asked for."""

    def __init__(self, *layers: bytes) -> None:
        self.show(*layers)

    def show(self, *layers: bytes) -> None:
        self.files = making.image(layers, "+gzip")
        self.one = OneImage(self.files)
        self.fetched: list[int] = []

    def __call__(self, asked: Asked) -> Iterable[Part]:
        digest = asked.target.rpartition("/")[2]
        if digest in self.one.layers:
            self.fetched.append(self.one.layers.index(digest))
        return self.one(asked)


def build(server: FaultyServer, place: Path, *words: str) -> dict[str, Any]:
    reference = f"docker://127.0.0.1:{server.port}/app:1"
    command = [
        "build",
        reference,
        str(place / "image.cfs"),
        "--store",
        str(place / "store"),
        "--plain-http",
        "--json",
        *words,
    ]
    report = json.loads(mkcfs(*command).stdout)
    assert isinstance(report, dict)
    return report


def remembered(report: dict[str, Any]) -> list[bool]:
    return [layer["remembered"] for layer in report["source"]["layers"]]


def without_memory(report: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on whether a layer was fetched."""
    layers = [{**layer, "remembered": None} for layer in report["source"]["layers"]]
    return {"digest": report["digest"], "source": {**report["source"], "layers": layers}}


def test_a_second_build_fetches_nothing(tmp_path: Path) -> None:
    serving = Serving(BASE, MIDDLE, TOP)
    with FaultyServer(serving) as server:
        first = build(server, tmp_path)
        assert sorted(serving.fetched) == [0, 1, 2]
        serving.fetched.clear()
        image = (tmp_path / "image.cfs").read_bytes()
        second = build(server, tmp_path)
        assert serving.fetched == []
        assert (tmp_path / "image.cfs").read_bytes() == image
        assert remembered(first) == [False] * 3
        assert remembered(second) == [True] * 3
        assert without_memory(second) == without_memory(first)
        assert mkcfs("verify", tmp_path / "image.cfs", "--store", tmp_path / "store").code == 0


def test_an_image_on_the_same_base_fetches_its_own_layers(tmp_path: Path) -> None:
    serving = Serving(BASE, MIDDLE)
    with FaultyServer(serving) as server:
        build(server, tmp_path)
        serving.show(BASE, MIDDLE, TOP)
        report = build(server, tmp_path)
        assert serving.fetched == [2]
        assert remembered(report) == [True, True, False]
        build(server, tmp_path / "fresh", "--no-cache")
        fresh = (tmp_path / "fresh" / "image.cfs").read_bytes()
        assert (tmp_path / "image.cfs").read_bytes() == fresh


def test_what_a_layer_may_hold_is_remembered_as_it_is(tmp_path: Path) -> None:
    """Every kind of member, attributes, links to later entries, whiteouts, odd paths and their warnings."""
    pax = {"SCHILY.xattr.user.a": "b", "SCHILY.xattr.security.capability": "c" * 20}
    odd = tar(
        member("usr"),
        member("usr/x/../y", b"through dots"),
        member("usr/attributes", b"a" * 100, pax_headers=pax),
        member("usr/again", b"a" * 100, pax_headers=pax),
        link("usr/early", "usr/late", hard=True),
        member("usr/late", b"late" * 30, uid=5, gid=7, mtime=-3, mode=0o4755),
        member("usr/fifo", None, type=tarfile.FIFOTYPE, mode=0o600),
        member("usr/null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("usr/disk", None, type=tarfile.BLKTYPE, devmajor=300, devminor=70000),
        member("usr/empty", b""),
        member("usr/.wh.gone", b""),
        member("opt/.wh..wh..opq", b""),
        member("no/parent", b"p" * 65),
        form=tarfile.PAX_FORMAT,
    )
    serving = Serving(BASE, odd)
    with FaultyServer(serving) as server:
        for words in (["--oci-mapping", "plain"], []):
            first = build(server, tmp_path, *words)
            image = (tmp_path / "image.cfs").read_bytes()
            second = build(server, tmp_path, *words)
            assert remembered(second) == [True, True]
            assert (tmp_path / "image.cfs").read_bytes() == image
            assert without_memory(second) == without_memory(first)
            assert any("resolved inside the root" in one["text"] for one in second["source"]["warnings"])
        strict = mkcfs(
            "build",
            f"docker://127.0.0.1:{server.port}/app:1",
            tmp_path / "image.cfs",
            "--store",
            tmp_path / "store",
            "--plain-http",
            "--oci-strict",
            check=False,
        )
        assert strict.code == 1
        assert b"was resolved inside the root" in strict.stderr


def test_a_memory_without_its_objects_counts_for_nothing(tmp_path: Path) -> None:
    serving = Serving(BASE, MIDDLE, TOP)
    with FaultyServer(serving) as server:
        first = build(server, tmp_path)
        (tmp_path / "image.cfs").unlink()
        mkcfs("store", "gc", "--store", tmp_path / "store", "--forget-missing", "--keep-nothing", "--grace", "0s")
        serving.fetched.clear()
        second = build(server, tmp_path)
        assert sorted(serving.fetched) == [0, 1, 2]
        assert second["digest"] == first["digest"]
        assert remembered(build(server, tmp_path, "--oci-xattrs", "all")) == [False] * 3
        assert remembered(build(server, tmp_path, "--hash", "sha512")) == [False] * 3
        # Another store does not have the objects; one more that has them does.
        assert remembered(build(server, tmp_path / "other")) == [False] * 3
        words = ["--store", str(tmp_path / "store")]
        assert remembered(build(server, tmp_path / "third", *words)) == [True] * 3


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "grow":
        path.write_bytes(data + b"x")
    elif how == "writable":
        path.chmod(0o666)
    elif how == "linked":
        os.link(path, path.parent.parent / "name")
    else:
        path.unlink()
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["flip", "cut", "grow", "writable", "linked", "symlink"])
def test_what_is_damaged_or_planted_is_not_believed(how: str, tmp_path: Path, own_cache: Path) -> None:
    serving = Serving(BASE)
    with FaultyServer(serving) as server:
        first = build(server, tmp_path)
        (file,) = own_cache.glob("layer-*")
        assert file.stat().st_mode & 0o777 == 0o600
        damage(file, how)
        second = build(server, tmp_path)
        assert remembered(second) == [False]
        assert second["digest"] == first["digest"]
        if how != "linked":
            assert remembered(build(server, tmp_path)) == [True]


def test_a_directory_of_others_is_not_used(tmp_path: Path, own_cache: Path) -> None:
    own_cache.mkdir(mode=0o777)
    own_cache.chmod(0o777)
    serving = Serving(BASE)
    with FaultyServer(serving) as server:
        assert remembered(build(server, tmp_path)) == [False]
        assert remembered(build(server, tmp_path)) == [False]
    assert not list(own_cache.iterdir())


def test_a_layer_that_turns_out_wrong_is_neither_published_nor_remembered(tmp_path: Path, own_cache: Path) -> None:
    serving = Serving(BASE, MIDDLE)
    digest = serving.one.layers[1]
    data = bytearray(serving.one.blobs[digest])
    data[-1] ^= 1  # in the length that gzip states
    serving.one.blobs[digest] = bytes(data)
    with FaultyServer(serving) as server:
        reference = f"docker://127.0.0.1:{server.port}/app:1"
        command = ["build", reference, str(tmp_path / "image.cfs"), "--store", str(tmp_path / "store"), "--plain-http"]
        for _ in range(2):
            done = mkcfs(*command, check=False)
            assert done.code == 3
            assert not (tmp_path / "image.cfs").exists()
        objects = {path.stat().st_size for path in (tmp_path / "store").glob("??/*")}
        assert 300_000 not in objects  # that of the second layer
        assert len(list(own_cache.glob("layer-*"))) <= 1


def test_after_a_kill_only_the_rest_is_fetched(tmp_path: Path) -> None:
    serving = Serving(BASE, MIDDLE, TOP)
    blocked = serving.one.layers[2]

    def override(asked: Asked) -> Iterable[Part] | None:
        if asked.target.endswith(blocked):
            return [head(200, length=len(serving.one.blobs[blocked])), Wait(600)]
        return None

    serving.one.override = override
    cache = tmp_path / "cache"
    with FaultyServer(serving) as server:
        reference = f"docker://127.0.0.1:{server.port}/app:1"
        words = ["build", reference, str(tmp_path / "image.cfs"), "--store", str(tmp_path / "store"), "--plain-http"]
        process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.DEVNULL)
        try:
            until(lambda: len(list(cache.glob("layer-*"))) == 2)
        finally:
            process.kill()
            process.wait()
        assert len(list(cache.glob("layer-*"))) == 2
        assert not (tmp_path / "image.cfs").exists()
        serving.one.override = lambda _asked: None
        serving.fetched.clear()
        report = build(server, tmp_path)
        assert serving.fetched == [2]
        assert remembered(report) == [True, True, False]
        mkcfs("verify", tmp_path / "image.cfs", "--store", tmp_path / "store")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(number: int, tmp_path: Path) -> None:
    """Although threads wait for a server that says nothing any more."""
    serving = Serving(BASE, MIDDLE, TOP)

    def hang(asked: Asked) -> Iterable[Part] | None:
        digest = asked.target.rpartition("/")[2]
        if digest not in serving.one.layers:
            return None
        return [head(200, length=len(serving.one.blobs[digest])), serving.one.blobs[digest][:10], Wait(600)]

    serving.one.override = hang
    with FaultyServer(serving) as server:
        words = ["build", f"docker://127.0.0.1:{server.port}/app:1", str(tmp_path / "image.cfs"), "--plain-http"]
        command = [*COMMAND, *words, "--store", str(tmp_path / "store")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            until(lambda: len(serving.fetched) == 3 and sleeps(process.pid))
            process.send_signal(number)
            # Sooner than the patience with the server ends, which is 30 seconds for each of several attempts.
            _, said = process.communicate(timeout=25)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, said) == (130, b"mkcfs: interrupted\n")
    assert os.listdir(tmp_path) == ["store"] or sorted(os.listdir(tmp_path)) == ["cache", "store"]


def test_nothing_is_remembered_where_nothing_is_synced(tmp_path: Path, own_cache: Path) -> None:
    with FaultyServer(Serving(BASE)) as server:
        build(server, tmp_path, "--sync", "none")
    assert not list(own_cache.glob("layer-*"))


def test_records_that_are_none() -> None:
    whole = zlib.compress(b"\x02\0\0\0{}" + b"x" * 60)
    for data in (b"", b"x", zlib.compress(b""), zlib.compress(b"\xff\xff\xff\xff"), whole, whole[:-1], whole + b"x"):
        with pytest.raises(OciError):
            unpack(data)
