"""Certificates for a registry, as containers' tools and docker keep them: ``CERTS.D/HOST[:PORT]/``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from cfstools.errors import InputError, os_error
from cfstools.text import shown_path


class Certificates(NamedTuple):
    """Paths of further certificate authorities, and of a client's certificate and key."""

    authorities: tuple[bytes, ...] = ()
    client: tuple[bytes, bytes] | None = None


NO_CERTIFICATES = Certificates()


def find_certificates(directories: Sequence[bytes], host: str) -> Certificates:
    """The files for *host* in the first of *directories* that has a subdirectory of that name, port as written.

    Raises :class:`InputError` for a certificate without its key, and for a directory that cannot be read.
    """
    if host.startswith("."):
        return NO_CERTIFICATES  # a server may name another one so: it must not lead out of the directory
    for directory in directories:
        path = os.path.join(directory, host.encode())
        try:
            names = sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise os_error(error, "cannot read", subject=shown_path(path)) from error
        return _chosen(path, names)
    return NO_CERTIFICATES


def read_certificates(path: bytes) -> Certificates:
    """The files in one directory of certificates. Raises :class:`InputError`."""
    try:
        return _chosen(path, sorted(os.listdir(path)))
    except OSError as error:
        raise os_error(error, "cannot read", subject=shown_path(path)) from error


def _chosen(path: bytes, names: Sequence[bytes]) -> Certificates:
    authorities = tuple(os.path.join(path, name) for name in names if name.endswith(b".crt"))
    client = None
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension not in {b".cert", b".key"}:
            continue
        other = stem + (b".key" if extension == b".cert" else b".cert")
        if other not in names:
            what = f"{shown_path(name)} is there without {shown_path(other)}"
            raise InputError(what, subject=shown_path(path))
        client = client or (os.path.join(path, stem + b".cert"), os.path.join(path, stem + b".key"))
    return Certificates(authorities, client)
