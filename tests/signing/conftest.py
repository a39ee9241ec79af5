"""One key of each kind and one image for all tests of signatures."""

from __future__ import annotations

import hashlib

import pytest

from cfstools.signing import ImageDigests, make_statement
from cfstools.signing.keys import KeyType, PrivateKey, generate
from cfstools.verity import digest_bytes

IMAGE = bytes(range(256)) * 32
DIGESTS = ImageDigests(size=len(IMAGE), sha256=hashlib.sha256(IMAGE).digest(), fsverity=digest_bytes(IMAGE))
STATEMENT = make_statement(b"root.cfs", DIGESTS, "v1-sha256-12")

_KEYS: dict[KeyType, PrivateKey] = {}


def key_of(kind: KeyType) -> PrivateKey:
    """The key of this kind, made at its first use."""
    if kind not in _KEYS:
        _KEYS[kind] = generate(kind)
    return _KEYS[kind]


@pytest.fixture(params=list(KeyType), ids=lambda kind: kind.value)
def key(request: pytest.FixtureRequest) -> PrivateKey:
    return key_of(request.param)


@pytest.fixture
def ed25519() -> PrivateKey:
    return key_of(KeyType.ED25519)


@pytest.fixture
def p256() -> PrivateKey:
    return key_of(KeyType.P256)


@pytest.fixture
def rsa() -> PrivateKey:
    return key_of(KeyType.RSA)
