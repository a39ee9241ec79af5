from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing import (
    KeyState,
    add_signatures,
    check_signatures,
    make_statement,
    parse_envelope,
    sign_envelope,
)
from cfstools.signing.envelope import PAYLOAD_TYPE, pae
from cfstools.signing.keys import KeyType, PrivateKey, generate
from cfstools.strictjson import dump_canonical
from tests.signing.conftest import DIGESTS, STATEMENT, key_of

SIGNED = sign_envelope(STATEMENT, [key_of(KeyType.ED25519)])
RENAMED = make_statement(b"another name", DIGESTS, "v1-sha256-12")


def changed(**members: Any) -> bytes:
    return dump_canonical({**json.loads(SIGNED), **members})


def with_entry(*gone: str, **members: Any) -> bytes:
    entry = {**json.loads(SIGNED)["signatures"][0], **members}
    return changed(signatures=[{key: value for key, value in entry.items() if key not in gone}])


def entries(envelope: bytes) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(envelope)["signatures"]
    return found


def states(envelope: bytes, *keys: PrivateKey) -> list[KeyState]:
    return [check.state for check in check_signatures(parse_envelope(envelope), [key.verifier for key in keys])]


def test_signed_bytes() -> None:
    assert pae(b"{}") == b"DSSEv1 28 application/vnd.in-toto+json 2 {}"
    assert parse_envelope(SIGNED).signed_bytes == pae(STATEMENT)


def test_the_bytes_of_an_envelope(ed25519: PrivateKey) -> None:
    payload = base64.b64encode(STATEMENT).decode()
    signature = base64.b64encode(ed25519.sign(pae(STATEMENT))).decode()
    assert SIGNED.decode() == (
        f'{{"payload":"{payload}","payloadType":"application/vnd.in-toto+json",'
        f'"signatures":[{{"keyid":"{ed25519.key_id}","sig":"{signature}"}}]}}'
    )


def test_every_key_signs(key: PrivateKey) -> None:
    envelope = sign_envelope(STATEMENT, [key])
    check = check_signatures(parse_envelope(envelope), [key.verifier])
    assert [(one.key_id, one.state, one.algorithm) for one in check] == [(key.key_id, KeyState.VERIFIED, key.algorithm)]


@pytest.mark.parametrize("kind", [KeyType.ED25519, KeyType.RSA])
def test_same_input_same_bytes(kind: KeyType) -> None:
    assert sign_envelope(STATEMENT, [key_of(kind)]) == sign_envelope(STATEMENT, [key_of(kind)])


def test_the_order_of_signers_does_not_matter(ed25519: PrivateKey, rsa: PrivateKey) -> None:
    both = sign_envelope(STATEMENT, [ed25519, rsa])
    assert both == sign_envelope(STATEMENT, [rsa, ed25519, rsa])
    assert both == add_signatures(sign_envelope(STATEMENT, [rsa]), STATEMENT, [ed25519])
    assert both == add_signatures(sign_envelope(STATEMENT, [ed25519]), STATEMENT, [rsa])
    assert states(both, ed25519, rsa) == [KeyState.VERIFIED] * 2


def test_signing_needs_a_key() -> None:
    with pytest.raises(UsageError, match="no key"):
        sign_envelope(STATEMENT, [])


def test_signing_twice_changes_nothing(key: PrivateKey) -> None:
    envelope = sign_envelope(STATEMENT, [key])
    assert add_signatures(envelope, STATEMENT, [key]) == envelope
    pretty = json.dumps(json.loads(envelope), indent=2).encode()
    assert add_signatures(pretty, STATEMENT, [key]) == pretty


def test_signing_under_another_name_keeps_the_first(ed25519: PrivateKey, rsa: PrivateKey) -> None:
    assert add_signatures(SIGNED, RENAMED, [ed25519]) == SIGNED
    assert add_signatures(SIGNED, RENAMED, [rsa]) == sign_envelope(STATEMENT, [ed25519, rsa])


def test_a_damaged_signature_of_the_same_key_is_replaced(ed25519: PrivateKey) -> None:
    damaged = with_entry(sig=base64.b64encode(bytes(64)).decode())
    assert states(damaged, ed25519) == [KeyState.MISMATCH]
    assert add_signatures(damaged, STATEMENT, [ed25519]) == SIGNED


def test_what_others_wrote_is_kept(ed25519: PrivateKey, rsa: PrivateKey) -> None:
    foreign: dict[str, Any] = {"keyid": "theirs", "sig": "AAAA", "note": [1.5]}
    nameless = {"sig": "AAAA"}
    envelope = add_signatures(changed(extra={"x": None}, signatures=[foreign, nameless]), STATEMENT, [ed25519])
    assert json.loads(envelope)["extra"] == {"x": None}
    assert entries(envelope) == sorted(
        [foreign, nameless, entries(SIGNED)[0]], key=lambda entry: str(entry.get("keyid", ""))
    )
    assert KeyState.VERIFIED in states(envelope, ed25519, rsa)


