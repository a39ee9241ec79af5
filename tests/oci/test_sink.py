"""A layout as a place to write images to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfstools.errors import CfsError
from cfstools.oci.descriptor import Descriptor, Platform
from cfstools.oci.pushed.documents import describe
from cfstools.oci.pushed.layout import MANIFEST
from cfstools.oci.sink import REF_NAME, LayoutSink
from cfstools.transport.base import BytesBody, Target
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.memory import MemoryTarget


@pytest.fixture(params=["directory", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return DirectoryTarget(bytes(tmp_path)) if request.param == "directory" else MemoryTarget()


def _read(target: Target, name: str) -> bytes:
    with target.read(name) as read:
        return b"".join(iter(lambda: read(1 << 20), b""))


def _manifest(text: bytes, platform: Platform | None = None) -> tuple[Descriptor, bytes]:
    return describe(MANIFEST, text)._replace(platform=platform), text


def test_a_blob_is_sent_once(target: Target) -> None:
    sink = LayoutSink(target, "app")
    sent: list[int] = []
    blob = describe("text/plain", b"blob")
    assert not sink.has(blob)
    assert sink.put(blob, BytesBody(b"blob"), sent.append)
    assert not sink.put(blob, BytesBody(b"blob"), sent.append)
    assert sent == [4]
    assert _read(target, f"blobs/sha256/{blob.digest.encoded}") == b"blob"


def test_names_are_replaced_and_all_else_is_kept(target: Target) -> None:
    platform = Platform(os="linux", architecture="arm", variant="v7")
    LayoutSink(target, "one").finish(*_manifest(b"{}", platform))
    LayoutSink(target, "two").finish(*_manifest(b"{ }"))
    LayoutSink(target, None).finish(*_manifest(b"{  }"))
    LayoutSink(target, None).finish(*_manifest(b"{  }"))
    sink = LayoutSink(target, "one")
    sink.finish(*_manifest(b"{   }", platform))
    subject, _ = _manifest(b"{   }")
    artifact, data = _manifest(b"{    }")
    for _ in range(2):
        sink.attach(artifact._replace(artifact_type="text/x"), data, subject)
    index = json.loads(_read(target, "index.json"))
    names = [entry.get("annotations", {}).get(REF_NAME) for entry in index["manifests"]]
    assert names == ["two", None, "one", None]
    assert index["manifests"][2]["platform"] == {"architecture": "arm", "os": "linux", "variant": "v7"}
    assert index["manifests"][3]["artifactType"] == "text/x"
    assert json.loads(_read(target, "oci-layout")) == {"imageLayoutVersion": "1.0.0"}


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"schemaVersion":1,"manifests":[]}', b'{"manifests":[3]}'])
def test_what_is_no_index_is_not_replaced(index: bytes, target: Target) -> None:
    target.put("index.json", BytesBody(index), replace=True)
    with pytest.raises(CfsError):
        LayoutSink(target, "app").finish(*_manifest(b"{}"))
    assert _read(target, "index.json") == index
