"""The options shared by verbs that talk to servers, with the defaults that the environment sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import click

from cfstools.cli.params import PATH, given, option_group
from cfstools.cli.remote_stores import ca_file_option, connections_option, network_of, proxies
from cfstools.errors import UsageError
from cfstools.sources.oci_request import REGISTRY
from cfstools.store.place import is_remote

if TYPE_CHECKING:
    from cfstools.oci.registry.reference import RegistryOptions
    from cfstools.transport.open import NetworkOptions

_ETC = b"/etc/containers"
CONNECTIONS = 8  # of layers, which are large


class NetworkWords(TypedDict):
    """What click hands over for the options below."""

    authfile: bytes | None
    ca_file: bytes | None
    cert_dir: bytes | None
    plain_http: bool
    connections: int | None


_OPTIONS = (
    click.option(
        "--authfile",
        type=PATH,
        metavar="FILE",
        help="Take credentials from this file alone; the default is REGISTRY_AUTH_FILE, or where skopeo, podman and "
        "docker keep them.",
    ),
    ca_file_option,
    click.option(
        "--cert-dir",
        type=PATH,
        metavar="DIR",
        help="Take authorities (*.crt) and our certificate (*.cert, *.key) from here instead of certs.d.",
    ),
    click.option("--plain-http", is_flag=True, help="Speak HTTP without TLS."),
    connections_option(None, " (default: 8 for layers, 32 for single objects)"),
)

network_options = option_group("Network options", *_OPTIONS)
"""Add the options; they arrive as :class:`NetworkWords`."""

_OF_REGISTRIES = frozenset({"authfile", "cert_dir", "plain_http"})


def registries_of(context: click.Context, words: NetworkWords, *images: bytes) -> RegistryOptions | None:
    """The options for the registries that *images* are in; ``None`` if none of them is in one.

    Raises UsageError, and InputError for a proxy that cannot be used.
    """
    if not any(image.startswith(REGISTRY) for image in images):
        if asked := given(context, NetworkWords.__annotations__):
            raise UsageError(f"{', '.join(asked)} is only for an image in a registry: docker://HOST/NAME")
        return None
    return _registries(words)


def networks_of(
    context: click.Context, words: NetworkWords, *places: bytes
) -> tuple[RegistryOptions | None, NetworkOptions]:
    """The options for registries, ``None`` where none of *places* is in one, and for other places.

    Raises UsageError, and InputError for a proxy that cannot be used.
    """
    if any(place.startswith(REGISTRY) for place in places):
        return _registries(words), network_of(words["ca_file"], words["connections"])
    if asked := given(context, _OF_REGISTRIES):
        raise UsageError(f"{', '.join(asked)} is only for an image in a registry: docker://HOST/NAME")
    asked = given(context, NetworkWords.__annotations__)
    if asked and not any(map(is_remote, places)):
        raise UsageError(f"{', '.join(asked)} is only for places over a network")
    return None, network_of(words["ca_file"], words["connections"])


def _registries(words: NetworkWords) -> RegistryOptions:
    from cfstools.oci.registry.reference import RegistryOptions
    from cfstools.transport.open import NetworkOptions

    authfile = words["authfile"] or os.environb.get(b"REGISTRY_AUTH_FILE") or None
    return RegistryOptions(
        auth_files=(authfile,) if authfile else tuple(_auth_files()),
        auth_required=authfile is not None,
        cert_directory=words["cert_dir"],
        cert_directories=tuple(_certificate_directories()),
        configurations=tuple(_configurations()),
        plain_http=words["plain_http"],
        network=NetworkOptions(
            authorities=(words["ca_file"],) if words["ca_file"] else (),
            proxies=proxies(),
            connections=words["connections"] or CONNECTIONS,
        ),
    )


def _home() -> bytes | None:
    home = os.environb.get(b"HOME", b"")
    return home if home.startswith(b"/") else None


def _config_directory() -> bytes | None:
    """The user's configuration directory of containers' tools."""
    base = os.environb.get(b"XDG_CONFIG_HOME", b"")
    if not base.startswith(b"/"):
        home = _home()
        if home is None:
            return None
        base = os.path.join(home, b".config")
    return os.path.join(base, b"containers")


def _auth_files() -> Iterator[bytes]:
    runtime = os.environb.get(b"XDG_RUNTIME_DIR", b"")
    if runtime.startswith(b"/"):
        yield os.path.join(runtime, b"containers/auth.json")
    containers = _config_directory()
    if containers is not None:
        yield os.path.join(containers, b"auth.json")
    docker = os.environb.get(b"DOCKER_CONFIG", b"")
    home = _home()
    if docker:
        yield os.path.join(docker, b"config.json")
    elif home is not None:
        yield os.path.join(home, b".docker/config.json")


def _certificate_directories() -> Iterator[bytes]:
    containers = _config_directory()
    if containers is not None:
        yield os.path.join(containers, b"certs.d")
    yield os.path.join(_ETC, b"certs.d")
    yield b"/etc/docker/certs.d"


def _configurations() -> Iterator[bytes]:
    """registries.conf of the user, else of the system, then the drop-ins of both; those of the user come last."""
    chosen = os.environb.get(b"CONTAINERS_REGISTRIES_CONF")
    if chosen:
        yield chosen
        return
    containers = _config_directory()
    bases = [base for base in (containers, _ETC) if base is not None]
    yield from [path for base in bases if os.path.exists(path := os.path.join(base, b"registries.conf"))][:1]
    for base in reversed(bases):
        directory = os.path.join(base, b"registries.conf.d")
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        yield from (os.path.join(directory, name) for name in names if name.endswith(b".conf"))
