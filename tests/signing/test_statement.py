from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing import ImageDigests, make_statement, parse_statement
from cfstools.signing.statement import PREDICATE_TYPE, renamed
from cfstools.strictjson import dump_canonical
from tests.signing.conftest import DIGESTS, STATEMENT

SHA512 = DIGESTS._replace(fsverity=bytes(64))


def changed(**members: Any) -> bytes:
    return dump_canonical({**json.loads(STATEMENT), **members})


def with_subject(**members: Any) -> bytes:
    return changed(subject=[{**json.loads(STATEMENT)["subject"][0], **members}])


def with_digests(**members: Any) -> bytes:
    digests = {**json.loads(STATEMENT)["subject"][0]["digest"], **{k.replace("_", "-"): v for k, v in members.items()}}
    return with_subject(digest={key: value for key, value in digests.items() if value != "gone"})


def test_the_bytes() -> None:
    assert DIGESTS.fsverity is not None
    assert DIGESTS.sha256 is not None
    assert STATEMENT.decode() == (
        '{"_type":"https://in-toto.io/Statement/v1",'
        '"predicate":{"formatVersion":"v1-sha256-12","size":8192},'
        '"predicateType":"urn:cfstools:composefs-image:v1",'
        f'"subject":[{{"digest":{{"fsverity-sha256-12":"{DIGESTS.fsverity.hex()}","sha256":"{DIGESTS.sha256.hex()}"}},'
        '"name":"root.cfs"}]}'
    )


def test_it_reads_what_it_writes() -> None:
    statement = parse_statement(STATEMENT)
    assert (statement.name, statement.size, statement.format_version) == ("root.cfs", 8192, "v1-sha256-12")
    assert statement.digests == DIGESTS.named()
    assert statement.difference(DIGESTS) is None


def test_sha512() -> None:
    statement = parse_statement(make_statement(b"x", SHA512, "v1-sha512-12"))
    assert statement.digests["fsverity-sha512-12"] == bytes(64)
    assert statement.difference(SHA512) is None


@given(st.binary(max_size=255))
def test_any_file_name(name: bytes) -> None:
    statement = parse_statement(make_statement(name, DIGESTS, "v0-sha256-12"))
    assert statement.name == name.decode("utf-8", "backslashreplace")


def test_renamed_is_what_would_have_been_made() -> None:
    assert renamed(STATEMENT, "other é") == make_statement("other é".encode(), DIGESTS, "v1-sha256-12")


@pytest.mark.parametrize(
    "image",
    [
        ImageDigests(size=1),
        ImageDigests(size=1, sha256=bytes(32)),
        ImageDigests(size=1, fsverity=bytes(32)),
        ImageDigests(size=1, fsverity=bytes(33), sha256=bytes(32)),
        ImageDigests(size=1, fsverity=bytes(32), sha256=bytes(31)),
    ],
)
def test_digests_that_cannot_be_signed(image: ImageDigests) -> None:
    with pytest.raises(UsageError):
        make_statement(b"x", image, "v1-sha256-12")


@pytest.mark.parametrize("word", ["", "V1", "v1 sha256", "v1-" + "x" * 64])
def test_format_versions_are_words(word: str) -> None:
    with pytest.raises(UsageError, match="is not a format version"):
        make_statement(b"x", DIGESTS, word)


def test_one_digest_is_enough_to_compare() -> None:
    statement = parse_statement(STATEMENT)
    assert statement.difference(ImageDigests(size=8192, sha256=DIGESTS.sha256)) is None
    assert statement.difference(ImageDigests(size=8192, fsverity=DIGESTS.fsverity)) is None
    assert statement.difference(SHA512) is None, "the SHA-256 is common"


def test_differences() -> None:
    statement = parse_statement(STATEMENT)
    assert DIGESTS.fsverity is not None
    other = DIGESTS._replace(fsverity=bytes(32))
    assert statement.difference(other) == (
        f"it is for an image with fsverity-sha256-12 {DIGESTS.fsverity.hex()}, this one has {bytes(32).hex()}"
    )
    plain = DIGESTS._replace(sha256=bytes(32))
    assert "with sha256 " in str(statement.difference(plain))
    longer = DIGESTS._replace(size=8193)
    assert statement.difference(longer) == "it is for an image of 8192 bytes, this one has 8193"
    strange = ImageDigests(size=8192, fsverity=bytes(64))
    assert "no digest to compare" in str(statement.difference(strange))
    assert "no digest to compare" in str(statement.difference(ImageDigests(size=8192)))


