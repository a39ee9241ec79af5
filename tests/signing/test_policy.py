from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing import ImageDigests, KeyState, SignatureReport, Verdict, judge, sign_envelope
from cfstools.signing.envelope import pae
from cfstools.signing.keys import KeyType, PrivateKey, generate
from cfstools.strictjson import dump_canonical
from tests.signing.conftest import DIGESTS, STATEMENT, key_of

ED25519, P256, RSA = key_of(KeyType.ED25519), key_of(KeyType.P256), key_of(KeyType.RSA)
ONE = sign_envelope(STATEMENT, [ED25519])
THREE = sign_envelope(STATEMENT, [ED25519, P256, RSA])


def check(
    envelope: bytes | None, *keys: PrivateKey, threshold: int = 1, image: ImageDigests = DIGESTS
) -> SignatureReport:
    return judge(envelope, image, [key.verifier for key in keys], threshold=threshold)


def with_entries(envelope: bytes, *entries: dict[str, Any]) -> bytes:
    return dump_canonical({**json.loads(envelope), "signatures": list(entries)})


def entry(envelope: bytes, key: PrivateKey) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(envelope)["signatures"]
    return next(one for one in found if one["keyid"] == key.key_id)


def test_every_key_verifies(key: PrivateKey) -> None:
    report = check(sign_envelope(STATEMENT, [key]), key)
    assert report.state is Verdict.VERIFIED
    assert report.verified_by == (key.key_id,)
    assert report.statement is not None
    assert report.statement.format_version == "v1-sha256-12"
    assert report.ok
    report.require()


def test_thresholds() -> None:
    for threshold in (1, 2, 3):
        report = check(THREE, ED25519, P256, RSA, threshold=threshold)
        assert report.state is Verdict.VERIFIED
        assert set(report.verified_by) == {ED25519.key_id, P256.key_id, RSA.key_id}
        assert report.required == threshold


def test_a_stripped_signature_is_missing() -> None:
    stripped = with_entries(THREE, entry(THREE, ED25519))
    report = check(stripped, ED25519, P256, threshold=2)
    assert report.state is Verdict.MISSING
    assert report.problems[0].startswith("1 of 2 required signatures hold; keys given: ")
    assert report.statement is None


def test_a_duplicated_signature_counts_once() -> None:
    twice = with_entries(THREE, entry(THREE, ED25519), entry(THREE, ED25519))
    assert check(twice, ED25519, P256).state is Verdict.VERIFIED
    report = check(twice, ED25519, P256, threshold=2)
    assert report.state is Verdict.MISSING
    assert f"duplicates, counted once: {ED25519.key_id}" in report.problems[0]
    assert [one.state for one in report.signatures] == [KeyState.VERIFIED, KeyState.DUPLICATE]


def test_a_key_that_is_given_twice_counts_once() -> None:
    with pytest.raises(UsageError, match="threshold of 2 cannot be reached with 1"):
        check(THREE, ED25519, ED25519, threshold=2)


def test_reordered_signatures_are_the_same() -> None:
    entries = json.loads(THREE)["signatures"]
    report = check(with_entries(THREE, *reversed(entries)), ED25519, P256, RSA, threshold=3)
    assert report.state is Verdict.VERIFIED


def test_a_stranger_is_not_counted() -> None:
    report = check(ONE, P256)
    assert report.state is Verdict.UNKNOWN_KEY
    assert report.problems[0] == (
        f"0 of 1 required signatures hold; made by unknown keys: {ED25519.key_id}; "
        f"keys given: {P256.key_id} (ECDSA P-256)"
    )
    assert check(THREE, ED25519, generate(), threshold=2).state is Verdict.UNKNOWN_KEY
    with pytest.raises(SignatureInvalid, match="unknown keys"):
        report.require()


def test_many_strangers_are_not_all_named() -> None:
    report = check(with_entries(ONE, *({"keyid": f"{number:02}", "sig": "AAAA"} for number in range(20))), P256)
    assert report.state is Verdict.UNKNOWN_KEY
    assert re.search(r"made by unknown keys: 00, .*, and \d+ more;", report.problems[0])


