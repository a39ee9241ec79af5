"""Verb ``keygen``: a new pair of keys in two files."""

from __future__ import annotations

import os
from functools import partial

from cfstools.errors import naming, os_error, shown_path
from cfstools.linux.files import close, write_all
from cfstools.output.files import opened_directory
from cfstools.output.removal import clean_up, remove_file
from cfstools.report import Report
from cfstools.signing.keys import MIN_NEW_RSA_BITS, KeyType, generate

PRIVATE_SUFFIX = b".key"
PUBLIC_SUFFIX = b".pub"


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
        _create(directory, private_path, private.pem(passphrase), 0o600)
        try:
            _create(directory, public_path, private.verifier.pem(), 0o644)
        except BaseException as error:
            _remove(directory, private_path, error)
            raise
    return KeygenReport(
        private_key=shown_path(private_path),
        public_key=shown_path(public_path),
        algorithm=private.algorithm,
        key_id=private.key_id,
        encrypted=passphrase is not None,
    )


def _create(directory: int, path: bytes, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, durably or not at all."""
    with naming(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(os.path.basename(path), flags, mode, dir_fd=directory)
        except FileExistsError as error:
            hint = "choose another NAME, or move the old key away"
            raise os_error(error, "will not be overwritten", hint=hint) from error
        except OSError as error:
            raise os_error(error, "cannot write") from error
        try:
            write_all(fd, data)
            os.fsync(fd)
        except BaseException as error:
            _remove(directory, path, error)
            if isinstance(error, OSError):
                raise os_error(error, "cannot write") from error
            raise
        finally:
            close(fd)


def _remove(directory: int, path: bytes, error: BaseException) -> None:
    clean_up(error, partial(remove_file, directory, os.path.basename(path)), path)
