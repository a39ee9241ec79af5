from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from cfstools.errors import KeyUnusable, UsageError
from cfstools.signing.keys import KeyType, PrivateKey, load_private_key, sign_kernel
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.requirements import need_command
from tests.signing.conftest import key_of

FILE = b"some image" * 1000
DIGESTS = {algorithm: digest_bytes(FILE, Params(algorithm=algorithm)) for algorithm in Algorithm}


class Certified(NamedTuple):
    key: PrivateKey
    key_path: str
    certificate_path: str
    certificate: bytes


def certified(key: PrivateKey, directory: Path) -> Certified:
    need_command("openssl")
    key_path, certificate_path = directory / "key.pem", directory / "certificate.pem"
    key_path.write_bytes(key.pem())
    request = ["openssl", "req", "-x509", "-new", "-key", str(key_path), "-out", str(certificate_path), "-days", "3650"]
    subprocess.run([*request, "-subj", "/C=DE/O=cfstools tests/CN=é kernel", "-utf8"], check=True, capture_output=True)
    return Certified(key, str(key_path), str(certificate_path), certificate_path.read_bytes())


@pytest.fixture(params=[KeyType.RSA, KeyType.P256, KeyType.P384], ids=lambda kind: kind.value)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Certified:
    return certified(key_of(request.param), tmp_path)


@pytest.fixture
def rsa_pair(rsa: PrivateKey, tmp_path: Path) -> Certified:
    return certified(rsa, tmp_path)


def formatted(algorithm: Algorithm) -> bytes:
    """fsverity_formatted_digest, written down here once more."""
    digest = DIGESTS[algorithm]
    return b"FSVerity" + struct.pack("<HH", algorithm.number, len(digest)) + digest


def by_openssl(pair: Certified, algorithm: Algorithm, directory: Path) -> bytes:
    data, signature = directory / "formatted", directory / "openssl.p7s"
    data.write_bytes(formatted(algorithm))
    words = ["-sign", "-binary", "-noattr", "-nocerts", "-outform", "DER", "-md", algorithm.value]
    keys = ["-signer", pair.certificate_path, "-inkey", pair.key_path]
    subprocess.run(["openssl", "smime", *words, *keys, "-in", data, "-out", signature], check=True)
    return signature.read_bytes()


def by_fsverity(pair: Certified, algorithm: Algorithm, directory: Path) -> bytes:
    need_command("fsverity")
    data, signature = directory / "file", directory / "fsverity.p7s"
    data.write_bytes(FILE)
    keys = [f"--key={pair.key_path}", f"--cert={pair.certificate_path}", f"--hash-alg={algorithm.value}"]
    subprocess.run(["fsverity", "sign", data, signature, *keys], check=True, capture_output=True)
    return signature.read_bytes()


@pytest.mark.parametrize("algorithm", Algorithm)
def test_rsa_gives_the_bytes_of_openssl_and_fsverity(rsa_pair: Certified, algorithm: Algorithm, tmp_path: Path) -> None:
    ours = sign_kernel(DIGESTS[algorithm], algorithm.number, rsa_pair.key, rsa_pair.certificate)
    assert ours == by_openssl(rsa_pair, algorithm, tmp_path)
    assert ours == by_fsverity(rsa_pair, algorithm, tmp_path)


def without_signature(der: bytes) -> list[str]:
    """The structure that openssl sees, without lengths and without the signature at its end."""
    text = subprocess.run(["openssl", "asn1parse", "-inform", "DER"], input=der, check=True, capture_output=True)
    lines = [line.split("l=")[-1].split(maxsplit=1)[1] for line in text.stdout.decode().splitlines()]
    assert "OCTET STRING" in lines[-1]
    return lines[:-1]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_key_gives_what_openssl_accepts(pair: Certified, algorithm: Algorithm, tmp_path: Path) -> None:
    signature = tmp_path / "ours.p7s"
    ours = sign_kernel(DIGESTS[algorithm], algorithm.number, pair.key, pair.certificate)
    assert without_signature(ours) == without_signature(by_openssl(pair, algorithm, tmp_path))
    signature.write_bytes(ours)
    words = ["-verify", "-binary", "-noverify", "-nointern", "-inform", "DER", "-in", str(signature)]
    files = ["-content", str(tmp_path / "formatted"), "-certfile", pair.certificate_path]
    checked = subprocess.run(["openssl", "smime", *words, *files], capture_output=True, check=True)
    assert checked.stdout == formatted(algorithm)
    (tmp_path / "formatted").write_bytes(formatted(algorithm)[:-1] + b"x")
    assert subprocess.run(["openssl", "smime", *words, *files], capture_output=True, check=False).returncode != 0


def test_the_certificate_has_to_be_for_the_key(rsa_pair: Certified, p256: PrivateKey) -> None:
    with pytest.raises(KeyUnusable, match="certificate is for another key"):
        sign_kernel(DIGESTS[Algorithm.SHA256], 1, p256, rsa_pair.certificate)


def test_ed25519_is_refused(ed25519: PrivateKey, tmp_path: Path) -> None:
    pair = certified(ed25519, tmp_path)
    with pytest.raises(KeyUnusable, match="RSA or ECDSA key, not Ed25519"):
        sign_kernel(DIGESTS[Algorithm.SHA256], 1, ed25519, pair.certificate)


def test_a_key_is_no_certificate(rsa_pair: Certified) -> None:
    with pytest.raises(KeyUnusable, match="no certificate"):
        sign_kernel(DIGESTS[Algorithm.SHA256], 1, rsa_pair.key, rsa_pair.key.pem())


def test_digests_of_another_algorithm(rsa_pair: Certified) -> None:
    for number, size in ((1, 64), (2, 32), (3, 32), (1, 0)):
        with pytest.raises(UsageError):
            sign_kernel(bytes(size), number, rsa_pair.key, rsa_pair.certificate)


def test_an_encrypted_key_signs_too(rsa_pair: Certified) -> None:
    key = load_private_key(rsa_pair.key.pem(b"secret"), b"secret")
    again = sign_kernel(DIGESTS[Algorithm.SHA256], 1, key, rsa_pair.certificate)
    assert again == sign_kernel(DIGESTS[Algorithm.SHA256], 1, rsa_pair.key, rsa_pair.certificate)
