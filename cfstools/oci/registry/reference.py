"""Names of images in registries, ``HOST/REPOSITORY[:TAG][@DIGEST]`` (OCI distribution; docker's rules for hosts), and
how registries are spoken to, as callers say it.

Apart from what reads files and connects, so that one process can take the words, and another use them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from cfstools.errors import OciError, Unsupported, UsageError
from cfstools.oci.descriptor import Digest, parse_digest
from cfstools.text import quoted
from cfstools.transport.open import NetworkOptions
from cfstools.values import Value

PREFIX = "docker://"
DOCKER_HUB = "docker.io"
MAX_NAME = 255
CONNECTIONS = 8  # to one registry; layers are large

_HUB_HOSTS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_HUB_API = "registry-1.docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")


class RegistryOptions(NamedTuple):
    """Where credentials, certificates and mirrors are configured, and how to connect. Files are given by path."""

    auth_files: tuple[bytes, ...] = ()
    """Where credentials are looked for; the first that has one counts."""
    auth_required: bool = False
    """Whether a missing one of these is an error; it is skipped otherwise."""
    cert_directory: bytes | None = None
    """The directory with the certificates of each registry, whatever it is called, instead of those below."""
    cert_directories: tuple[bytes, ...] = ()
    """Where directories are that are named after registries and have their certificates."""
    configurations: tuple[bytes, ...] = ()
    """registries.conf and its drop-ins, in order."""
    plain_http: bool = False
    """Whether registries are spoken to without TLS."""
    network: NetworkOptions = NetworkOptions(connections=CONNECTIONS)
    """How to connect; the fields about object storage are not used."""

    def with_paths(self, changed: Callable[[bytes], bytes]) -> RegistryOptions:
        """The same with each path *changed*, for a process that works in another directory."""
        directory = self.cert_directory
        return self._replace(
            auth_files=tuple(map(changed, self.auth_files)),
            cert_directory=None if directory is None else changed(directory),
            cert_directories=tuple(map(changed, self.cert_directories)),
            configurations=tuple(map(changed, self.configurations)),
            network=self.network.with_paths(changed),
        )


class ImageReference(Value):
    """An image in a registry. A digest takes precedence over a tag; neither means ``latest``."""

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{PREFIX}{self.host}/{self.repository}{tag}{digest}"

    @property
    def wanted(self) -> str:
        """What to request the manifest by: the digest, else the tag."""
        return str(self.digest) if self.digest is not None else self.tag or "latest"


def parse_image_reference(text: str) -> ImageReference:
    """A reference, with or without ``docker://`` before it. Raises :class:`UsageError`."""
    name = text.removeprefix(PREFIX)
    name, at, digest_text = name.partition("@")
    first, slash, rest = name.partition("/")
    if slash and is_host(first):
        host, path = first, rest
    else:
        host, path = DOCKER_HUB, name
    # A colon behind the last slash begins the tag: that of a port stands before the first.
    path, colon, tag = path.partition(":")
    _check_host(host, text)
    if host in _HUB_HOSTS:
        host = DOCKER_HUB
        if "/" not in path:
            path = f"library/{path}"
    _check_repository(host, path, text)
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(f"{quoted(tag)} is not a tag", subject=_shown(text))
    digest = _digest(digest_text, text) if at else None
    return ImageReference(host=host, repository=path, tag=tag if colon else None, digest=digest)


def is_host(first: str) -> bool:
    """Whether the first component of a name is a host, not part of a repository on Docker Hub."""
    return "." in first or ":" in first or first == "localhost"


def api_host(host: str) -> str:
    """The host that serves the API of registry *host*."""
    return _HUB_API if host in _HUB_HOSTS else host


def credential_key(host: str) -> str:
    """The registry's name for credential helpers."""
    return _HUB_KEY if host in _HUB_HOSTS else host


def normal_host(key: str) -> str:
    """The host in a key of an auth file, without scheme and path; ``docker.io`` for all hosts of Docker Hub."""
    _, mark, rest = key.partition("://")
    host = (rest if mark else key).partition("/")[0]
    return DOCKER_HUB if host in _HUB_HOSTS else host


def is_repository(path: str) -> bool:
    """Whether *path* can be the name of a repository."""
    return all(_COMPONENT.fullmatch(part) for part in path.split("/"))


def _check_host(host: str, text: str) -> None:
    found = _HOST.fullmatch(host)
    if found is None or (found[1] is not None and not 0 < int(found[1]) < 1 << 16):
        raise UsageError(f"{quoted(host)} is not a host", subject=_shown(text))


def _check_repository(host: str, path: str, text: str) -> None:
    if not is_repository(path):
        hint = "names of repositories are in small letters" if is_repository(path.lower()) else None
        raise UsageError(f"{quoted(path)} is not a repository", subject=_shown(text), hint=hint)
    if len(host) + 1 + len(path) > MAX_NAME:
        raise UsageError(f"host and repository have more than {MAX_NAME} characters", subject=_shown(text))


def _digest(digest: str, text: str) -> Digest:
    try:
        parsed = parse_digest(digest, "digest")
        parsed.hasher()
    except (OciError, Unsupported) as error:
        raise UsageError(error.what, subject=_shown(text)) from error
    return parsed


def _shown(text: str) -> str:
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "..."
