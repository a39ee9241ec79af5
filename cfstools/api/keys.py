"""Key files by path."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.api.input import read_secret, read_small
from cfstools.errors import naming
from cfstools.signing.keys import MAX_KEY_FILE, PrivateKey, PublicKey, load_private_key, load_public_key


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
