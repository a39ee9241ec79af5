"""Signatures as artifacts that refer to an image, written and read."""

from __future__ import annotations

import json

import pytest

from cfstools.errors import OciError
from cfstools.oci.descriptor import Digest
from cfstools.oci.pushed.documents import canonical_json, describe
from cfstools.oci.pushed.layout import MANIFEST
from cfstools.oci.pushed.referrers import (
    BUNDLE,
    DSSE,
    IN_TOTO,
    bundle_artifact,
    envelope_artifact,
    envelope_in,
    envelope_layer,
)

SUBJECT = describe(MANIFEST, b"manifest")
ENVELOPE = canonical_json(
    {
        "payload": "e30=",
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": "ab" * 32, "sig": "AA=="}],
    }
)


def test_an_envelope_comes_back_as_it_was() -> None:
    artifact = envelope_artifact(ENVELOPE, SUBJECT, "urn:x")
    manifest = json.loads(artifact.data)
    assert manifest["artifactType"] == IN_TOTO
    assert manifest["subject"]["digest"] == str(SUBJECT.digest)
    layer = envelope_layer(artifact.data, SUBJECT.digest)
    assert layer is not None
    assert layer.media_type == DSSE
    blobs = {descriptor.digest: data for descriptor, data in artifact.blobs}
    assert envelope_in(blobs[layer.digest], layer.media_type) == ENVELOPE


def test_a_bundle_leaves_the_key_id_to_its_hint() -> None:
    artifact = bundle_artifact(ENVELOPE, SUBJECT, "urn:x")
    layer = envelope_layer(artifact.data, SUBJECT.digest)
    assert layer is not None
    assert layer.media_type == BUNDLE
    blob = artifact.blobs[1][1]
    bundle = json.loads(blob)
    assert "keyid" not in bundle["dsseEnvelope"]["signatures"][0]
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="
    assert json.loads(envelope_in(blob, BUNDLE)) == json.loads(ENVELOPE)


def test_a_bundle_has_one_signature() -> None:
    with pytest.raises(OciError, match="exactly one signature"):
        bundle_artifact(canonical_json({"signatures": []}), SUBJECT, "urn:x")


def test_other_artifacts_are_passed_over() -> None:
    artifact = envelope_artifact(ENVELOPE, SUBJECT, "urn:x")
    assert envelope_layer(artifact.data, Digest("sha256", "0" * 64)) is None
    manifest = json.loads(artifact.data)
    changes: list[dict[str, object]] = [{"layers": []}, {"layers": manifest["layers"] * 2}, {"subject": None}]
    for change in changes:
        assert envelope_layer(canonical_json(manifest | change), SUBJECT.digest) is None
    manifest["layers"][0]["mediaType"] = "text/plain"
    assert envelope_layer(canonical_json(manifest), SUBJECT.digest) is None


@pytest.mark.parametrize("blob", [b"{}", b"[]", b"x", b'{"dsseEnvelope":{"signatures":[{}]}}'])
def test_bundles_that_are_none(blob: bytes) -> None:
    with pytest.raises(OciError):
        envelope_in(blob, BUNDLE)
