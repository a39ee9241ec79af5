"""Archives with an index and a docker manifest at once: comparing the two has one budget, whatever they list."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci import images
from cfstools.oci.content import LayoutContent
from cfstools.oci.images import DockerImages
from cfstools.sources.oci_containers import open_images
from tests.oci.making import Layout, hello, member, packed, tar


class Both(Layout):
    """A layout of one image, with what a docker manifest calls its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one: dict[str, Any] = self.manifest([hello()])
        parts = {b'"rootfs"' in data: path for path, data in self.blobs.items() if b'"schemaVersion"' not in data}
        self.config = parts[True]
        self.item: dict[str, object] = {"Config": self.config, "Layers": [parts[False]], "RepoTags": ["app:1"]}

    def kind(self, directory: Path, items: object) -> str:
        """What the archive of both is opened as."""
        files = {**self.files(), "manifest.json": packed(items)}
        path = directory / "archive.tar"
        path.write_bytes(tar(*(member(name, data) for name, data in files.items())))
        with open_images(None, [bytes(path)]) as container:
            return container.kind


def test_many_entries_of_one_image_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    for number in range(900):
        both.tag(both.one, f"app:{number}")
    read: list[str] = []

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: object) -> object:
            read.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(LayoutContent, "read")
    count(DockerImages, "_config")
    assert both.kind(tmp_path, [both.item] * 900) == "oci-archive"
    assert sorted(read) == ["_config", "read"]


@pytest.mark.parametrize("what", ["manifests", "configs"])
def test_what_is_read_to_compare_has_a_budget(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    both.tag(both.one, "app:1")
    at = max(both.one["size"], len(both.blobs[both.config]))
    monkeypatch.setattr(images, "MAX_LOOKED_AT", at)
    assert both.kind(tmp_path, [both.item]) == "oci-archive"
    copies = {}
    if what == "manifests":
        both.tag(both.manifest([tar(member("x", b"y"))]), "x")
    else:
        copies = {"other.json": both.blobs[both.config]}
    both.blobs.update(copies)
    items = [both.item, *({**both.item, "Config": path} for path in copies)]
    monkeypatch.setattr(images, "MAX_LOOKED_AT", at + 1)
    with pytest.raises(LimitExceeded, match=f"bytes of {what} to tell images apart"):
        both.kind(tmp_path, items)


def test_names_compared_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    for name in ("docker.io/library/app:1", "other"):
        both.tag(both.one, name)
    item = {**both.item, "RepoTags": ["app:1", "app:2"]}
    monkeypatch.setattr(images, "MAX_NAMES_COMPARED", 4)
    assert both.kind(tmp_path, [item]) == "oci-archive"
    monkeypatch.setattr(images, "MAX_NAMES_COMPARED", 3)
    with pytest.raises(LimitExceeded, match="too many names"):
        both.kind(tmp_path, [item])


def test_a_hostile_archive_of_both_needs_little_time(tmp_path: Path) -> None:
    both = Both()
    for number in range(1000):
        both.tag(both.one, f"n{number}")
    started = time.process_time()
    assert both.kind(tmp_path, [{**both.item, "RepoTags": []}] * 15_000) == "oci-archive"
    with pytest.raises(LimitExceeded):
        both.kind(tmp_path, [{**both.item, "RepoTags": [f"t{number}" for number in range(150_000)]}])
    assert time.process_time() - started < 10


def test_a_manifest_of_no_images_is_no_layer(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar(member("manifest.json", b"[]"), member("repositories", b"{}")))
    with open_images(None, [bytes(path)]) as container, pytest.raises(OciError, match="no image"):
        container.image()
