from __future__ import annotations

import base64
import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import ed25519 as ed
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import KeyUnusable, PassphraseNeeded, UsageError
from cfstools.signing import keys
from cfstools.signing.keys import (
    KeyType,
    PrivateKey,
    PublicKey,
    certificate_key,
    generate,
    load_certificate,
    load_private_key,
    load_public_key,
)
from tests.requirements import need_command
from tests.signing.conftest import key_of


def openssl(*words: str, data: bytes | None = None) -> bytes:
    need_command("openssl")
    return subprocess.run(["openssl", *words], input=data, capture_output=True, check=True).stdout


def test_the_room_itself_imports_no_cryptography() -> None:
    code = "import sys, cfstools.signing; sys.exit(any(name.startswith('cryptography') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ed25519_is_the_default() -> None:
    assert generate().algorithm == "Ed25519"


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        (KeyType.ED25519, "Ed25519"),
        (KeyType.P256, "ECDSA P-256"),
        (KeyType.P384, "ECDSA P-384"),
        (KeyType.RSA, "RSA-3072"),
    ],
)
def test_algorithm_names(kind: KeyType, algorithm: str) -> None:
    assert key_of(kind).algorithm == algorithm


@pytest.mark.parametrize("bits", [0, 2048, 3071, 3073, 16384])
def test_sizes_that_no_new_rsa_key_may_have(bits: int) -> None:
    with pytest.raises(UsageError, match=f"^{bits} bits"):
        generate(KeyType.RSA, rsa_bits=bits)


def test_private_key_survives_pem(key: PrivateKey) -> None:
    again = load_private_key(key.pem())
    assert again.pem() == key.pem()
    assert again.key_id == key.key_id


def test_public_key_survives_pem(key: PrivateKey) -> None:
    assert load_public_key(key.verifier.pem()) == key.verifier


def test_encrypted_private_key(key: PrivateKey) -> None:
    pem = key.pem(b"correct horse")
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert load_private_key(pem, b"correct horse").pem() == key.pem()
    assert openssl("pkey", "-passin", "pass:correct horse", data=pem) == key.pem()


def test_key_id_is_the_hash_of_what_openssl_writes(key: PrivateKey) -> None:
    der = openssl("pkey", "-pubout", "-outform", "DER", data=key.pem())
    assert key.key_id == hashlib.sha256(der).hexdigest()


def test_signatures_hold_and_only_for_their_data(key: PrivateKey) -> None:
    signature = key.sign(b"data")
    assert key.verifier.verify(b"data", signature)
    assert not key.verifier.verify(b"date", signature)
    assert not key.verifier.verify(b"data", signature[:-1])
    assert not key.verifier.verify(b"data", b"")


@pytest.mark.parametrize("other", KeyType)
def test_a_signature_of_another_key_does_not_hold(key: PrivateKey, other: KeyType) -> None:
    made = openssl("genpkey", "-algorithm", "RSA") if other is KeyType.RSA else generate(other).pem()
    stranger = load_private_key(made)
    assert not key.verifier.verify(b"data", stranger.sign(b"data"))


@pytest.mark.parametrize("kind", [KeyType.ED25519, KeyType.RSA])
def test_these_signatures_are_deterministic(kind: KeyType) -> None:
    assert key_of(kind).sign(b"data") == key_of(kind).sign(b"data")


def test_ecdsa_is_deterministic_where_openssl_can(p256: PrivateKey) -> None:
    try:
        ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        assert p256.sign(b"data") != p256.sign(b"data")
    else:
        assert p256.sign(b"data") == p256.sign(b"data")


