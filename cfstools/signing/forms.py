"""The forms in which a file may have a key: only the one whose SHA-256 is the key's id, and none its maker restricted.

cryptography gives out the same key for several encodings. An id made of another encoding than the file has is not the
one that ``openssl`` computes, and a key that was made for RSA-PSS alone must not sign anything else.
"""

from __future__ import annotations

from typing import NoReturn

from cfstools.errors import KeyUnusable
from cfstools.signing import der
from cfstools.signing.der import Element

_RSA_PSS = bytes.fromhex("2a864886f70d01010a")
_EC = bytes.fromhex("2a8648ce3d0201")
_UNCOMPRESSED = 4


def check_curve(stored: bytes, *, public: bool) -> None:
    """Refuse a SubjectPublicKeyInfo, or else a PKCS#8, with explicit parameters. Raises KeyUnusable, ValueError.

    To be called before cryptography reads the key: some versions refuse it without a reason.
    """
    first, second, *_ = der.sequence(stored)
    algorithm = first if public else second
    identifier, *parameters = der.sequence(algorithm.whole)
    if identifier.content == _EC and parameters and parameters[0].tag == der.SEQUENCE:
        _refuse_parameters("-pubin " if public else "")


def check_public(stored: bytes, canonical: bytes) -> None:
    """Compare the SubjectPublicKeyInfo of a file with the one the id is made of. Raises KeyUnusable, ValueError."""
    if stored != canonical:
        algorithm, key = der.sequence(stored)
        _refuse(algorithm, key)


def check_private(stored: bytes, canonical: bytes) -> None:
    """Compare the algorithm in a PKCS#8 with that of its *canonical* SubjectPublicKeyInfo. Raises likewise."""
    _version, algorithm, *_ = der.sequence(stored)
    if algorithm.whole != der.sequence(canonical)[0].whole:
        _refuse(algorithm, None)


def check_traditional(stored: bytes) -> None:
    """Refuse an ECPrivateKey (RFC 5915) with explicit parameters. Raises likewise; RSAPrivateKey is always fine."""
    for element in der.sequence(stored):
        if element.tag == der.CONTEXT_0 and element.content[:1] == bytes((der.SEQUENCE,)):
            _refuse_parameters("")


def public_of_certificate(to_be_signed: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a TBSCertificate (RFC 5280). Raises ValueError."""
    parts = der.sequence(to_be_signed)
    return parts[6 if parts[0].tag == der.CONTEXT_0 else 5].whole


def _refuse(algorithm: Element, key: Element | None) -> NoReturn:
    identifier, *_ = der.sequence(algorithm.whole)
    if identifier.content == _RSA_PSS:
        hint = "`openssl genpkey -algorithm RSA` makes one without that restriction"
        raise KeyUnusable("the RSA key is restricted to PSS, and signatures here are PKCS#1 v1.5", hint=hint)
    if identifier.content == _EC and key is not None and key.content[1:2] != bytes((_UNCOMPRESSED,)):
        hint = "`openssl pkey -pubin -in KEY -ec_conv_form uncompressed -out NEW.pem` writes it so"
        raise KeyUnusable("the EC key's point is not in the uncompressed form, which its id is made of", hint=hint)
    raise KeyUnusable("the key is not encoded as its id needs it (SubjectPublicKeyInfo in DER, RFC 5280)")


def _refuse_parameters(public: str) -> NoReturn:
    hint = f"`openssl pkey {public}-in KEY -ec_param_enc named_curve -out NEW.pem` names it"
    raise KeyUnusable("the EC key has the parameters of its curve written out instead of its name", hint=hint)