def test_members_nobody_knows_are_ignored() -> None:
    assert parse_statement(changed(extra=1)) == parse_statement(STATEMENT)
    assert parse_statement(with_subject(uri="x")) == parse_statement(STATEMENT)
    assert parse_statement(with_digests(gitTree="zz")) == parse_statement(STATEMENT)


def test_other_subjects_may_stand_beside_the_image() -> None:
    manifest = bytes(range(32))
    statement = make_statement(b"image.cfs", DIGESTS, "v1-sha256-12", further={"docker://registry/app": manifest})
    parsed = parse_statement(statement)
    assert parsed.further == (manifest,)
    assert parsed.difference(DIGESTS) is None
    body = json.loads(statement)
    odd: list[object] = [{"digest": {"sha256": "AB" * 32}}, {"digest": {"sha1": "ab"}}, {"digest": 1}, {}]
    body["subject"] = [*odd, *body["subject"][::-1]]
    assert parse_statement(dump_canonical(body)) == parsed


def test_a_name_is_not_needed() -> None:
    body = json.loads(STATEMENT)
    del body["subject"][0]["name"]
    assert parse_statement(dump_canonical(body)).name == ""


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (changed(_type="https://in-toto.io/Statement/v0.1"), "_type is 'https://in-toto.io/Statement/v0.1', not https"),
        (changed(_type=None), "_type is missing, not https"),
        (changed(predicateType="https://slsa.dev/provenance/v1"), f"provenance/v1', not {PREDICATE_TYPE}"),
        (changed(predicateType="x" * 100), r"xxx\.\.\.', not urn"),
        (changed(predicateType=["urn"]), "predicateType is missing"),
        (changed(subject=None), "no list of subjects"),
        (changed(subject=[]), "no list of subjects"),
        (changed(subject=[1]), "no list of subjects"),
        (changed(subject=json.loads(STATEMENT)["subject"] * 2), "fs-verity digest, more than one has"),
        (changed(subject=[{"name": "other", "digest": {"sha256": "ab" * 32}}]), "fs-verity digest, none has"),
        (with_subject(name=1), "name is not a string"),
        (with_subject(digest=None), "fs-verity digest, none has"),
        (with_subject(digest={}), "fs-verity digest, none has"),
        (with_digests(fsverity_sha256_12="gone"), "fs-verity digest, none has"),
        (with_digests(sha256="ab"), "sha256 is not 64 lower-case hexadecimal digits"),
        (with_digests(sha256="A" * 64), "sha256 is not 64 lower-case"),
        (with_digests(sha256="é" * 64), "sha256 is not 64 lower-case"),
        (with_digests(fsverity_sha512_12=1), "fsverity-sha512-12 is not 128 lower-case"),
        (changed(predicate=None), "no predicate"),
        (changed(predicate={"size": 1}), "formatVersion is not"),
        (changed(predicate={"size": 1, "formatVersion": "V 1"}), "formatVersion is not"),
        (changed(predicate={"size": -1, "formatVersion": "v1"}), "size is not"),
        (changed(predicate={"size": True, "formatVersion": "v1"}), "size is not"),
        (changed(predicate={"size": 1.0, "formatVersion": "v1"}), "size is not"),
        (changed(predicate={"size": 2**63, "formatVersion": "v1"}), "size is not"),
        (b" " * 70000, "larger than 65536"),
    ],
)
def test_what_is_no_statement_of_ours(payload: bytes, what: str) -> None:
    with pytest.raises(SignatureInvalid, match=what) as caught:
        parse_statement(payload)
    assert caught.value.where == "statement"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=2))


@given(st.dictionaries(st.sampled_from(["_type", "subject", "predicate", "predicateType", "other"]), JSON))
def test_any_members_are_a_statement_or_refused(members: dict[str, object]) -> None:
    try:
        parse_statement(changed(**members))
    except SignatureInvalid:
        pass
    else:
        assert not members.keys() - {"other"}
