"""Blobs, manifests and referrers put into real registries."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import AccessDenied, CheckFailed, NetworkError, OciError
from cfstools.oci.descriptor import Digest
from cfstools.oci.registry.reference import RegistryOptions, parse_image_reference
from cfstools.oci.registry.referrers import attach, referrers, tag_of
from cfstools.oci.registry.remote import Registries
from cfstools.oci.registry.repository import MANIFEST_TYPES, ManifestDocument
from cfstools.oci.registry.uploads import Blob, Uploader
from cfstools.transport.base import BytesBody
from cfstools.transport.open import NetworkOptions
from tests.oci.making import CONFIG, LAYER, member, tar
from tests.oci.registry.conftest import Served, auth_file
from tests.requirements import NEEDS_GO, go_tool

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


def digest(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def blob(data: bytes, algorithm: str = "sha256") -> Blob:
    return Blob(digest(data, algorithm), BytesBody(data))


def described(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest(data)), "size": len(data)}


def document(body: dict[str, Any], media_type: str = MANIFEST_TYPES[1]) -> ManifestDocument:
    data = json.dumps({"schemaVersion": 2, "mediaType": media_type, **body}, separators=(",", ":")).encode()
    return ManifestDocument(media_type, digest(data), data)


def registries(served: Served, tmp_path: Path) -> Registries:
    options = RegistryOptions()
    if served.authority is not None:
        options = options._replace(network=NetworkOptions(authorities=(bytes(served.authority),)))
    if served.has_password:
        options = options._replace(auth_files=(bytes(auth_file(tmp_path / "auth.json", served.host)),))
    return Registries(options)


def uploader(opened: Registries, served: Served, name: str, **words: Any) -> Uploader:
    reference = parse_image_reference(f"docker://{served.host}/{name}")
    return Uploader(opened.writable(reference, mount_from=words.get("mount_from")), **words)


def push_image(sender: Uploader, tag: str, *layers: bytes) -> ManifestDocument:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(digest(layer)) for layer in layers]},
        }
    ).encode()
    for data in (config, *layers):
        sender.blob(blob(data))
    made = document({"config": described(config, CONFIG), "layers": [described(layer, LAYER) for layer in layers]})
    sender.manifest(tag, made)
    return made


def push_artifact(
    sender: Uploader, subject: ManifestDocument, kind: str, content: bytes = b"signed"
) -> ManifestDocument:
    for data in (EMPTY, content):
        sender.blob(blob(data))
    made = document(
        {
            "artifactType": kind,
            "config": described(EMPTY, EMPTY_TYPE),
            "layers": [described(content, "application/octet-stream")],
            "subject": described(subject.data, subject.media_type),
            "annotations": {"made": "here"},
        }
    )
    attach(sender, subject.digest, made)
    return made


def a_layer() -> bytes:
    return tar(member("usr"), member("usr/random", os.urandom(50_000)))


def test_an_image_is_pushed_and_read_back(each_registry: Served, tmp_path: Path) -> None:
    layer = a_layer()
    with registries(each_registry, tmp_path) as opened:
        sender = uploader(opened, each_registry, "written/app")
        sent: list[int] = []
        assert sender.blob(blob(layer), sent.append)
        assert sum(sent) == len(layer)
        assert not sender.blob(blob(layer))
        assert sender.repository.blob_size(digest(layer)) == len(layer)
        assert sender.repository.blob_size(digest(b"absent")) is None
        made = push_image(sender, "1", layer)
        assert sender.repository.has_manifest("1") == made.digest
        assert sender.repository.has_manifest("2") is None
        content = opened.content(parse_image_reference(f"docker://{each_registry.host}/written/app:1"))
        assert content.resolve(None).descriptor.data == made.data


@pytest.mark.parametrize("chunk", [1000, 16_384, 1 << 20])
def test_chunks(each_registry: Served, chunk: int, tmp_path: Path) -> None:
    layer = a_layer()
    with registries(each_registry, tmp_path) as opened:
        sender = uploader(opened, each_registry, "chunks/app", chunk=chunk)
        assert sender.blob(blob(layer))
        assert sender.repository.blob_size(digest(layer)) == len(layer)


def test_empty_blobs_and_sha512(plain_registry: Served, tmp_path: Path) -> None:
    with registries(plain_registry, tmp_path) as opened:
        sender = uploader(opened, plain_registry, "odd/app")
        sender.blob(blob(b""))
        assert sender.repository.blob_size(digest(b"")) == 0
        data = os.urandom(100)
        sender.blob(blob(data, "sha512"))
        assert sender.repository.blob_size(digest(data, "sha512")) == 100


def test_blobs_are_mounted_where_the_registry_can(each_registry: Served, tmp_path: Path) -> None:
    layer = a_layer()
    with registries(each_registry, tmp_path) as opened:
        assert uploader(opened, each_registry, "mount/from").blob(blob(layer))
    with registries(each_registry, tmp_path) as opened:
        sender = uploader(opened, each_registry, "mount/to", mount_from="mount/from")
        sent: list[int] = []
        # The Go registry has one room for the blobs of all repositories, the others mount.
        assert not sender.blob(blob(layer), sent.append)
        assert sum(sent) == 0
        assert sender.repository.blob_size(digest(layer)) == len(layer)
        other = a_layer()
        assert sender.blob(blob(other))  # which is not there to be mounted


def test_a_blob_with_another_digest_is_refused(each_registry: Served, tmp_path: Path) -> None:
    with registries(each_registry, tmp_path) as opened:
        sender = uploader(opened, each_registry, "wrong/app")
        with pytest.raises(NetworkError, match="the server answered 400"):
            sender.blob(Blob(digest(b"something"), BytesBody(b"something else")))


def test_a_manifest_before_its_blobs_is_refused(plain_registry: Served, tmp_path: Path) -> None:
    with registries(plain_registry, tmp_path) as opened:
        sender = uploader(opened, plain_registry, "early/app")
        made = document({"config": described(b"{} ", CONFIG), "layers": []})
        with pytest.raises(NetworkError, match="MANIFEST_BLOB_UNKNOWN"):
            sender.manifest("1", made)
        with pytest.raises(OciError, match="is larger than"):
            sender.manifest("1", made._replace(data=bytes((4 << 20) + 1)))
        blobs = push_image(sender, "1", a_layer())
        with pytest.raises((CheckFailed, NetworkError)):
            sender.manifest(str(digest(b"other")), blobs)


def test_writing_needs_the_right(token_registry: Served, tmp_path: Path) -> None:
    options = RegistryOptions(network=NetworkOptions(authorities=(bytes(token_registry.authority or b""),)))
    with Registries(options) as opened:
        sender = uploader(opened, token_registry, "forbidden/app")
        with pytest.raises(AccessDenied, match="access denied"):
            sender.blob(blob(b"x"))


def test_referrers_are_found_where_they_are_listed(each_registry: Served, tmp_path: Path) -> None:
    with registries(each_registry, tmp_path) as opened:
        sender = uploader(opened, each_registry, "signed/app")
        image = push_image(sender, "1", a_layer())
        assert list(referrers(sender.repository, image.digest)) == []
        made = [push_artifact(sender, image, f"application/x-kind-{at}", b"%d" % at) for at in range(3)]
        push_artifact(sender, image, "application/x-kind-0", b"0")  # again
        found = {one.digest: one for one in referrers(sender.repository, image.digest)}
        assert found.keys() == {one.digest for one in made}
        assert sorted(one.artifact_type for one in found.values()) == [f"application/x-kind-{at}" for at in range(3)]
        assert {one.data for one in found.values()} == {one.data for one in made}


@NEEDS_GO
def test_oras_lists_what_was_attached(plain_registry: Served, referrers_registry: Served, tmp_path: Path) -> None:
    oras = go_tool("oras")
    for served in (plain_registry, referrers_registry):
        with registries(served, tmp_path) as opened:
            sender = uploader(opened, served, "listed/app")
            image = push_image(sender, "1", a_layer())
            made = push_artifact(sender, image, "application/x-listed")
        words = [oras, "discover", "--plain-http", "--format", "json", f"{served.host}/listed/app:1"]
        done = subprocess.run([str(word) for word in words], capture_output=True, check=True)
        listed = json.loads(done.stdout)
        (entry,) = listed.get("referrers") or listed.get("manifests")
        assert entry["digest"] == str(made.digest)
        # The Go registry lists the type of the config, whatever the artifact calls itself.
        assert entry["artifactType"] in {"application/x-listed", EMPTY_TYPE}


@NEEDS_GO
def test_what_oras_attached_is_found(plain_registry: Served, referrers_registry: Served, tmp_path: Path) -> None:
    oras = go_tool("oras")
    (tmp_path / "file").write_bytes(b"attached")
    for served in (plain_registry, referrers_registry):
        with registries(served, tmp_path) as opened:
            sender = uploader(opened, served, "attached/app")
            image = push_image(sender, "1", a_layer())
            words = [oras, "attach", "--plain-http", "--artifact-type", "application/x-oras"]
            subprocess.run(
                [str(word) for word in (*words, f"{served.host}/attached/app:1", "file:text/plain")],
                cwd=tmp_path,
                capture_output=True,
                check=True,
            )
            (found,) = referrers(sender.repository, image.digest)
            assert found.artifact_type == "application/x-oras"


def test_a_tag_that_is_something_else_is_not_overwritten(plain_registry: Served, tmp_path: Path) -> None:
    with registries(plain_registry, tmp_path) as opened:
        sender = uploader(opened, plain_registry, "taken/app")
        image = push_image(sender, "1", a_layer())
        other = push_image(sender, tag_of(image.digest), a_layer())
        assert list(referrers(sender.repository, image.digest)) == []
        with pytest.raises(OciError, match="is no list of referrers"):
            push_artifact(sender, image, "application/x-kind")
        assert sender.repository.has_manifest(tag_of(image.digest)) == other.digest


def test_the_tag_of_a_long_digest() -> None:
    assert tag_of(Digest("sha512", "a" * 128)) == "sha512-" + "a" * 64
