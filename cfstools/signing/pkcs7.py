"""The signature that Linux itself checks, where fs-verity is enabled with one (docs/signatures.md, "For the kernel").

Rule: Documentation/filesystems/fsverity.rst, "Built-in signature verification"; RFC 2315 for the PKCS#7.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import pkcs7

from cfstools.errors import KeyUnusable, UsageError
from cfstools.signing.keys import PrivateKey, certificate_key, load_certificate
from cfstools.verity import Algorithm, ObjectId, formatted_digest

_OPTIONS = (
    pkcs7.PKCS7Options.DetachedSignature,
    pkcs7.PKCS7Options.Binary,
    pkcs7.PKCS7Options.NoAttributes,
    pkcs7.PKCS7Options.NoCerts,
)


def sign_kernel(digest: bytes, algorithm_number: int, private_key: PrivateKey, certificate_pem: bytes) -> bytes:
    """A detached PKCS#7 in DER over the fs-verity *digest*, for ``fsverity enable --signature``.

    With an RSA key the bytes are those of ``fsverity sign`` and of ``openssl smime -sign -binary -noattr
    -nocerts``; ECDSA has a random part. ``KeyUnusable`` if the certificate is not for the key or the key is
    Ed25519, ``UsageError`` if the digest is not one of the algorithm with that kernel number.
    """
    algorithm = Algorithm.from_number(algorithm_number)
    if len(digest) != algorithm.digest_size:
        raise UsageError(f"a {algorithm.value} digest has {algorithm.digest_size} bytes, not {len(digest)}")
    numbers = private_key.numbers
    if isinstance(numbers, ed25519.Ed25519PrivateKey):
        raise KeyUnusable("the kernel's signatures need an RSA or ECDSA key, not Ed25519")
    certificate = load_certificate(certificate_pem)
    if certificate_key(certificate).key_id != private_key.key_id:
        raise KeyUnusable("the certificate is for another key")
    hashed = hashes.SHA256() if algorithm is Algorithm.SHA256 else hashes.SHA512()
    builder = pkcs7.PKCS7SignatureBuilder().set_data(formatted_digest(ObjectId(algorithm, digest)))
    return builder.add_signer(certificate, numbers, hashed).sign(serialization.Encoding.DER, _OPTIONS)
