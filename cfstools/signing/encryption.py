"""Private keys encrypted with a passphrase: PKCS#8 with PBES2 (RFC 8018; RFC 7914 for scrypt).

The key file states how much work the key derivation takes, so that is bounded before any work is done. Decryption is
done here because cryptography does not tell whether the decrypted key is restricted to RSA-PSS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cfstools.errors import LimitExceeded
from cfstools.signing import der
from cfstools.signing.der import Element

ROUNDS = 600_000
"""Rounds of PBKDF2 with HMAC-SHA-256 for new keys."""

MAX_ROUNDS = 10_000_000
MAX_SCRYPT_MEMORY = 1 << 27
MAX_SCRYPT_WORK = 1 << 30
_SALT_SIZE = 16
_BLOCK = 16


def _oid(text: str) -> bytes:
    """The content of an OBJECT IDENTIFIER."""
    first, second, *arcs = map(int, text.split("."))
    encoded = bytearray([40 * first + second])
    for arc in arcs:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(digits))
    return bytes(encoded)


_PBES2, _PBKDF2, _SCRYPT = _oid("1.2.840.113549.1.5.13"), _oid("1.2.840.113549.1.5.12"), _oid("1.3.6.1.4.1.11591.4.11")
_OLD_SCHEMES = (_oid("1.2.840.113549.1.5"), _oid("1.2.840.113549.1.12.1"))
_AES_CBC = {_oid(f"2.16.840.1.101.3.4.1.{arc}"): size for arc, size in ((2, 16), (22, 24), (42, 32))}
_HMAC_SHA256, _AES_256_CBC = _oid("1.2.840.113549.2.9"), _oid("2.16.840.1.101.3.4.1.42")
_HASHES: dict[bytes, type[hashes.HashAlgorithm]] = {
    _oid("1.2.840.113549.2.7"): hashes.SHA1,
    _oid("1.2.840.113549.2.8"): hashes.SHA224,
    _HMAC_SHA256: hashes.SHA256,
    _oid("1.2.840.113549.2.10"): hashes.SHA384,
    _oid("1.2.840.113549.2.11"): hashes.SHA512,
}

_Derive = Callable[[bytes, int], bytes]


class Encrypted(NamedTuple):
    """An encrypted PKCS#8 whose work is within the limits.

    ``derive`` derives a key from a passphrase and a length in bytes; it is ``None`` for schemes older than PBES2.
    ``key_size`` is in bytes, 0 for ciphers other than AES-CBC.
    """

    derive: _Derive | None
    key_size: int
    vector: bytes
    data: bytes

    @property
    def is_known(self) -> bool:
        """Whether :meth:`decrypt` supports the scheme."""
        return self.derive is not None and self.key_size > 0

    def decrypt(self, passphrase: bytes) -> bytes:
        """Decrypt to PKCS#8 in DER. A wrong passphrase raises ValueError, or one time in 256 returns garbage."""
        assert self.derive is not None
        key = self.derive(passphrase, self.key_size)
        context = Cipher(algorithms.AES(key), modes.CBC(self.vector)).decryptor()
        unpadder = padding.PKCS7(8 * _BLOCK).unpadder()
        return unpadder.update(context.update(self.data) + context.finalize()) + unpadder.finalize()


def read_encrypted(data: bytes) -> Encrypted:
    """Read an EncryptedPrivateKeyInfo in DER.

    Raises LimitExceeded if it asks for more work or memory than any passphrase needs, ValueError for other data.
    """
    scheme, body = der.sequence(data)
    if body.tag != der.OCTET_STRING:
        raise ValueError("no encrypted data")
    identifier, parameters = der.sequence(scheme.whole)
    if identifier.content != _PBES2:
        if not identifier.content.startswith(_OLD_SCHEMES):
            raise ValueError("unknown encryption")
        _salt, rounds = der.sequence(parameters.whole)
        _bound_rounds(der.number(rounds))
        return Encrypted(None, 0, b"", body.content)
    function, cipher = (der.sequence(part.whole) for part in der.sequence(parameters.whole))
    derive = _function(function)
    name, *more = cipher
    vector = more[0].content if len(more) == 1 and len(more[0].content) == _BLOCK else b""
    return Encrypted(derive, _AES_CBC.get(name.content, 0) if vector else 0, vector, body.content)