def test_ecdsa_signs_without_rfc_6979_too(p256: PrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ec.ECDSA

    def old(digest: hashes.HashAlgorithm, *, deterministic_signing: bool = False) -> ec.ECDSA:
        if deterministic_signing:
            raise UnsupportedAlgorithm("OpenSSL is too old")
        return plain(digest)

    monkeypatch.setattr(keys, "ec", SimpleNamespace(**{**vars(ec), "ECDSA": old}))
    assert p256.sign(b"data") != p256.sign(b"data")
    assert p256.verifier.verify(b"data", p256.sign(b"data"))


GENPKEY = [
    ("-algorithm", "ED25519"),
    ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
]


@pytest.mark.parametrize("options", GENPKEY, ids=lambda options: options[-1])
def test_keys_of_openssl_genpkey(options: tuple[str, ...]) -> None:
    pem = openssl("genpkey", *options)
    public = load_public_key(openssl("pkey", "-pubout", data=pem))
    assert load_private_key(pem).verifier == public
    encrypted = openssl("pkey", "-aes256", "-passout", "pass:secret", data=pem)
    assert load_private_key(encrypted, b"secret").verifier == public


@pytest.mark.parametrize("options", GENPKEY[1:], ids=lambda options: options[-1])
def test_traditional_pem(options: tuple[str, ...]) -> None:
    pem = openssl("genpkey", *options)
    key_id = load_private_key(pem).key_id
    traditional = openssl("pkey", "-traditional", data=pem)
    assert traditional.startswith((b"-----BEGIN EC PRIVATE KEY-----", b"-----BEGIN RSA PRIVATE KEY-----"))
    assert load_private_key(traditional).key_id == key_id
    encrypted = openssl("pkey", "-traditional", "-aes128", "-passout", "pass:secret", data=pem)
    assert b"Proc-Type: 4,ENCRYPTED" in encrypted
    assert load_private_key(encrypted, b"secret").key_id == key_id
    with pytest.raises(PassphraseNeeded):
        load_private_key(encrypted)


def test_ec_parameters_and_other_text_around_a_key() -> None:
    pem = openssl("ecparam", "-genkey", "-name", "prime256v1")
    assert pem.startswith(b"-----BEGIN EC PARAMETERS-----")
    assert load_private_key(b"my key:\r\n" + pem.replace(b"\n", b"\r\n") + b"\nend").algorithm == "ECDSA P-256"


def test_rsa_public_key_in_pkcs1(rsa: PrivateKey) -> None:
    pem = openssl("rsa", "-RSAPublicKey_out", data=rsa.pem())
    assert pem.startswith(b"-----BEGIN RSA PUBLIC KEY-----")
    assert load_public_key(pem) == rsa.verifier


def test_a_passphrase_for_a_plain_key_is_not_needed(ed25519: PrivateKey) -> None:
    assert load_private_key(ed25519.pem(), b"secret").key_id == ed25519.key_id


@pytest.mark.parametrize("empty", [None, b""])
def test_missing_passphrase(ed25519: PrivateKey, empty: bytes | None) -> None:
    with pytest.raises(PassphraseNeeded, match="encrypted") as caught:
        load_private_key(ed25519.pem(b"secret"), empty)
    assert caught.value.hint == "give its passphrase"


def test_wrong_passphrase(ed25519: PrivateKey) -> None:
    with pytest.raises(KeyUnusable, match=r"^wrong passphrase, or") as caught:
        load_private_key(ed25519.pem(b"secret"), b"Secret")
    assert not isinstance(caught.value, PassphraseNeeded)
    assert "Secret" not in str(caught.value)


def test_passphrases_of_impossible_length(ed25519: PrivateKey) -> None:
    for passphrase in (b"", b"x" * 1024):
        with pytest.raises(UsageError, match="1 to 1023"):
            ed25519.pem(passphrase)
    assert load_private_key(ed25519.pem(b"x" * 1023), b"x" * 1023).key_id == ed25519.key_id
    with pytest.raises(KeyUnusable, match="at most 1023"):
        load_private_key(ed25519.pem(b"secret"), b"x" * 1024)


def test_no_key_material_in_texts(key: PrivateKey) -> None:
    assert repr(key) == f"PrivateKey({key.algorithm}, {key.key_id})"
    lines = key.pem().splitlines()
    lines[1] = lines[1][::-1]
    with pytest.raises(KeyUnusable) as caught:
        load_private_key(b"\n".join(lines))
    shown = f"{caught.value}{caught.value.hint}{caught.value!r}"
    assert not any(line.decode() in shown for line in lines[1:-1])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        (b"ENCRYPTED SIGSTORE PRIVATE KEY", "cosign import-key-pair"),
        (b"ENCRYPTED COSIGN PRIVATE KEY", "cosign import-key-pair"),
        (b"OPENSSH PRIVATE KEY", "ssh-keygen -p -m PKCS8"),
        (b"PUBLIC KEY", "public half"),
        (b"CERTIFICATE", "public half"),
    ],
)
def test_what_is_no_private_key_for_us(label: bytes, hint: str) -> None:
    text = b"-----BEGIN %b-----\nAAAA\n-----END %b-----\n" % (label, label)
    with pytest.raises(KeyUnusable, match=f"no private key .* {label.decode()}$") as caught:
        load_private_key(text)
    assert hint in str(caught.value.hint)


