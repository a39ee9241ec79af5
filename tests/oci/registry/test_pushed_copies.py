"""Pushed images in other hands: lists of signatures, copies, garbage collection, object storage, builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.oci.registry.conftest import Made, Served
from tests.oci.registry.test_pushing import pull, push
from tests.requirements import NEEDS_GO, go_tool, need_command, need_root
from tests.servers.registries import docker_registry
from tests.servers.s3 import BUCKET, KEY, SECRET, versitygw

DSSE, BUNDLE = "application/vnd.in-toto+json", "application/vnd.dev.sigstore.bundle.v0.3+json"


@NEEDS_GO
@pytest.mark.parametrize("kind", ["plain_registry", "referrers_registry"])
def test_oras_lists_the_signatures(
    kind: str, made: Made, tmp_path: Path, request: pytest.FixtureRequest, fresh: str
) -> None:
    served: Served = request.getfixturevalue(kind)
    oras = go_tool("oras")
    mkcfs("keygen", tmp_path / "k", "--no-passphrase")
    mkcfs("sign", made.images[1], "--key", tmp_path / "k.key")
    place = f"docker://{served.host}/{fresh}/copies/listed:1"
    report = push(made.images[1], made.store, place, "--sign-key", tmp_path / "k.key")
    words = [str(oras), "discover", "--plain-http", "--format", "json", place.removeprefix("docker://")]
    found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    listed = {one["digest"]: one["artifactType"] for one in found["referrers"]}
    assert listed.keys() == set(report["signatures"])
    assert set(listed.values()) <= {DSSE, BUNDLE, "application/vnd.oci.empty.v1+json"}


def _collect_garbage(directory: Path) -> None:
    words = ["docker-registry", "garbage-collect", "--delete-untagged", str(directory / "registry.yml")]
    subprocess.run(words, capture_output=True, check=True)


def test_a_signature_survives_what_keeps_only_tagged_images(made: Made, tmp_path: Path) -> None:
    need_command("skopeo")
    mkcfs("keygen", tmp_path / "k", "--no-passphrase")
    mkcfs("sign", made.images[1], "--key", tmp_path / "k.key")
    with docker_registry(tmp_path / "first") as host:
        place = f"docker://{host}/app:1"
        push(made.images[1], made.store, place)
    _collect_garbage(tmp_path / "first")
    with docker_registry(tmp_path / "first") as host, docker_registry(tmp_path / "second") as other:
        words = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
        elsewhere = f"docker://{other}/copy:1"
        subprocess.run([*words, f"docker://{host}/app:1", elsewhere], check=True, capture_output=True)
        report = pull(elsewhere, tmp_path / "there.cfs", tmp_path / "theirs", "--key", tmp_path / "k.pub")
    assert report["signature"]["state"] == "verified"
    assert (tmp_path / "there.cfs").read_bytes() == made.images[1].read_bytes()


@NEEDS_GO
def test_a_registry_over_object_storage_is_asked_for_few_ranges(made: Made, tmp_path: Path) -> None:
    with versitygw(tmp_path / "s3") as storage:
        settings = {
            "accesskey": KEY,
            "secretkey": SECRET,
            "region": "us-east-1",
            "regionendpoint": storage.endpoint,
            "bucket": BUCKET,
            "secure": False,
            "v4auth": True,
            "encrypt": False,
        }
        with docker_registry(tmp_path / "registry", storage={"s3": settings}) as host:
            place = f"docker://{host}/app:1"
            push(made.images[1], made.store, place)
            report = pull(place, tmp_path / "there.cfs", tmp_path / "theirs")
        log = (tmp_path / "registry/registry.log").read_text(errors="replace")
    assert report["objects_fetched"] == report["objects"]
    # A redirect is remembered: the registry is asked for each blob once, the storage for the ranges.
    assert len(re.findall(r"GET /v2/app/blobs/\S+ HTTP/1.1\" 307", log)) <= 4
    mkcfs("verify", tmp_path / "there.cfs", "--store", tmp_path / "theirs")


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_buildah_takes_it_as_a_base(
    plain_registry: Served, made: Made, compression: str, tmp_path: Path, fresh: str
) -> None:
    need_root()
    need_command("buildah")
    place = f"docker://{plain_registry.host}/{fresh}/copies/base:{compression}"
    for version in (1, 2):
        push(made.images[version], made.store, place, "--compression", compression)
    storage = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    made_from = ["buildah", *storage, "from", "--quiet", "--tls-verify=false", place]
    name = subprocess.run(made_from, capture_output=True, text=True, check=True).stdout.strip()
    mount = subprocess.run(["buildah", *storage, "mount", name], capture_output=True, text=True, check=True)
    root = Path(mount.stdout.strip())
    try:
        assert (root / "etc/version").read_text() == "2"
        assert not os.path.lexists(root / "only-in-1")
        assert (root / "usr/bin/alias").stat().st_ino == (root / "usr/bin/program1").stat().st_ino
    finally:
        subprocess.run(["buildah", *storage, "rm", "--all"], capture_output=True, check=True)