def _function(function: list[Element]) -> _Derive:
    identifier, parameters = function
    if identifier.content == _PBKDF2:
        return _pbkdf2(der.sequence(parameters.whole))
    if identifier.content == _SCRYPT:
        return _scrypt(der.sequence(parameters.whole))
    raise ValueError("unknown key derivation")


def _pbkdf2(parameters: list[Element]) -> _Derive:
    salt, rounds, *more = parameters
    count = der.number(rounds)
    _bound_rounds(count)
    size = der.number(more.pop(0)) if more and more[0].tag == der.INTEGER else None
    digest: type[hashes.HashAlgorithm] = hashes.SHA1
    if more:
        name, *_ = der.sequence(more[0].whole)
        if name.content not in _HASHES:
            raise ValueError("unknown hash")
        digest = _HASHES[name.content]

    def derive(passphrase: bytes, length: int) -> bytes:
        _same_size(size, length)
        return PBKDF2HMAC(digest(), length, salt.content, count).derive(passphrase)

    return derive


def _scrypt(parameters: list[Element]) -> _Derive:
    salt, *rest = parameters
    n, r, p = map(der.number, rest[:3])
    size = der.number(rest[3]) if len(rest) > 3 else None
    if 128 * n * r > MAX_SCRYPT_MEMORY or 128 * n * r * p > MAX_SCRYPT_WORK or 128 * r * p > MAX_SCRYPT_MEMORY:
        raise LimitExceeded(
            f"the key's encryption asks scrypt for more than {MAX_SCRYPT_MEMORY >> 20} MiB of memory, "
            f"or for more than {MAX_SCRYPT_WORK >> 20} MiB of work"
        )

    def derive(passphrase: bytes, length: int) -> bytes:
        _same_size(size, length)
        return Scrypt(salt.content, length, n, r, p).derive(passphrase)

    return derive


def _same_size(size: int | None, length: int) -> None:
    if size not in (None, length):
        raise ValueError("a key of another size than the cipher has")


def _bound_rounds(rounds: int) -> None:
    if rounds > MAX_ROUNDS:
        raise LimitExceeded(f"the key's encryption asks for more than {MAX_ROUNDS} rounds")


def encrypt(data: bytes, passphrase: bytes) -> bytes:
    """Encrypt a PKCS#8 in DER with AES-256-CBC; the key is derived by PBKDF2-HMAC-SHA-256 with a random salt."""
    salt, vector = os.urandom(_SALT_SIZE), os.urandom(_BLOCK)
    key = PBKDF2HMAC(hashes.SHA256(), 32, salt, ROUNDS).derive(passphrase)
    padder = padding.PKCS7(8 * _BLOCK).padder()
    context = Cipher(algorithms.AES(key), modes.CBC(vector)).encryptor()
    body = context.update(padder.update(data) + padder.finalize()) + context.finalize()
    digest = der.made(der.SEQUENCE, der.made(der.OBJECT, _HMAC_SHA256), der.made(der.NULL))
    parameters = der.made(der.SEQUENCE, der.made(der.OCTET_STRING, salt), der.made_number(ROUNDS), digest)
    function = der.made(der.SEQUENCE, der.made(der.OBJECT, _PBKDF2), parameters)
    cipher = der.made(der.SEQUENCE, der.made(der.OBJECT, _AES_256_CBC), der.made(der.OCTET_STRING, vector))
    scheme = der.made(der.SEQUENCE, der.made(der.OBJECT, _PBES2), der.made(der.SEQUENCE, function, cipher))
    return der.made(der.SEQUENCE, scheme, der.made(der.OCTET_STRING, body))
