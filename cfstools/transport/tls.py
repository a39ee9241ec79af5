"""Whom to trust over TLS and what to show them, for each origin.

Which files these are is decided above: a CA file that the user names, the directory of a registry in ``certs.d``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, NoReturn

from cfstools.errors import NetworkError, NoTls, Phrase, Remedy, TransientError
from cfstools.text import shown_path
from cfstools.transport.url import Origin


class TlsFiles(NamedTuple):
    """PEM files by path: authorities trusted besides those of the system, and a certificate of ours with its key."""

    authorities: tuple[bytes, ...] = ()
    certificate: bytes | None = None
    key: bytes | None = None


_MAX_PEM = 16 << 20

TlsFor = Callable[[Origin], TlsFiles]


def system_only(_origin: Origin) -> TlsFiles:
    """Trust the authorities of the system alone."""
    return TlsFiles()


def context(files: TlsFiles) -> ssl.SSLContext:
    """What a connection is made with. Raises ``NetworkError`` for a file that cannot be used."""
    made = ssl.create_default_context()
    made.set_alpn_protocols(["http/1.1"])
    for path in files.authorities:
        _with_file(path, partial(made.load_verify_locations, os.fsdecode(path)), "CA file")
    if files.certificate is not None:
        certificate = files.certificate
        key = None if files.key is None else os.fsdecode(files.key)
        _with_file(certificate, partial(made.load_cert_chain, os.fsdecode(certificate), key, _refuse), "certificate")
    return made


def read_authorities(paths: Iterable[bytes]) -> bytes:
    """The contents of PEM files, for those who do not read files themselves. Raises ``NetworkError``."""
    parts = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                parts.append(file.read(_MAX_PEM))
        except OSError as error:
            raise NetworkError(f"cannot read the CA file: {error.strerror}", subject=shown_path(path)) from error
    return b"\n".join(parts)


def _with_file(path: bytes, load: Callable[[], object], what: str) -> None:
    """Load a file. Raises ``NetworkError`` naming it."""
    try:
        load()
    except ssl.SSLError as error:
        raise NetworkError(f"{what} cannot be used: {_reason(error)}", subject=shown_path(path)) from error
    except _EncryptedError:
        raise NetworkError(f"the key of the {what} is encrypted", subject=shown_path(path)) from None
    except OSError as error:
        raise NetworkError(f"cannot read the {what}: {error.strerror}", subject=shown_path(path)) from error


def tls_error(error: ssl.SSLError, subject: str) -> NetworkError:
    """What went wrong with TLS: it is final, unless the connection only broke."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return TransientError("the connection broke", subject=subject)
    if error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
        return NoTls("the server does not speak TLS", subject=subject, hint=Phrase("{}", Remedy.PLAIN_HTTP))
    hint = Phrase("{}", Remedy.AUTHORITIES) if isinstance(error, ssl.SSLCertVerificationError) else None
    return NetworkError(f"cannot connect: {_reason(error)}", subject=subject, hint=hint)


class _EncryptedError(Exception):
    """OpenSSL wants a passphrase."""


def _refuse() -> NoReturn:
    raise _EncryptedError


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return (error.reason or error.strerror or "TLS failed").replace("_", " ").lower()
