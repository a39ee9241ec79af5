"""Signatures beside a pushed image: artifacts that refer to its manifest (docs/distribution.md, "Signatures").

The envelope as it is, in the form that in-toto gives to registries; and the same as a bundle, the form that cosign
reads and verifies, if it was signed for this manifest. Both are only where to look: what they say is judged by keys.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cfstools.errors import CheckFailed, FormatError, InputError, OciError
from cfstools.oci.content import Content, read_checked
from cfstools.oci.descriptor import Descriptor, Digest, read_descriptor
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.oci.pushed.documents import canonical_json, describe
from cfstools.oci.pushed.layout import EMPTY, MANIFEST, MAX_SIGNATURE

IN_TOTO = "application/vnd.in-toto+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "in-toto.io/predicate-type"
_EMPTY_CONFIG = b"{}"


class Artifact(NamedTuple):
    """An artifact to attach: its blobs, and its manifest."""

    blobs: Sequence[tuple[Descriptor, bytes]]
    manifest: Descriptor
    data: bytes


def envelope_artifact(envelope: bytes, subject: Descriptor, predicate: str) -> Artifact:
    """The *envelope* of an image as it is; *predicate* is the type of what it says."""
    return _artifact(envelope, IN_TOTO, DSSE, subject, {PREDICATE: predicate})


def bundle_artifact(envelope: bytes, subject: Descriptor, predicate: str) -> Artifact:
    """An envelope with one signature, of which the manifest *subject* is a subject too, as a bundle.

    The bundle names its key by a hint: an envelope of a bundle has no key ids. Raises :class:`OciError`.
    """
    members = parse_json(envelope)
    fields = Fields(members, "")
    signatures = fields.array("signatures")
    if not isinstance(members, dict) or len(signatures) != 1:
        raise OciError("a bundle has exactly one signature")
    signature = Fields(signatures[0], "signatures[0]")
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(signature.text("keyid") or "")}},
        "dsseEnvelope": {**members, "signatures": [{"sig": signature.required_text("sig")}]},
    }
    annotations = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate,
    }
    return _artifact(canonical_json(bundle), BUNDLE, BUNDLE, subject, annotations)


def _hint(key_id: str) -> str:
    try:
        return base64.b64encode(bytes.fromhex(key_id)).decode()
    except ValueError:
        return key_id


def _artifact(
    payload: bytes, artifact_type: str, media_type: str, subject: Descriptor, annotations: dict[str, str]
) -> Artifact:
    config, layer = describe(EMPTY, _EMPTY_CONFIG), describe(media_type, payload)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": _plain(config),
        "layers": [_plain(layer)],
        "subject": _plain(subject),
        "annotations": annotations,
    }
    data = canonical_json(manifest)
    descriptor = describe(MANIFEST, data, annotations)._replace(artifact_type=artifact_type)
    return Artifact(((config, _EMPTY_CONFIG), (layer, payload)), descriptor, data)


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def envelope_layer(manifest: bytes, subject: Digest) -> Descriptor | None:
    """The blob of a referrer that may hold an envelope for *subject*; ``None`` for other artifacts. Raises OciError."""
    fields = Fields(parse_json(manifest), "")
    named = fields.member("subject")
    if named is None or named.required_text("digest") != str(subject):
        return None
    layers = fields.array("layers")
    if len(layers) != 1:
        return None
    layer = read_descriptor(Fields(layers[0], "layers[0]"))
    return layer if layer.media_type in {DSSE, BUNDLE} and layer.size <= MAX_SIGNATURE else None


def envelope_in(blob: bytes, media_type: str) -> bytes:
    """The DSSE envelope in a referrer's blob; that of a bundle gets the key id that its hint says. Raises OciError."""
    if media_type != BUNDLE:
        return blob
    fields = Fields(parse_json(blob), "")
    envelope = fields.member("dsseEnvelope")
    if envelope is None:
        raise OciError("a bundle without an envelope")
    signatures = [Fields(one, "signatures").required_text("sig") for one in envelope.array("signatures")]
    material = fields.member("verificationMaterial")
    key = material.member("publicKey") if material is not None else None
    key_id = _key_id(key.text("hint") or "" if key is not None else "")
    return canonical_json(
        {
            "payload": envelope.required_text("payload"),
            "payloadType": envelope.required_text("payloadType"),
            "signatures": [{"keyid": key_id, "sig": signature} for signature in signatures],
        }
    )


def _key_id(hint: str) -> str:
    try:
        return base64.b64decode(hint, validate=True).hex()
    except (binascii.Error, ValueError):
        return hint


def envelopes(content: Content, subject: Descriptor) -> Iterator[bytes]:
    """The envelopes of the artifacts that refer to *subject*; what cannot be read is passed over."""
    for manifest in content.referrers(subject):
        try:
            layer = envelope_layer(manifest, subject.digest)
            if layer is not None:
                yield envelope_in(read_checked(content, layer, MAX_SIGNATURE), layer.media_type)
        except (FormatError, CheckFailed, InputError):
            continue
