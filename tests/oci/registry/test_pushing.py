"""``push`` and ``pull`` over real registries, and what other tools make of a pushed image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.mkcfs import mkcfs
from tests.oci.registry.conftest import Made, Served
from tests.oci.registry.test_building import access, objects_of
from tests.requirements import NEEDS_GO, go_tool, need_command, need_root


def push(image: Path, store: Path, place: str, *words: str | Path) -> dict[str, Any]:
    done = mkcfs("push", image, "--store", store, place, "--json", *words)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def pull(place: str, image: Path, store: Path, *words: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(mkcfs("pull", place, image, "--store", store, "--json", *words).stdout)
    return report


def test_what_is_pushed_is_pulled(each_registry: Served, made: Made, tmp_path: Path, fresh: str) -> None:
    words = access(each_registry, tmp_path)
    place = f"docker://{each_registry.host}/{fresh}/pushed/app:1"
    first = push(made.images[1], made.store, place, *words)
    assert not first["delta"]
    there, store = tmp_path / "there.cfs", tmp_path / "theirs"
    report = pull(place, there, store, *words)
    assert there.read_bytes() == made.images[1].read_bytes()
    assert (report["objects_fetched"], report["requests"]) == (report["objects"], 1)
    mkcfs("verify", there, "--store", store)
    assert pull(place, there, store, *words)["objects_fetched"] == 0
    again = push(made.images[1], made.store, place, *words)
    assert (again["bytes_sent"], again["manifest"]) == (0, first["manifest"])
    # The next version sends what changed, and a holder of the first fetches as little.
    second = push(made.images[2], made.store, place, *words)
    assert (second["delta"], second["layers"], second["no_delta"]) == (True, 2, None)
    assert second["layer_size"] < first["layer_size"] / 5
    planned = json.loads(mkcfs("pull", place, "--dry-run", "--store", store, "--json", *words).stdout)
    report = pull(place, there, store, *words)
    assert there.read_bytes() == made.images[2].read_bytes()
    assert report["objects_fetched"] == planned["objects_fetched"] == 2
    assert report["requests"] == planned["requests"] == 1
    mkcfs("verify", there, "--store", store)


@NEEDS_GO
def test_what_a_mirror_has_is_pushed_all_the_same(
    plain_registry: Served,
    referrers_registry: Served,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fresh: str,
) -> None:
    there, mirror = f"{plain_registry.host}/{fresh}/behind/app:1", f"{referrers_registry.host}/{fresh}/before"
    first = push(made.images[1], made.store, f"docker://{mirror}/app:1")
    configuration = tmp_path / "registries.conf"
    configuration.write_text(
        f'[[registry]]\nprefix = "reg.example/behind"\nlocation = "{there.removesuffix("/app:1")}"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(configuration))
    for sent in (first["size"], 0):
        report = push(made.images[1], made.store, "docker://reg.example/behind/app:1")
        assert (report["manifest"], report["bytes_sent"]) == (first["manifest"], sent)
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF")
    pulled = pull(f"docker://{there}", tmp_path / "there.cfs", tmp_path / "theirs")
    assert pulled["objects_fetched"] == pulled["objects"] > 0


def test_signatures_travel(plain_registry: Served, made: Made, tmp_path: Path, fresh: str) -> None:
    for name in ("ours", "other"):
        mkcfs("keygen", tmp_path / name, "--no-passphrase")
    key, other = tmp_path / "ours.pub", tmp_path / "other.pub"
    mkcfs("sign", made.images[1], "--key", tmp_path / "ours.key")
    place = f"docker://{plain_registry.host}/{fresh}/pushed/signed:1"
    assert len(push(made.images[1], made.store, place)["signatures"]) == 1
    there, store = tmp_path / "there.cfs", tmp_path / "theirs"
    done = mkcfs("pull", place, there, "--store", store, "--key", other, check=False)
    assert done.code == 3
    assert not there.exists()
    assert not objects_of(store)
    report = pull(place, there, store, "--key", key)
    assert report["signature"]["state"] == "verified"
    mkcfs("verify", there, "--key", key, "--store", store)


def test_signed_layers_are_only_those_signed_before(
    plain_registry: Served, made: Made, tmp_path: Path, fresh: str
) -> None:
    mkcfs("keygen", tmp_path / "k", "--no-passphrase")
    place = f"docker://{plain_registry.host}/{fresh}/pushed/layers:1"
    push(made.images[1], made.store, place)
    signed = push(made.images[2], made.store, place, "--sign-key", tmp_path / "k.key")
    assert not signed["delta"]
    assert "was not signed with one of the keys" in signed["no_delta"]
    again = push(made.images[1], made.store, place, "--sign-key", tmp_path / "k.key")
    assert again["delta"]
    # The image itself carries no signature: the one beside its manifest serves.
    report = pull(place, tmp_path / "there.cfs", tmp_path / "theirs", "--key", tmp_path / "k.pub")
    assert report["signature"]["state"] == "verified"


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_copy_builds_the_same_image(
    plain_registry: Served, made: Made, compression: str, tmp_path: Path, fresh: str
) -> None:
    need_command("skopeo")
    place = f"docker://{plain_registry.host}/{fresh}/pushed/copied:{compression}"
    words = ["--compression", compression]
    push(made.images[1], made.store, place, *words)
    assert push(made.images[2], made.store, place, *words)["delta"]
    copied = f"oci:{tmp_path / 'copied'}:app"
    subprocess.run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", place, copied], check=True)
    digest = mkcfs("build", copied, "--print-digest-only", "--oci-mapping", "plain", "--max-version", "0").stdout
    assert digest.decode().strip() == json.loads(mkcfs("inspect", made.images[2], "--json").stdout)["digest"]
    there = tmp_path / "there.cfs"
    pull(copied, there, tmp_path / "theirs")
    assert there.read_bytes() == made.images[2].read_bytes()


def _tree_of(root: Path, *, times: bool = True) -> dict[str, tuple[Any, ...]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (
            status.st_mode,
            status.st_uid,
            status.st_mtime_ns if times else 0,
            content,
        )
    return found


def test_umoci_unpacks_it(made: Made, tmp_path: Path) -> None:
    need_root()
    need_command("umoci")
    place = f"oci:{tmp_path / 'layout'}:app"
    for version in (1, 2):
        push(made.images[version], made.store, place, "--compression", "gzip")
    words: list[str | Path] = ["umoci", "raw", "unpack", "--image", f"{tmp_path / 'layout'}:app", tmp_path / "unpacked"]
    subprocess.run(words, check=True, capture_output=True)
    assert _tree_of(tmp_path / "unpacked") == _tree_of(tmp_path / "tree2")


@NEEDS_GO
def test_crane_finds_it_valid(plain_registry: Served, made: Made, fresh: str) -> None:
    place = f"docker://{plain_registry.host}/{fresh}/pushed/crane:1"
    for version in (1, 2):
        push(made.images[version], made.store, place, "--compression", "gzip")
    name = place.removeprefix("docker://")
    subprocess.run([go_tool("crane"), "validate", "--remote", name], check=True, capture_output=True)


_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{root}/graph"
runroot = "{root}/run"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""


def test_podman_pulls_it_partially(plain_registry: Served, made: Made, tmp_path: Path, fresh: str) -> None:
    need_root()
    need_command("podman")
    place = f"docker://{plain_registry.host}/{fresh}/pushed/podman:1"
    configuration = tmp_path / "storage.conf"
    configuration.write_text(_STORAGE.format(root=tmp_path), encoding="utf-8")
    environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(configuration)}
    push(made.images[1], made.store, place)
    words = ["podman", "--log-level", "debug", "pull", "--tls-verify=false", place]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Retrieved partial blob" in done.stderr
        words = ["podman", "image", "mount", place.removeprefix("docker://")]
        mounted = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        try:
            # This podman sets no times when it pulls partially.
            assert _tree_of(Path(mounted), times=False) == _tree_of(tmp_path / "tree1", times=False)
        finally:
            subprocess.run(["podman", "image", "unmount", "--all"], env=environment, capture_output=True, check=True)
    finally:
        # podman leaves its own mount of the storage behind.
        subprocess.run(["umount", tmp_path / "graph/overlay"], capture_output=True, check=False)
        shutil.rmtree(tmp_path / "graph", ignore_errors=True)


def test_other_images_are_not_pulled(plain_registry: Served, layout: Path, tmp_path: Path, fresh: str) -> None:
    done = mkcfs("pull", f"oci:{layout}", tmp_path / "there.cfs", "--store", tmp_path / "theirs", check=False)
    assert done.code == 1
    assert b"was not pushed by mkcfs" in done.stderr
    assert b"hint: `mkcfs build` makes an image of it" in done.stderr
    place = f"docker://{plain_registry.host}/{fresh}/pushed/nothing"
    done = mkcfs("pull", place, tmp_path / "there.cfs", "--store", tmp_path / "theirs", check=False)
    assert done.code == 1
    assert b"no such image" in done.stderr


def test_an_image_without_its_objects_is_not_pushed(made: Made, tmp_path: Path) -> None:
    victim = next(path for path in sorted(made.store.rglob("*")) if path.is_file() and not path.name.startswith("."))
    place = f"oci:{tmp_path / 'layout'}:app"
    data = bytearray(victim.read_bytes())
    data[0] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    done = mkcfs("push", made.images[1], "--store", made.store, place, check=False)
    assert done.code == 3, done.stderr
    victim.unlink()
    done = mkcfs("push", made.images[1], "--store", made.store, place, check=False)
    assert done.code == 1
    assert b"1 object of 6" in done.stderr
    assert not (tmp_path / "layout/index.json").exists()


@pytest.mark.parametrize("target", ["repository", "layout"])
def test_a_base_in_another_place_is_copied(
    target: str, plain_registry: Served, made: Made, tmp_path: Path, fresh: str
) -> None:
    first = f"docker://{plain_registry.host}/{fresh}/pushed/base:1"
    place = f"docker://{plain_registry.host}/{fresh}/pushed/derived-{target}:1"
    if target == "layout":
        place = f"oci:{tmp_path / 'layout'}:app"
    push(made.images[1], made.store, first)
    report = push(made.images[2], made.store, place, "--base", first)
    assert (report["delta"], report["layers"]) == (True, 2)
    assert report["bytes_sent"] > report["layer_size"]
    pull(place, tmp_path / "there.cfs", tmp_path / "theirs")
    mkcfs("verify", tmp_path / "there.cfs", "--store", tmp_path / "theirs")
    assert (tmp_path / "there.cfs").read_bytes() == made.images[2].read_bytes()


def test_a_base_with_a_wrong_layer_is_not_copied(made: Made, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    push(made.images[1], made.store, f"oci:{layout}:app")
    layer = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(layer.read_bytes())
    data[100] ^= 1
    layer.write_bytes(data)
    place = f"oci:{tmp_path / 'other'}:app"
    base = ("--base", f"oci:{layout}:app")
    done = mkcfs("push", made.images[2], "--store", made.store, place, *base, check=False)
    assert done.code == 3, done.stderr
    assert not (tmp_path / "other/index.json").exists()
    assert not (tmp_path / "other/blobs/sha256" / layer.name).exists()