def test_a_stranger_without_or_with_a_wild_key_id() -> None:
    for key_id, shown in (("", "a key without id"), ("\x1b[2J\n" * 40, r"\\x1b\[2J")):
        report = check(with_entries(ONE, {"keyid": key_id, "sig": "AAAA"}), P256)
        assert report.state is Verdict.UNKNOWN_KEY
        with pytest.raises(SignatureInvalid, match=shown) as caught:
            report.require()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_a_mismatch_fails_even_if_others_suffice() -> None:
    damaged = {**entry(THREE, P256), "sig": entry(THREE, RSA)["sig"]}
    envelope = with_entries(THREE, entry(THREE, ED25519), damaged)
    assert check(envelope, ED25519).state is Verdict.VERIFIED
    report = check(envelope, ED25519, P256)
    assert report.state is Verdict.MISMATCH
    assert report.verified_by == (ED25519.key_id,)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(f"signature 2 names the key {P256.key_id} (ECDSA P-256) and is not")
    assert "a key of another type" in report.problems[0]
    both = check(with_entries(THREE, damaged), P256)
    assert both.state is Verdict.MISMATCH
    assert len(both.problems) == 2


def test_missing() -> None:
    report = check(None, ED25519)
    assert report.state is Verdict.MISSING
    assert report.problems == ("there is no signature",)
    assert not report.ok


def test_nothing_asked() -> None:
    report = check(None)
    assert (report.state, report.ok, report.required) == (Verdict.MISSING, True, 0)
    report = check(THREE)
    assert (report.state, report.ok, report.required) == (Verdict.NOT_CHECKED, True, 0)
    assert report.statement is None
    assert {one.state for one in report.signatures} == {KeyState.NOT_CHECKED}
    assert {one.key_id for one in report.signatures} == {ED25519.key_id, P256.key_id, RSA.key_id}


@pytest.mark.parametrize("keys", [(), (ED25519,)])
def test_a_malformed_envelope_is_a_mismatch(keys: tuple[PrivateKey, ...]) -> None:
    report = check(ONE[:-1], *keys)
    assert report.state is Verdict.MISMATCH
    assert report.problems[0].startswith("envelope: not JSON")


def test_an_envelope_for_another_image() -> None:
    report = check(ONE, ED25519, image=DIGESTS._replace(sha256=bytes(32)))
    assert report.state is Verdict.MISMATCH
    assert report.problems[0].startswith("the signature holds, but it is for an image with sha256 ")
    assert report.statement is not None


def test_a_signed_statement_of_another_kind() -> None:
    payload = dump_canonical({**json.loads(STATEMENT), "predicateType": "https://slsa.dev/provenance/v1"})
    envelope = dump_canonical(
        {
            **json.loads(ONE),
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": ED25519.key_id, "sig": base64.b64encode(ED25519.sign(pae(payload))).decode()}],
        }
    )
    report = check(envelope, ED25519)
    assert report.state is Verdict.MISMATCH
    assert report.problems[0].startswith("statement: predicateType is 'https://slsa.dev/provenance/v1', not urn:")


def test_thresholds_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="accept anything"):
        check(ONE, ED25519, threshold=0)
    with pytest.raises(UsageError, match="cannot be reached"):
        check(ONE, ED25519, threshold=2)


def test_the_statement_is_not_read_before_a_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfstools.signing import policy

    def never(payload: bytes) -> None:
        pytest.fail("the payload was parsed")

    monkeypatch.setattr(policy, "parse_statement", never)
    assert check(ONE, P256).state is Verdict.UNKNOWN_KEY
    assert check(ONE).state is Verdict.NOT_CHECKED


def test_as_json() -> None:
    text = json.dumps(check(ONE, ED25519).to_dict())
    assert json.loads(text) == {
        "schema": 1,
        "state": "verified",
        "required": 1,
        "verified_by": [ED25519.key_id],
        "signatures": [{"key_id": ED25519.key_id, "state": "verified", "algorithm": "Ed25519"}],
        "statement": {
            "name": "root.cfs",
            "size": 8192,
            "format_version": "v1-sha256-12",
            "further": [],
            "digests": {name: value.hex() for name, value in DIGESTS.named().items()},
        },
        "problems": [],
    }