@pytest.mark.parametrize(
    "payload",
    [
        make_statement(b"root.cfs", DIGESTS, "v0-sha256-12"),
        dump_canonical({**json.loads(STATEMENT), "predicate": {"formatVersion": "v1-sha256-12", "size": 1}}),
        dump_canonical({**json.loads(STATEMENT), "more": 1}),
        json.dumps(json.loads(STATEMENT)).encode(),
    ],
)
def test_only_our_own_words_are_signed(payload: bytes, rsa: PrivateKey) -> None:
    existing = changed(payload=base64.b64encode(payload).decode())
    with pytest.raises(SignatureInvalid, match="another image or states more") as caught:
        add_signatures(existing, STATEMENT, [rsa])
    assert caught.value.hint


def test_both_alphabets(ed25519: PrivateKey) -> None:
    payload = make_statement(b"?>?>??>>", DIGESTS, "v1-sha256-12")
    body = json.loads(sign_envelope(payload, [ed25519]))
    body["payload"] = base64.urlsafe_b64encode(payload).decode()
    body["signatures"][0]["sig"] = body["signatures"][0]["sig"].translate(str.maketrans("+/", "-_"))
    assert states(dump_canonical(body), ed25519) == [KeyState.VERIFIED]


@pytest.mark.parametrize(
    ("envelope", "what"),
    [
        (b"", "envelope: not JSON"),
        (b" " * (2**20 + 1), "larger than 1048576"),
        (changed(payloadType="application/json"), "payloadType is 'application/json', not application/vnd"),
        (changed(payloadType="application/vnd.in-toto+json "), "payloadType is 'application/vnd.in-toto.json ', not"),
        (changed(payloadType=None), "payloadType is missing"),
        (changed(payload=None), "payload is not a base64 string"),
        (changed(payload="é"), "payload is not a base64 string"),
        (changed(payload="AAA"), "payload is not base64"),
        (changed(payload="AA==AA=="), "payload is not"),
        (changed(payload="AA A"), "payload is not base64"),
        (changed(payload="AAA=\n"), "payload is not"),
        (changed(payload="AB=="), "payload is not canonical base64"),
        (changed(payload="+_AA"), "payload is not canonical base64"),
        (changed(payload=""), "payload is empty"),
        (changed(signatures=None), "there is no signature in it"),
        (changed(signatures={}), "there is no signature in it"),
        (changed(signatures=[]), "there is no signature in it"),
        (changed(signatures=entries(SIGNED) * 257), "257 signatures, at most 256"),
        (changed(signatures=[*entries(SIGNED), 1]), "signature 2: not an object"),
        (with_entry("sig"), "signature 1: sig is not a base64 string"),
        (with_entry(sig=""), "signature 1: sig is empty"),
        (with_entry(keyid=1), "signature 1: keyid is not a string"),
        (with_entry(keyid=None), "signature 1: keyid is not a string"),
        (with_entry(keyid="x" * 1025), "signature 1: keyid is not a string of at most 1024"),
        (with_entry("keyid", Keyid="x"), "signature 1: it has no keyid but the unknown member 'Keyid'"),
        (with_entry("keyid", "sig", other="x"), "signature 1: sig is not"),
        (with_entry("keyid", "sig", other="x", more=1), "signature 1: it has no keyid but the unknown member 'more'"),
    ],
)
def test_malformed_envelopes(envelope: bytes, what: str) -> None:
    with pytest.raises(SignatureInvalid, match=what):
        parse_envelope(envelope)


def test_a_signature_without_key_id_is_tried_with_every_key(
    ed25519: PrivateKey, rsa: PrivateKey, p256: PrivateKey
) -> None:
    for envelope in (with_entry("keyid"), with_entry(keyid="")):
        assert states(envelope, rsa, p256, ed25519) == [KeyState.VERIFIED]
        assert states(envelope, rsa, p256) == [KeyState.UNKNOWN_KEY]


def test_a_key_id_is_a_hint(ed25519: PrivateKey, rsa: PrivateKey) -> None:
    assert states(with_entry(keyid=rsa.key_id), rsa) == [KeyState.MISMATCH]
    assert states(with_entry(keyid=rsa.key_id), ed25519) == [KeyState.UNKNOWN_KEY]
    assert states(with_entry(keyid=rsa.key_id), ed25519, rsa) == [KeyState.MISMATCH]


def test_a_key_counts_once(ed25519: PrivateKey) -> None:
    twice = changed(signatures=entries(SIGNED) * 2)
    assert states(twice, ed25519) == [KeyState.VERIFIED, KeyState.DUPLICATE]


def test_unknown_key() -> None:
    assert states(SIGNED, generate()) == [KeyState.UNKNOWN_KEY]
    assert states(SIGNED) == [KeyState.UNKNOWN_KEY]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_refused(data: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        parse_envelope(data)


JSON = st.recursive(st.none() | st.booleans() | st.text(max_size=4), lambda x: st.lists(x, max_size=2))
MEMBERS = st.fixed_dictionaries(
    {"payload": st.sampled_from(["AA==", "AAA=", "A", 1]), "payloadType": st.just(PAYLOAD_TYPE)},
    optional={"signatures": st.lists(st.dictionaries(st.sampled_from(["keyid", "sig", "x"]), JSON), max_size=3) | JSON},
)


@given(MEMBERS)
def test_any_members_are_an_envelope_or_refused(members: dict[str, object]) -> None:
    try:
        envelope = parse_envelope(dump_canonical(members))
    except SignatureInvalid:
        return
    check_signatures(envelope, [key_of(KeyType.ED25519).verifier])
