"""Statements that others may write by the document: each set of digests with one of fs-verity in it is enough."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from cfstools.api.mountable import _check_signature
from cfstools.api.verify import verify
from cfstools.errors import SignatureInvalid
from cfstools.signing import Verdict, sign_envelope
from cfstools.signing.files import signed_file
from cfstools.signing.keys import KeyType
from cfstools.signing.statement import FSVERITY, PLAIN, PREDICATE_TYPE, STATEMENT_TYPE
from cfstools.strictjson import dump_canonical
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.api.trust import Place, key_of

NAMES = [PLAIN, *FSVERITY.values()]
SETS = [names for size in (1, 2, 3) for names in itertools.combinations(NAMES, size) if names != (PLAIN,)]
KEY = key_of(KeyType.ED25519)


@pytest.fixture(params=Algorithm, ids=lambda algorithm: algorithm.value)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.source.mkdir()
    (made.source / "file").write_bytes(b"x" * 5000)
    made.build(algorithm=request.param)
    return made


def digests_of(image: bytes, names: tuple[str, ...]) -> dict[str, str]:
    every = {name: digest_bytes(image, Params(algorithm=algorithm)).hex() for algorithm, name in FSVERITY.items()}
    every[PLAIN] = hashlib.sha256(image).hexdigest()
    return {name: every[name] for name in names}


def sign(place: Place, digests: dict[str, str], **changes: object) -> None:
    statement = {
        "_type": STATEMENT_TYPE,
        "predicateType": PREDICATE_TYPE,
        "predicate": {"formatVersion": "v1-sha256-12", "size": place.image_file.stat().st_size},
        "subject": [{"digest": digests}],
        **changes,
    }
    place.signature_file.write_bytes(sign_envelope(dump_canonical(statement), [KEY]))


def check(place: Place, *, holds: bool) -> None:
    """What `verify` and what `mount` say of the signature."""
    report = verify(place.image, keys=[KEY.verifier], stores=[place.store])
    assert report.ok is holds, report.problems
    assert report.signature.state is (Verdict.VERIFIED if holds else Verdict.MISMATCH)
    file = signed_file(place.image, memoryview(place.image_file.read_bytes()))
    if holds:
        assert _check_signature(file, [KEY.verifier]) == (KEY.key_id,)
    else:
        with pytest.raises(SignatureInvalid):
            _check_signature(file, [KEY.verifier])


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_any_set_with_an_fs_verity_digest_verifies(names: tuple[str, ...], place: Place) -> None:
    sign(place, digests_of(place.image_file.read_bytes(), names))
    check(place, holds=True)


@pytest.mark.parametrize(("names", "wrong"), [(names, wrong) for names in SETS for wrong in names], ids=str)
def test_no_digest_of_it_may_be_wrong(names: tuple[str, ...], wrong: str, place: Place) -> None:
    digests = digests_of(place.image_file.read_bytes(), names)
    sign(place, {**digests, wrong: digests[wrong][:-1] + ("0" if digests[wrong][-1] != "0" else "1")})
    check(place, holds=False)


@pytest.mark.parametrize("digests", [{}, {PLAIN: None}, {"fsverity-sha256-12": None}, {"gitTree": "00"}], ids=str)
def test_without_an_fs_verity_digest_nothing_is_said(digests: dict[str, str | None], place: Place) -> None:
    plain = digests_of(place.image_file.read_bytes(), (PLAIN,))
    sign(place, json.loads(json.dumps({**plain, **digests})))
    check(place, holds=False)


def test_what_a_reader_does_not_know_is_ignored(place: Place) -> None:
    image = place.image_file.read_bytes()
    digests = {**digests_of(image, ("fsverity-sha512-12",)), "gitTree": "00", "sha512": "zz"}
    predicate = {"formatVersion": "v9-blake3-16", "size": len(image), "more": [1, {"a": None}]}
    sign(place, digests, predicate=predicate, other={"a": 1}, subject=[{"digest": digests, "uri": "x", "name": ""}])
    check(place, holds=True)