def test_a_private_key_is_no_public_key(key: PrivateKey) -> None:
    with pytest.raises(KeyUnusable, match="no public key") as caught:
        load_public_key(key.pem())
    assert "-pubout" in str(caught.value.hint)


def test_another_label_has_no_hint() -> None:
    with pytest.raises(KeyUnusable, match=r"but X509 CRL$") as caught:
        load_public_key(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    assert caught.value.hint is None


def test_der_is_refused_with_the_way_out(key: PrivateKey) -> None:
    with pytest.raises(KeyUnusable, match="not in PEM form") as caught:
        load_public_key(key.verifier.der)
    assert "-inform DER" in str(caught.value.hint)


def test_two_keys_in_one_file(ed25519: PrivateKey, p256: PrivateKey) -> None:
    with pytest.raises(KeyUnusable, match="2 private keys"):
        load_private_key(ed25519.pem() + p256.pem())
    with pytest.raises(KeyUnusable, match="2 public keys"):
        load_public_key(ed25519.verifier.pem() + p256.verifier.pem())


def test_sizes_are_bounded() -> None:
    with pytest.raises(KeyUnusable, match="at most 65536"):
        load_private_key(b"x" * 65537)
    block = b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 20000 + b"\n-----END PRIVATE KEY-----\n"
    with pytest.raises(KeyUnusable, match="at most 16384 bytes of PEM"):
        load_private_key(block)


WEAK = [
    (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "1024 bits: 2048 to 16384"),
    (("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_pubexp:3"), "public exponent 3: odd ones from 65537"),
    (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"), "curve secp521r1 is not accepted"),
    (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"), "curve secp256k1 is not accepted"),
    (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"), "curve brainpoolP256r1 is not accepted"),
    (("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:sect283k1"), "sect283k1 is not accepted|not supported"),
    (("-algorithm", "X25519"), "type X25519 are not used for signing"),
    (("-algorithm", "ED448"), "type Ed448 are not used for signing"),
]


@pytest.mark.parametrize(("options", "why"), WEAK, ids=lambda value: value[-1] if isinstance(value, tuple) else "")
def test_weak_and_strange_keys_are_refused_with_the_reason(options: tuple[str, ...], why: str) -> None:
    pem = openssl("genpkey", *options)
    with pytest.raises(KeyUnusable, match=why):
        load_private_key(pem)
    with pytest.raises(KeyUnusable, match=why):
        load_public_key(openssl("pkey", "-pubout", data=pem))


def test_dsa_is_refused(tmp_path: Path) -> None:
    parameters = tmp_path / "parameters"
    openssl("genpkey", "-genparam", "-algorithm", "DSA", "-pkeyopt", "dsa_paramgen_bits:1024", "-out", str(parameters))
    pem = openssl("genpkey", "-paramfile", str(parameters))
    with pytest.raises(KeyUnusable, match="type DSA are not used for signing"):
        load_private_key(pem)


P25519 = 2**255 - 19


def times_eight(y: int) -> tuple[int, int] | None:
    """Eight times the point with this y on edwards25519; None if there is no such point."""
    d = -121665 * pow(121666, -1, P25519) % P25519
    square = (y * y - 1) * pow(d * y * y + 1, -1, P25519) % P25519
    x = pow(square, (P25519 + 3) // 8, P25519)
    if x * x % P25519 != square:
        x = x * pow(2, (P25519 - 1) // 4, P25519) % P25519
    if x * x % P25519 != square:
        return None
    y %= P25519
    for _ in range(3):
        t = d * x * x * y * y % P25519
        x, y = 2 * x * y * pow(1 + t, -1, P25519) % P25519, (y * y + x * x) * pow(1 - t, -1, P25519) % P25519
    return x, y


@pytest.mark.parametrize("encoded", sorted(keys._SMALL_ORDER), ids=bytes.hex)
@pytest.mark.parametrize("sign", [0, 0x80])
def test_ed25519_points_of_small_order_are_refused(encoded: bytes, sign: int) -> None:
    assert times_eight(int.from_bytes(encoded, "little")) == (0, 1)
    point = ed.Ed25519PublicKey.from_public_bytes(encoded[:31] + bytes([encoded[31] | sign]))
    with pytest.raises(KeyUnusable, match="small order"):
        PublicKey(point)


def test_other_ed25519_points_are_not_of_small_order() -> None:
    assert times_eight(4 * pow(5, -1, P25519) % P25519) != (0, 1)


def certificate_for(pem: bytes, directory: Path, *options: str) -> bytes:
    path = directory / "certificate-key.pem"
    path.write_bytes(pem)
    subject = ["-subj", "/CN=cfstools test", "-days", "3650"]
    return openssl("req", "-x509", "-new", "-key", str(path), *subject, *options)


def test_a_certificate_stands_for_its_key(key: PrivateKey, tmp_path: Path) -> None:
    certificate = certificate_for(key.pem(), tmp_path)
    assert load_public_key(certificate) == key.verifier
    assert certificate_key(load_certificate(certificate)) == key.verifier
    other = certificate_for(generate().pem(), tmp_path)
    assert load_public_key(certificate + other) == key.verifier, "a chain begins with the certificate of the signer"


def test_damaged_certificates(key: PrivateKey, tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="no certificate"):
        load_certificate(key.verifier.pem())
    with pytest.raises(KeyUnusable, match="certificate is damaged"):
        load_public_key(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    weak = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521")
    with pytest.raises(KeyUnusable, match="secp521r1"):
        load_public_key(certificate_for(weak, tmp_path))


def test_a_certificate_for_a_key_nobody_knows(tmp_path: Path) -> None:
    ed448 = certificate_for(openssl("genpkey", "-algorithm", "ED448"), tmp_path)
    with pytest.raises(KeyUnusable, match="Ed448"):
        load_public_key(ed448)


PEMS = [key_of(kind) for kind in (KeyType.ED25519, KeyType.P256)]
SEEDS = [text for one in PEMS for text in (one.pem(), one.verifier.pem())]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_unusable(data: bytes) -> None:
    for load in (load_private_key, load_public_key, load_certificate):
        with pytest.raises(KeyUnusable):
            load(data)


@given(st.sampled_from(SEEDS), st.integers(0, 2**16), st.integers(0, 255), st.sampled_from([None, b"x"]))
def test_damaged_keys_are_a_key_or_unusable(seed: bytes, place: int, value: int, passphrase: bytes | None) -> None:
    data = bytearray(seed)
    data[place % len(data)] = value
    for parse in (lambda text: load_private_key(text, passphrase), load_public_key):
        with contextlib.suppress(KeyUnusable):
            parse(bytes(data))


@given(
    st.sampled_from([b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY", b"PUBLIC KEY", b"CERTIFICATE"]),
    st.binary(max_size=200),
)
def test_any_der_is_a_key_or_unusable(label: bytes, der: bytes) -> None:
    text = b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, base64.b64encode(der), label)
    for parse in (load_private_key, load_public_key):
        with pytest.raises(KeyUnusable):
            parse(text)
