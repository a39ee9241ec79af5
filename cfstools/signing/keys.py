"""Plain keys: Ed25519, ECDSA over P-256 and P-384, RSA (docs/signatures.md, "Keys").

Importing this module imports cryptography; importing ``cfstools.signing`` does not.
"""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from cfstools.errors import KeyUnusable, PassphraseNeeded, UsageError, naming
from cfstools.linux.contents import read_secret, read_small
from cfstools.signing import forms
from cfstools.signing.encryption import Encrypted, encrypt, read_encrypted
from cfstools.verity import Algorithm, ObjectId, formatted_digest

MAX_KEY_FILE = 1 << 16
MAX_KEY_BLOCK = 1 << 14
MAX_PASSPHRASE = 1023
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384
MIN_NEW_RSA_BITS = 3072
MAX_NEW_RSA_BITS = 8192
MIN_RSA_EXPONENT = 65537
MAX_RSA_EXPONENT = 1 << 32

PublicNumbers = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateNumbers = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVES: dict[str, tuple[str, hashes.HashAlgorithm]] = {
    "secp256r1": ("ECDSA P-256", hashes.SHA256()),
    "secp384r1": ("ECDSA P-384", hashes.SHA384()),
}
# The y coordinates of the eight points of small order and their encodings above the prime: for such a key
# anybody can make a signature that is valid for every message (RFC 8032, section 8.9, "small subgroups").
_SMALL_ORDER = frozenset(
    y.to_bytes(32, "little")
    for y in (
        0,
        1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
    )
)
_PRIVATE = frozenset({"PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"})
_PUBLIC = frozenset({"PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"})
_SIGSTORE = frozenset({"ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"})
# Takes linear time on a block without an end, because the pattern matches in one way only. No possessive quantifiers:
# with them Python before 3.11.3 finds nothing.
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----[ \t]*\r?\n([^-]*(?:-(?!----)[^-]*)*)-----END \1-----")


class KeyType(Enum):
    """The kinds of keys that can be generated; the value is the word on the command line."""

    ED25519 = "ed25519"
    P256 = "ecdsa-p256"
    P384 = "ecdsa-p384"
    RSA = "rsa"


