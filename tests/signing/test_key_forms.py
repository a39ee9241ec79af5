"""The forms in which openssl writes keys: each is read as the same key, or refused with the reason and the way out."""

from __future__ import annotations

import base64
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import CfsError, KeyUnusable, LimitExceeded, PassphraseNeeded
from cfstools.signing import der, encryption, forms, sign_envelope
from cfstools.signing.encryption import MAX_ROUNDS, ROUNDS, read_encrypted
from cfstools.signing.keys import KeyType, PrivateKey, _der, load_private_key, load_public_key
from tests.bounds import bounded
from tests.signing.conftest import key_of
from tests.signing.test_document import COMPARE, ED25519, PARTS, STATEMENT, UNPACK, image, run
from tests.signing.test_keys import certificate_for, openssl

SECRET = b"secret"
KINDS = {
    "Ed25519": ("-algorithm", "ED25519"),
    "ECDSA P-256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ECDSA P-384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "RSA-2048": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "RSA-2056": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2056"),
    "RSA-3072": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
    "RSA-4096": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"),
}
PSS = ("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
_MADE: dict[tuple[str, ...], bytes] = {}


def generated(*options: str) -> bytes:
    if options not in _MADE:
        _MADE[options] = openssl("genpkey", *options)
    return _MADE[options]


def public_of(pem: bytes, *options: str) -> bytes:
    return openssl("pkey", "-pubout", *options, data=pem)


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_commands_verify_every_key_that_signs(kind: str, tmp_path: Path) -> None:
    pem = generated(*KINDS[kind])
    key = load_private_key(pem)
    assert key.algorithm == kind
    (tmp_path / "root.cfs").write_bytes(image())
    (tmp_path / "root.cfs.sig").write_bytes(sign_envelope(STATEMENT, [key, key_of_another(key)]))
    (tmp_path / "key.pub").write_bytes(public_of(pem))
    verify = ED25519 if kind == "Ed25519" else PARTS["run", "digest"]
    done = run(tmp_path, UNPACK, verify.replace("-sha256", "-sha384") if kind == "ECDSA P-384" else verify, COMPARE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("signed for this image\n")


def key_of_another(key: PrivateKey) -> PrivateKey:
    return next(other for other in map(key_of, (KeyType.ED25519, KeyType.P256)) if other.key_id != key.key_id)


@pytest.mark.parametrize("kind", KINDS)
def test_public_forms(kind: str, tmp_path: Path) -> None:
    pem = generated(*KINDS[kind])
    expected = load_private_key(pem).verifier
    public = public_of(pem)
    certificate = certificate_for(pem, tmp_path)
    forms = {
        "plain": public,
        "CRLF": public.replace(b"\n", b"\r\n"),
        "text around": b"\xef\xbb\xbfthe key - of mine\n-----\n" + public + b"\n-- \nend",
        "spaces behind lines": public.replace(b"\n", b" \n"),
        "no last newline": public.rstrip(b"\n"),
        "one long line": b"-----BEGIN PUBLIC KEY-----\n%b\n-----END PUBLIC KEY-----" % base64.b64encode(expected.der),
        "text of openssl": openssl("pkey", "-pubin", "-text", data=public),
        "certificate": certificate,
        "chain": certificate + certificate_for(generated(*KINDS["RSA-2048"]), tmp_path),
    }
    if kind.startswith("RSA"):
        forms["PKCS#1"] = openssl("rsa", "-pubin", "-RSAPublicKey_out", data=public)
    for name, text in forms.items():
        assert load_public_key(text) == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_private_forms(kind: str) -> None:
    pem = generated(*KINDS[kind])
    expected = load_private_key(pem).key_id
    forms = [pem, pem.replace(b"\n", b"\r\n"), b"mine\n" + pem, openssl("pkey", "-text", data=pem)]
    if kind != "Ed25519":
        forms.append(openssl("pkey", "-traditional", data=pem))
    for text in forms:
        assert load_private_key(text).key_id == expected


ENCRYPTIONS = [
    *(("-v2", cipher, "-v2prf", "hmacWithSHA256") for cipher in ("aes-128-cbc", "aes-192-cbc", "aes-256-cbc", "des3")),
    *(("-v2", "aes-256-cbc", "-v2prf", f"hmacWithSHA{size}") for size in (1, 224, 384, 512)),
    ("-v2", "aes-256-cbc", "-iter", "700000"),
    ("-scrypt",),
    ("-scrypt", "-scrypt_N", "8192", "-scrypt_r", "16", "-scrypt_p", "3"),
    ("-v1", "PBE-SHA1-3DES"),
]


@pytest.mark.parametrize("options", ENCRYPTIONS, ids=" ".join)
def test_encryptions_of_openssl(options: tuple[str, ...]) -> None:
    pem = generated(*KINDS["Ed25519"])
    encrypted = openssl("pkcs8", "-topk8", *options, "-passout", "pass:secret", data=pem)
    assert load_private_key(encrypted, SECRET).key_id == load_private_key(pem).key_id
    with pytest.raises(PassphraseNeeded):
        load_private_key(encrypted)
    with pytest.raises(KeyUnusable, match=r"^wrong passphrase, or"):
        load_private_key(encrypted, b"Secret")


@pytest.mark.parametrize("kind", KINDS)
def test_new_keys_take_600000_rounds_and_openssl_reads_them(kind: str) -> None:
    key = load_private_key(generated(*KINDS[kind]))
    pem = key.pem(SECRET)
    parsed = openssl("asn1parse", data=pem).decode()
    assert f"INTEGER           :{ROUNDS:06X}" in parsed
    assert ROUNDS >= 600_000
    for name in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc"):
        assert name in parsed
    assert openssl("pkey", "-passin", "pass:secret", data=pem) == key.pem()
    assert load_private_key(pem, SECRET).key_id == key.key_id
    assert pem != key.pem(SECRET)  # salts are random


def _pbes2(function: bytes, *parameters: bytes) -> bytes:
    """What asks for such a derivation, around nothing."""
    derivation = der.made(der.SEQUENCE, der.made(der.OBJECT, function), der.made(der.SEQUENCE, *parameters))
    vector = der.made(der.OCTET_STRING, bytes(16))
    cipher = der.made(der.SEQUENCE, der.made(der.OBJECT, encryption._AES_256_CBC), vector)
    both = der.made(der.SEQUENCE, derivation, cipher)
    scheme = der.made(der.SEQUENCE, der.made(der.OBJECT, encryption._PBES2), both)
    return _armoured(der.made(der.SEQUENCE, scheme, der.made(der.OCTET_STRING, bytes(32))))


def pbkdf2_key(rounds: int) -> bytes:
    return _pbes2(encryption._PBKDF2, der.made(der.OCTET_STRING, b"salt"), der.made_number(rounds))


def scrypt_key(*numbers: int) -> bytes:
    return _pbes2(encryption._SCRYPT, der.made(der.OCTET_STRING, b"salt"), *map(der.made_number, numbers))


def old_scheme_key(rounds: int) -> bytes:
    """What asks for that many rounds of PKCS#12's own derivation."""
    oid = der.made(der.OBJECT, bytes.fromhex("2a864886f70d010c0103"))
    parameters = der.made(der.SEQUENCE, der.made(der.OCTET_STRING, bytes(8)), der.made_number(rounds))
    scheme = der.made(der.SEQUENCE, oid, parameters)
    return _armoured(der.made(der.SEQUENCE, scheme, der.made(der.OCTET_STRING, bytes(32))))


def _armoured(data: bytes) -> bytes:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n%b\n-----END ENCRYPTED PRIVATE KEY-----\n" % base64.b64encode(data)


@pytest.mark.parametrize("passphrase", [None, SECRET])
@pytest.mark.parametrize("key", [pbkdf2_key, old_scheme_key])
def test_rounds_are_bounded_before_any_is_done(key: Callable[[int], bytes], passphrase: bytes | None) -> None:
    with bounded(0):
        read_encrypted(_der(key(MAX_ROUNDS)))
        for rounds in (MAX_ROUNDS + 1, 2**31 - 1, 2**31, 2**64, 2**2000):
            with pytest.raises(LimitExceeded, match=f"more than {MAX_ROUNDS} rounds"):
                load_private_key(key(rounds), passphrase)


@pytest.mark.parametrize(
    ("numbers", "taken"),
    [
        ((1 << 14, 8, 1), True),
        ((1 << 17, 8, 1), True),
        ((1 << 18, 8, 1), False),
        ((1 << 17, 8, 8), True),
        ((1 << 17, 8, 9), False),
        ((1 << 30, 1, 1), False),
        ((2, 1 << 30, 1), False),
        ((2, 1, 1 << 30), False),
        ((2, 1 << 400, 1), False),
    ],
)
def test_scrypt_is_bounded_before_any_is_done(numbers: tuple[int, ...], taken: bool) -> None:
    with bounded(0):
        if taken:
            assert read_encrypted(_der(scrypt_key(*numbers))).is_known
        else:
            for passphrase in (None, SECRET):
                with pytest.raises(LimitExceeded, match="asks scrypt for more than 128 MiB"):
                    load_private_key(scrypt_key(*numbers), passphrase)


@pytest.mark.parametrize("numbers", [(), (2,), (2, 1), (0, 0, 0), (3, 1, 1), (1, 1, 1), (2, 1, 1, 16)])
def test_scrypt_that_makes_no_sense(numbers: tuple[int, ...]) -> None:
    with pytest.raises(KeyUnusable):
        load_private_key(scrypt_key(*numbers), SECRET)


def explicit(curve: str) -> bytes:
    return openssl("pkey", "-ec_param_enc", "explicit", data=generated(*KINDS[curve]))


def encrypted(pem: bytes) -> bytes:
    return openssl("pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:secret", data=pem)


def test_an_rsa_key_restricted_to_pss_signs_nothing_else(tmp_path: Path) -> None:
    pem = generated(*PSS)
    why = "restricted to PSS, and signatures here are PKCS#1 v1.5"
    for text in (pem, encrypted(pem)):
        with pytest.raises(KeyUnusable, match=why) as caught:
            load_private_key(text, SECRET)
        assert "openssl genpkey -algorithm RSA" in str(caught.value.hint)
    for text in (public_of(pem), certificate_for(pem, tmp_path)):
        with pytest.raises(KeyUnusable, match=why):
            load_public_key(text)


def test_pss_with_parameters() -> None:
    pem = generated(*PSS, "-pkeyopt", "rsa_pss_keygen_md:sha256", "-pkeyopt", "rsa_pss_keygen_saltlen:32")
    for load, text in ((load_private_key, pem), (load_public_key, public_of(pem))):
        with pytest.raises(KeyUnusable, match="restricted to PSS"):
            load(text)


def test_an_outdated_encryption_hides_what_an_rsa_key_is_for() -> None:
    for options in (PSS, KINDS["RSA-2048"]):
        old = openssl("pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES", "-passout", "pass:secret", data=generated(*options))
        with pytest.raises(KeyUnusable, match="encrypted in an outdated way") as caught:
            load_private_key(old, SECRET)
        assert "openssl pkcs8 -topk8" in str(caught.value.hint)


@pytest.mark.parametrize("curve", ["ECDSA P-256", "ECDSA P-384"])
def test_explicit_parameters_have_a_way_out(curve: str, tmp_path: Path) -> None:
    pem = explicit(curve)
    traditional = openssl("ec", "-param_enc", "explicit", data=pem)
    assert b"BEGIN EC PRIVATE KEY" in traditional
    for text in (pem, encrypted(pem), traditional):
        with pytest.raises(KeyUnusable, match="parameters of its curve written out") as caught:
            load_private_key(text, SECRET)
    again = followed(str(caught.value.hint), pem, tmp_path)
    assert load_private_key(again).key_id == load_private_key(generated(*KINDS[curve])).key_id
    public = public_of(pem)
    with pytest.raises(KeyUnusable, match="parameters of its curve written out") as caught:
        load_public_key(public)
    again = followed(str(caught.value.hint), public, tmp_path)
    assert load_public_key(again).key_id == load_private_key(generated(*KINDS[curve])).key_id
    with pytest.raises(KeyUnusable, match="parameters of its curve written out"):
        load_public_key(certificate_for(pem, tmp_path))


@pytest.mark.parametrize("form", ["compressed", "hybrid"])
def test_points_in_other_forms_have_a_way_out(form: str, tmp_path: Path) -> None:
    pem = generated(*KINDS["ECDSA P-256"])
    public = public_of(pem, "-ec_conv_form", form)
    key = load_private_key(pem)
    with pytest.raises(KeyUnusable, match="point is not in the uncompressed form") as caught:
        load_public_key(public)
    assert load_public_key(followed(str(caught.value.hint), public, tmp_path)) == key.verifier
    assert load_private_key(openssl("pkey", "-ec_conv_form", form, data=pem)).key_id == key.key_id


def followed(hint: str, text: bytes, place: Path) -> bytes:
    """What comes out of the command in a hint."""
    (place / "KEY").write_bytes(text)
    command = hint.split("`")[1]
    subprocess.run(shlex.split(command), cwd=place, check=True, capture_output=True)
    return (place / "NEW.pem").read_bytes()


def test_every_id_is_that_of_the_bytes_in_the_file() -> None:
    for options in KINDS.values():
        public = public_of(generated(*options))
        assert load_public_key(public).der == openssl("pkey", "-pubin", "-outform", "DER", data=public)


def test_blocks_without_an_end_take_no_time() -> None:
    with bounded(1 << 16), pytest.raises(KeyUnusable, match="not in PEM form"):
        load_public_key(b"-----BEGIN PUBLIC KEY-----\n" * 2400)
    with bounded(1 << 16), pytest.raises(KeyUnusable, match="not in PEM form"):
        load_public_key(b"-----BEGIN PUBLIC KEY-----\n" + b"-" * 60000)


@pytest.mark.parametrize("cut", range(1, 60))
def test_damaged_encodings_are_refused(cut: int, ed25519: PrivateKey) -> None:
    data = _der(ed25519.pem(SECRET))
    for damaged in (data[:cut], data[:cut] + bytes((data[cut] ^ 0x81,)) + data[cut + 1 :]):
        try:
            key = load_private_key(_armoured(damaged))
        except CfsError:
            continue
        raise AssertionError(key)


def test_bodies_and_hashes_that_no_encrypted_key_has() -> None:
    scheme = der.made(der.SEQUENCE, der.made(6, encryption._PBES2))
    with pytest.raises(ValueError, match="no encrypted data"):
        encryption.read_encrypted(der.made(der.SEQUENCE, scheme, der.made_number(1)))
    unknown = der.made(der.SEQUENCE, der.made(6, b"\x2a"))
    parameters = der.made(der.SEQUENCE, der.made(der.OCTET_STRING, b"salt"), der.made_number(1), unknown)
    with pytest.raises(ValueError, match="unknown hash"):
        encryption._pbkdf2(der.sequence(parameters))


def test_an_encoding_that_has_no_other_reason() -> None:
    stored = der.made(der.SEQUENCE, der.made(der.SEQUENCE, der.made(6, b"\x2a")), der.made(3, b"\0key"))
    with pytest.raises(KeyUnusable, match="not encoded as its id needs it"):
        forms.check_public(stored, b"")
