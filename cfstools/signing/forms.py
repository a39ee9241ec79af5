"""Check the encoding of keys in files: it must be the one whose SHA-256 is the key id, without RSA-PSS restriction.

cryptography returns the same key for several encodings. If the file had another encoding, its key id would differ from
the one that ``openssl`` computes; and a key made for RSA-PSS only must not sign anything else.
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
    """Refuse explicit curve parameters in a SubjectPublicKeyInfo (*public*) or PKCS#8. Raises KeyUnusable, ValueError.

    Call this before cryptography reads the key: some of its versions refuse such keys without a reason.
    """
    first, second, *_ = der.sequence(stored)
    algorithm = first if public else second
    identifier, *parameters = der.sequence(algorithm.whole)
    if identifier.content == _EC and parameters and parameters[0].tag == der.SEQUENCE:
        _refuse_parameters("-pubin " if public else "")


def check_public(stored: bytes, canonical: bytes) -> None:
    """Compare a file's SubjectPublicKeyInfo with the one that the id hashes. Raises KeyUnusable, ValueError."""
    if stored != canonical:
        algorithm, key = der.sequence(stored)
        _refuse(algorithm, key)


def check_private(stored: bytes, canonical: bytes) -> None:
    """Compare the algorithm in a PKCS#8 with that of its *canonical* SubjectPublicKeyInfo. Raises the same."""
    _version, algorithm, *_ = der.sequence(stored)
    if algorithm.whole != der.sequence(canonical)[0].whole:
        _refuse(algorithm, None)


def check_traditional(stored: bytes) -> None:
    """Refuse an ECPrivateKey (RFC 5915) with explicit parameters. RSAPrivateKey needs no check."""
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
