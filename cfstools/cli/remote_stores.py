"""Stores over a network: options and variables about the way to them, which registries have as well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import click

from cfstools.cli.params import PATH, F, given, option_group
from cfstools.errors import UsageError
from cfstools.store.place import is_remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfstools.cli.network_options import NetworkWords
    from cfstools.store.open import StorePlace
    from cfstools.transport.open import NetworkOptions
    from cfstools.transport.proxies import Proxies

CONNECTIONS = 32  # objects are small, and a round trip is long
# obstore finds credentials and regions in the environment by itself, but not whether TLS is wanted.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class StoreNetworkWords(TypedDict):
    """What click hands over for :data:`store_network_options`."""

    ca_file: bytes | None
    connections: int


ca_file_option = click.option(
    "--ca-file", type=PATH, metavar="FILE", help="Trust the authorities in this PEM file as well."
)


def connections_option(default: int | None, more: str = "") -> Callable[[F], F]:
    """How many connections there may be to one server; the help says *more* about it."""
    return click.option(
        "--connections",
        type=click.IntRange(1, 64),
        default=default,
        show_default=default is not None,
        metavar="N",
        help=f"Connections to one server at most{more}.",
    )


store_network_options: Callable[[Any], Any] = option_group(
    "Network options", ca_file_option, connections_option(CONNECTIONS)
)
"""Add the options about stores over a network; they arrive as :class:`StoreNetworkWords`."""


def readable_stores(stores: Sequence[bytes], words: StoreNetworkWords) -> list[StorePlace]:
    """*stores* for verbs that only read objects: URLs become stores over a network.

    Raises UsageError for network options without such a store, InputError for a proxy that cannot be used.
    """
    if not any(map(is_remote, stores)) and (
        asked := given(click.get_current_context(), StoreNetworkWords.__annotations__)
    ):
        raise UsageError(f"{', '.join(asked)} is only for stores over a network, such as https://HOST/objects")
    return stores_elsewhere(stores, words)


def stores_elsewhere(stores: Sequence[bytes], words: StoreNetworkWords | NetworkWords) -> list[StorePlace]:
    """The same for verbs whose network options are for other things as well."""
    if not any(map(is_remote, stores)):
        return list(stores)
    return over_network(stores, network_of(words["ca_file"], words["connections"]))


def over_network(stores: Sequence[bytes], network: NetworkOptions) -> list[StorePlace]:
    """*stores*, and how those of them that are elsewhere are spoken to."""
    from cfstools.store.open import RemotePlace

    return [RemotePlace(store, network) if is_remote(store) else store for store in stores]


def proxies() -> Proxies:
    """The proxies that the environment names. Raises InputError for one that cannot be used."""
    from cfstools.transport.proxies import parse_proxies

    return parse_proxies(*[_variable(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")])


def network_of(ca_file: bytes | None, connections: int | None) -> NetworkOptions:
    """How places are spoken to: these options, and what the environment says.

    Raises InputError for a proxy that cannot be used.
    """
    from cfstools.transport.open import NetworkOptions

    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    return NetworkOptions(
        authorities=(ca_file,) if ca_file else (),
        connections=connections or CONNECTIONS,
        proxies=proxies(),
        cloud={} if endpoint is None else {"endpoint": endpoint},
    )


def _variable(name: str) -> str | None:
    """A variable about proxies, which everybody reads in small letters first."""
    return os.environ.get(name.lower(), os.environ.get(name))