@dataclass(frozen=True)
class PublicKey:
    """An acceptable public key: the :class:`cfstools.signing.Verifier` for real keys."""

    numbers: PublicNumbers

    def __post_init__(self) -> None:
        _refuse_weak(self.numbers)

    @cached_property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo in DER."""
        return self.numbers.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def key_id(self) -> str:
        """SHA-256 of :attr:`der` in hexadecimal."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def algorithm(self) -> str:
        """``Ed25519``, ``ECDSA P-256``, ``ECDSA P-384`` or ``RSA-`` and its bits."""
        match self.numbers:
            case ed25519.Ed25519PublicKey():
                return "Ed25519"
            case rsa.RSAPublicKey():
                return f"RSA-{self.numbers.key_size}"
            case _:
                return _CURVES[self.numbers.curve.name][0]

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM (``PUBLIC KEY``)."""
        return self.numbers.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether *signature* is a valid one of *data* by this key.

        Ed25519 (RFC 8032) signs *data* itself; ECDSA signs its SHA-256 (P-256) or SHA-384 (P-384), in DER; RSA its
        SHA-256, by PKCS#1 v1.5.
        """
        try:
            match self.numbers:
                case ed25519.Ed25519PublicKey():
                    self.numbers.verify(signature, data)
                case rsa.RSAPublicKey():
                    self.numbers.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
                case _:
                    self.numbers.verify(signature, data, ec.ECDSA(_CURVES[self.numbers.curve.name][1]))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """An acceptable private key: the :class:`cfstools.signing.Signer` for real keys."""

    numbers: PrivateNumbers

    def __post_init__(self) -> None:
        _refuse_weak(self.numbers.public_key())

    def __repr__(self) -> str:
        return f"PrivateKey({self.algorithm}, {self.key_id})"

    @cached_property
    def verifier(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.numbers.public_key())

    @property
    def key_id(self) -> str:
        """The key id of the public half."""
        return self.verifier.key_id

    @property
    def algorithm(self) -> str:
        """The algorithm of the public half."""
        return self.verifier.algorithm

    def sign(self, data: bytes) -> bytes:
        """Sign *data* as :meth:`PublicKey.verify` expects it.

        Signatures are deterministic: for ECDSA by RFC 6979, which needs OpenSSL 3.2; with an older one they have a
        random part.
        """
        match self.numbers:
            case ed25519.Ed25519PrivateKey():
                return self.numbers.sign(data)
            case rsa.RSAPrivateKey():
                return self.numbers.sign(data, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return self.numbers.sign(data, _ecdsa(_CURVES[self.numbers.curve.name][1]))

    def pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS#8 in PEM, encrypted if there is a *passphrase* (PBES2, see :mod:`cfstools.signing.encryption`).

        Raises UsageError for a passphrase that is empty or longer than OpenSSL accepts.
        """
        plain = self.numbers.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        if passphrase is None:
            return _pem("PRIVATE KEY", plain)
        if not 1 <= len(passphrase) <= MAX_PASSPHRASE:
            raise UsageError(f"a passphrase has 1 to {MAX_PASSPHRASE} bytes, not {len(passphrase)}")
        return _pem("ENCRYPTED PRIVATE KEY", encrypt(plain, passphrase))


def generate(kind: KeyType = KeyType.ED25519, *, rsa_bits: int = MIN_NEW_RSA_BITS) -> PrivateKey:
    """Generate a key. Raises UsageError for RSA sizes out of range or not a multiple of 256 bits."""
    if kind is KeyType.ED25519:
        return PrivateKey(ed25519.Ed25519PrivateKey.generate())
    if kind is KeyType.P256:
        return PrivateKey(ec.generate_private_key(ec.SECP256R1()))
    if kind is KeyType.P384:
        return PrivateKey(ec.generate_private_key(ec.SECP384R1()))
    if not MIN_NEW_RSA_BITS <= rsa_bits <= MAX_NEW_RSA_BITS or rsa_bits % 256:
        raise UsageError(
            f"{rsa_bits} bits are no size for a new RSA key: "
            f"{MIN_NEW_RSA_BITS} to {MAX_NEW_RSA_BITS}, a multiple of 256"
        )
    return PrivateKey(rsa.generate_private_key(MIN_RSA_EXPONENT, rsa_bits))


def load_private_key(data: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Read the only private key in a PEM text: PKCS#8, or the traditional forms of EC and RSA.

    A *passphrase* is used only if the key is encrypted. Raises PassphraseNeeded if it is encrypted and there is no
    passphrase, LimitExceeded if decryption would take more work than the limits allow, KeyUnusable for other problems.
    """
    label, block = _pick(_blocks(data, "private"), _PRIVATE, "private")
    wrong = "the private key is damaged or not supported"
    encrypted = None
    if label == "ENCRYPTED PRIVATE KEY":
        with _translated(wrong):
            encrypted = read_encrypted(_der(block))
    if encrypted is None and not _is_encrypted_traditionally(block):
        passphrase = None
    elif not passphrase:
        raise PassphraseNeeded("the private key is encrypted", hint="give its passphrase")
    elif len(passphrase) > MAX_PASSPHRASE:
        raise KeyUnusable(f"a passphrase has at most {MAX_PASSPHRASE} bytes")
    with _translated(f"wrong passphrase, or {wrong}" if passphrase else wrong):
        return _private(label, block, encrypted, passphrase)


def _private(label: str, block: bytes, encrypted: Encrypted | None, passphrase: bytes | None) -> PrivateKey:
    """The key of a PEM block. Raises KeyUnusable, and whatever cryptography raises for a damaged one."""
    if passphrase is None or (encrypted is not None and encrypted.is_known):
        plain = _der(block) if encrypted is None or passphrase is None else encrypted.decrypt(passphrase)
        if label == "EC PRIVATE KEY":
            forms.check_traditional(plain)
        elif label != "RSA PRIVATE KEY":
            forms.check_curve(plain, public=False)
        key = _fit(serialization.load_der_private_key(plain, None))
        if label not in {"EC PRIVATE KEY", "RSA PRIVATE KEY"}:
            forms.check_private(plain, key.verifier.der)
        return key
    key = _fit(serialization.load_pem_private_key(block, passphrase))
    if encrypted is not None and isinstance(key.numbers, rsa.RSAPrivateKey):
        # Only cryptography can decrypt these, and it does not tell whether the key is restricted to PSS.
        hint = "`openssl pkcs8 -topk8 -in KEY -out NEW.pem` encrypts it as it is done today"
        raise KeyUnusable("the RSA key is encrypted in an outdated way, which is not read here", hint=hint)
    return key


def _fit(numbers: object) -> PrivateKey:
    if not isinstance(numbers, PrivateNumbers):
        _refuse_kind(numbers)
    return PrivateKey(numbers)


def load_public_key(data: bytes) -> PublicKey:
    """Read the only public key in a PEM text, or that of its first certificate, whose dates are ignored.

    Raises KeyUnusable for anything else, including a private key: a verifier should not have one.
    """
    label, block = _pick(_blocks(data, "public"), _PUBLIC, "public")
    if label == "CERTIFICATE":
        return certificate_key(load_certificate(block))
    with _translated("the public key is damaged or not supported"):
        stored = _der(block)
        if label == "PUBLIC KEY":
            forms.check_curve(stored, public=True)
        key = _public(serialization.load_der_public_key(stored))
        if label == "PUBLIC KEY":
            forms.check_public(stored, key.der)
    return key


def load_certificate(data: bytes) -> x509.Certificate:
    """Read the first certificate in a PEM text. Raises KeyUnusable if there is none or it is damaged."""
    block = next((block for label, block in _blocks(data, "certificate") if label == "CERTIFICATE"), None)
    if block is None:
        raise KeyUnusable("there is no certificate in it")
    with _translated("the certificate is damaged"):
        return x509.load_pem_x509_certificate(block)


def certificate_key(certificate: x509.Certificate) -> PublicKey:
    """The key of *certificate*. Raises KeyUnusable if it is not acceptable."""
    with _translated("the key of the certificate is damaged or not supported"):
        stored = forms.public_of_certificate(certificate.tbs_certificate_bytes)
        forms.check_curve(stored, public=True)
        key = _public(certificate.public_key())
        forms.check_public(stored, key.der)
    return key


def _public(numbers: object) -> PublicKey:
    if not isinstance(numbers, PublicNumbers):
        _refuse_kind(numbers)
    return PublicKey(numbers)


def _blocks(data: bytes, kind: str) -> list[tuple[str, bytes]]:
    """The PEM blocks of *data* with their labels; *kind* is the kind of key wanted, for hints."""
    if len(data) > MAX_KEY_FILE:
        raise KeyUnusable(f"{len(data)} bytes are too many for a key: at most {MAX_KEY_FILE}")
    found = [(match[1].decode("ascii"), match[0] + b"\n") for match in _BLOCK.finditer(data)]
    if not found:
        command = {"public": "pkey -pubin", "private": "pkey"}.get(kind, "x509")
        hint = f"`openssl {command} -inform DER -in FILE -out FILE.pem` turns DER into PEM"
        raise KeyUnusable("it is not in PEM form", hint=hint)
    return found


def _der(block: bytes) -> bytes:
    """The bytes in a PEM block without headers. Raises ValueError for what is not base64."""
    match = _BLOCK.match(block)
    assert match is not None
    return base64.b64decode(b"".join(match[2].split()), validate=True)


def _pem(label: str, data: bytes) -> bytes:
    """A PEM block around *data*, in lines of 64 characters."""
    text = base64.b64encode(data).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode("ascii")


def _pick(blocks: list[tuple[str, bytes]], labels: frozenset[str], kind: str) -> tuple[str, bytes]:
    """The only block with one of *labels*; of several certificates the first."""
    fit = [(label, block) for label, block in blocks if label in labels]
    if not fit:
        _refuse_label(blocks[0][0], kind)
    if len(fit) > 1 and any(label != "CERTIFICATE" for label, _ in fit):
        raise KeyUnusable(f"there are {len(fit)} {kind} keys in it, and it should be one")
    if len(fit[0][1]) > MAX_KEY_BLOCK:
        raise KeyUnusable(f"the {kind} key is too large: at most {MAX_KEY_BLOCK} bytes of PEM")
    return fit[0]


def _refuse_label(label: str, kind: str) -> NoReturn:
    hint = None
    if label in _SIGSTORE:
        hint = (
            "cosign's own encryption is not read here: make the key with `openssl genpkey` and give it to cosign "
            "by `cosign import-key-pair`, or give us the plain PEM it was imported from"
        )
    elif label == "OPENSSH PRIVATE KEY":
        hint = "`ssh-keygen -p -m PKCS8 -f KEY` turns it into PKCS#8"
    elif label in _PUBLIC and kind == "private":
        hint = "this is the public half; signing needs the private one"
    elif label in _PRIVATE and kind == "public":
        hint = "this is a private key; `openssl pkey -in KEY -pubout` gives its public half"
    raise KeyUnusable(f"there is no {kind} key in it, but {label}", hint=hint)


def _is_encrypted_traditionally(block: bytes) -> bool:
    return b"\nProc-Type: 4,ENCRYPTED" in block


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Replace errors of cryptography by *what*: their texts may quote the input."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        raise KeyUnusable(what) from None


def _refuse_kind(numbers: object) -> NoReturn:
    name = type(numbers).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
    raise KeyUnusable(f"keys of type {name} are not used for signing here: use Ed25519, ECDSA P-256 or P-384, or RSA")


def _refuse_weak(numbers: PublicNumbers) -> None:
    """Raise KeyUnusable with the reason for a key that is too weak."""
    if isinstance(numbers, rsa.RSAPublicKey):
        exponent = numbers.public_numbers().e
        if not MIN_RSA_BITS <= numbers.key_size <= MAX_RSA_BITS:
            raise KeyUnusable(f"the RSA key has {numbers.key_size} bits: {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted")
        if exponent % 2 == 0 or not MIN_RSA_EXPONENT <= exponent < MAX_RSA_EXPONENT:
            raise KeyUnusable(
                f"the RSA key has the public exponent {exponent}: odd ones from {MIN_RSA_EXPONENT} "
                f"to {MAX_RSA_EXPONENT - 1} are accepted"
            )
    elif isinstance(numbers, ec.EllipticCurvePublicKey):
        if numbers.curve.name not in _CURVES:
            raise KeyUnusable(f"the curve {numbers.curve.name} is not accepted: P-256 and P-384 are")
    else:
        raw = numbers.public_bytes_raw()
        if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
            raise KeyUnusable("the Ed25519 key is a point of small order: anybody could sign for it")


def _ecdsa(digest: hashes.HashAlgorithm) -> ec.ECDSA:
    try:
        return ec.ECDSA(digest, deterministic_signing=True)
    except UnsupportedAlgorithm:
        return ec.ECDSA(digest)


def read_private_key(
    path: bytes, passphrase: bytes | None = None, *, warn: Callable[[str], None] = lambda _text: None
) -> PrivateKey:
    """The private key in the PEM file *path*; *warn* hears it if others can have it too.

    Raises InputError, PassphraseNeeded, LimitExceeded and KeyUnusable, naming the file.
    """
    with naming(path):
        return load_private_key(read_secret(path, MAX_KEY_FILE + 1, warn), passphrase)


def read_public_key(path: bytes) -> PublicKey:
    """The public key in the PEM file *path*, or that of its certificate. Raises InputError and KeyUnusable."""
    with naming(path):
        return load_public_key(read_small(path, MAX_KEY_FILE + 1))


def sign_kernel(digest: bytes, algorithm_number: int, private_key: PrivateKey, certificate_pem: bytes) -> bytes:
    """A detached PKCS#7 in DER over the fs-verity *digest*, as ``fsverity enable`` takes it.

    Rule: docs/signatures.md, "For the kernel"; Documentation/filesystems/fsverity.rst, "Built-in signature
    verification"; RFC 2315. With an RSA key the bytes are those of ``fsverity sign`` and of ``openssl smime -sign
    -binary -noattr -nocerts``; ECDSA has a random part. ``KeyUnusable`` if the certificate is not for the key or the
    key is Ed25519, ``UsageError`` if the digest is not one of the algorithm with that kernel number.
    """
    from cryptography.hazmat.primitives.serialization import pkcs7

    algorithm = Algorithm.from_number(algorithm_number)
    if len(digest) != algorithm.digest_size:
        raise UsageError(f"a {algorithm.value} digest has {algorithm.digest_size} bytes, not {len(digest)}")
    numbers = private_key.numbers
    if isinstance(numbers, ed25519.Ed25519PrivateKey):
        raise KeyUnusable("the kernel's signatures need an RSA or ECDSA key, not Ed25519")
    certificate = load_certificate(certificate_pem)
    if certificate_key(certificate).key_id != private_key.key_id:
        raise KeyUnusable("the certificate is for another key")
    hashed = getattr(hashes, algorithm.name)()
    options = (
        pkcs7.PKCS7Options.DetachedSignature,
        pkcs7.PKCS7Options.Binary,
        pkcs7.PKCS7Options.NoAttributes,
        pkcs7.PKCS7Options.NoCerts,
    )
    builder = pkcs7.PKCS7SignatureBuilder().set_data(formatted_digest(ObjectId(algorithm, digest)))
    return builder.add_signer(certificate, numbers, hashed).sign(serialization.Encoding.DER, options)
