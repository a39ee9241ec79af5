"""Whatever happens to a signed image or its signature, the answer is not "verified"."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import Any

import pytest

from cfstools.errors import SignatureInvalid
from cfstools.signing import (
    MAX_TRAILER,
    ImageDigests,
    SignatureReport,
    Verdict,
    find_trailer,
    judge,
    make_trailer,
    sign_envelope,
)
from cfstools.signing.keys import KeyType, PrivateKey, load_public_key
from cfstools.strictjson import dump_canonical
from cfstools.verity import digest_bytes
from tests.signing.conftest import DIGESTS, IMAGE, STATEMENT, key_of

KEY = key_of(KeyType.ED25519)
BESIDE = sign_envelope(STATEMENT, [KEY])


def measure(image: bytes) -> ImageDigests:
    return ImageDigests(size=len(image), sha256=hashlib.sha256(image).digest(), fsverity=digest_bytes(image))


def verify(image: bytes, envelope: bytes | None, key: PrivateKey = KEY) -> SignatureReport:
    return judge(envelope, measure(image), [load_public_key(key.verifier.pem())])


def verify_attached(file: bytes, key: PrivateKey = KEY) -> SignatureReport:
    found = find_trailer(file[-MAX_TRAILER:], len(file))
    if found is None:
        return verify(file, None, key)
    return verify(file[: found.image_size], found.envelope, key)


def test_both_places(key: PrivateKey) -> None:
    envelope = sign_envelope(STATEMENT, [key])
    assert verify(IMAGE, envelope, key).state is Verdict.VERIFIED
    assert verify_attached(IMAGE + make_trailer(len(IMAGE), envelope), key).state is Verdict.VERIFIED


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_an_envelope(bit: int) -> None:
    for place in range(len(BESIDE)):
        damaged = bytearray(BESIDE)
        damaged[place] ^= 1 << bit
        report = judge(bytes(damaged), DIGESTS, [KEY.verifier])
        assert report.state is not Verdict.VERIFIED, bytes(damaged)
        assert report.problems


def test_every_flipped_byte_of_an_image() -> None:
    for place in range(0, len(IMAGE), 61):
        damaged = bytearray(IMAGE)
        damaged[place] ^= 1
        assert verify(bytes(damaged), BESIDE).state is Verdict.MISMATCH


@pytest.mark.parametrize("change", [b"", IMAGE[:-1], IMAGE[:4096], IMAGE + b"\0", IMAGE + bytes(4096)])
def test_another_length(change: bytes) -> None:
    report = verify(change, BESIDE)
    assert report.state is Verdict.MISMATCH
    assert "of 8192 bytes" in report.problems[0]


def test_every_truncation_of_an_attached_signature() -> None:
    file = IMAGE + make_trailer(len(IMAGE), BESIDE)
    for size in range(len(IMAGE) + 1, len(file)):
        with pytest.raises(SignatureInvalid):
            verify_attached(file[:size])
    assert verify_attached(IMAGE).state is Verdict.MISSING


def test_flipped_bits_of_an_attached_signature() -> None:
    file = IMAGE + make_trailer(len(IMAGE), BESIDE)
    for place in range(len(IMAGE), len(file), 3):
        damaged = bytearray(file)
        damaged[place] ^= 1 << place % 8
        with contextlib.suppress(SignatureInvalid):
            assert verify_attached(bytes(damaged)).state is not Verdict.VERIFIED


def replaced(**members: Any) -> bytes:
    return dump_canonical({**json.loads(BESIDE), **members})


def signed_directly(data: bytes) -> dict[str, str]:
    return {"keyid": KEY.key_id, "sig": base64.b64encode(KEY.sign(data)).decode()}


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "", "application/vnd.in-toto+JSON", "application/vnd.composefs"]
)
def test_payload_type_confusion(kind: str) -> None:
    report = verify(IMAGE, replaced(payloadType=kind))
    assert report.state is Verdict.MISMATCH
    assert "payloadType" in report.problems[0]
    # A signature of our key over the same payload as another type must not pass under ours.
    other = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(STATEMENT), STATEMENT)
    assert verify(IMAGE, replaced(signatures=[signed_directly(other)])).state is Verdict.MISMATCH


@pytest.mark.parametrize(
    "data",
    [
        STATEMENT,
        IMAGE,
        hashlib.sha256(IMAGE).digest(),
        digest_bytes(IMAGE),
        b"FSVerity\x01\x00\x20\x00" + digest_bytes(IMAGE),
    ],
)
def test_signatures_over_anything_else_do_not_count(data: bytes) -> None:
    assert verify(IMAGE, replaced(signatures=[signed_directly(data)])).state is Verdict.MISMATCH


@pytest.mark.parametrize("mine", KeyType)
@pytest.mark.parametrize("theirs", KeyType)
def test_a_key_of_another_type(mine: KeyType, theirs: KeyType) -> None:
    if mine is theirs:
        return
    envelope = sign_envelope(STATEMENT, [key_of(theirs)])
    report = verify(IMAGE, envelope, key_of(mine))
    assert report.state is Verdict.UNKNOWN_KEY
    assert key_of(mine).algorithm in report.problems[0]
    body = json.loads(envelope)
    body["signatures"][0]["keyid"] = key_of(mine).key_id
    assert verify(IMAGE, dump_canonical(body), key_of(mine)).state is Verdict.MISMATCH
    del body["signatures"][0]["keyid"]
    assert verify(IMAGE, dump_canonical(body), key_of(mine)).state is Verdict.UNKNOWN_KEY


def test_a_stripped_signature() -> None:
    assert verify(IMAGE, None).state is Verdict.MISSING
    report = verify(IMAGE, replaced(signatures=[]))
    assert report.state is Verdict.MISMATCH
    assert report.problems == ("envelope: there is no signature in it",)


def test_a_payload_that_appears_twice() -> None:
    other = base64.b64encode(STATEMENT.replace(b"8192", b"4096"))
    doubled = BESIDE.replace(b'"payloadType"', b'"payload":"' + other + b'","payloadType"', 1)
    report = verify(IMAGE, doubled)
    assert report.state is Verdict.MISMATCH
    assert "occurs twice" in report.problems[0]
