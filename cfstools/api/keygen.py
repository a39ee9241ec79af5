"""Verb ``keygen``: a new pair of keys in two files."""

from __future__ import annotations

import os

from cfstools.output.files import create_file, opened_directory, take_back
from cfstools.report import Report
from cfstools.signing.keys import MIN_NEW_RSA_BITS, KeyType, generate
from cfstools.text import shown_path

PRIVATE_SUFFIX = b".key"
PUBLIC_SUFFIX = b".pub"
_HINT = "choose another NAME, or move the old key away"


class KeygenReport(Report):
    """The keys made: where they are, what kind they are, and their id."""

    private_key: str
    public_key: str
    algorithm: str
    key_id: str
    encrypted: bool


def keygen(
    name: bytes,
    *,
    kind: KeyType = KeyType.ED25519,
    rsa_bits: int = MIN_NEW_RSA_BITS,
    passphrase: bytes | None = None,
) -> KeygenReport:
    """Make a pair of keys: ``NAME.key`` (PKCS#8 in PEM, mode 0600, encrypted if there is a *passphrase*), ``NAME.pub``.

    A file that exists is never overwritten, and after an error neither file is there. Raises InputError, and
    UsageError for a passphrase or a size that no key can have.
    """
    private = generate(kind, rsa_bits=rsa_bits)
    private_path, public_path = name + PRIVATE_SUFFIX, name + PUBLIC_SUFFIX
    # One directory for both, so that neither is made, nor removed, elsewhere than the other.
    with opened_directory(os.path.dirname(name) or b".", private_path, "cannot write") as directory:
        create_file(directory, private_path, private.pem(passphrase), mode=0o600, hint=_HINT)
        try:
            create_file(directory, public_path, private.verifier.pem(), mode=0o644, hint=_HINT)
        except BaseException as error:
            take_back(directory, private_path, error)
            raise
    return KeygenReport(
        private_key=shown_path(private_path),
        public_key=shown_path(public_path),
        algorithm=private.algorithm,
        key_id=private.key_id,
        encrypted=passphrase is not None,
    )
