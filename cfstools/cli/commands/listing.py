"""``mkcfs ls``, ``mkcfs dump`` and ``mkcfs objects``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import click

from cfstools.api import listing as api
from cfstools.cli.output import print_json_lines, write_lines
from cfstools.cli.params import PATH, examples, json_lines_option, store_option, zero_option
from cfstools.cli.remote_stores import StoreNetworkWords, readable_stores, store_network_options
from cfstools.errors import UsageError
from cfstools.formats.escape import escape
from cfstools.text import shown_path

F = TypeVar("F", bound=Callable[..., Any])


def _images(function: F) -> F:
    return click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PATH)(function)


def _filter(function: F) -> F:
    return click.option(
        "--filter",
        "filters",
        metavar="NAME",
        multiple=True,
        type=PATH,
        callback=_check_filters,
        help="Only this child of the root, with all below it; may be given again.",
    )(function)


def _check_filters(_ctx: click.Context, _param: click.Parameter, value: tuple[bytes, ...]) -> tuple[bytes, ...]:
    for name in value:
        if b"/" in name:
            raise UsageError(f"filter {shown_path(name)} holds a slash: name a child of the root")
    return value


@click.command(epilog=examples("mkcfs ls image.cfs", "mkcfs ls --filter etc image.cfs"))
@_images
@_filter
@json_lines_option
def ls(*, images: tuple[bytes, ...], filters: tuple[bytes, ...], as_json: bool) -> None:
    """List the names in each IMAGE, depth-first in byte order.

    A directory ends in a slash, a symbolic link is followed by `->` and its target, a file by `@` and its object.
    """
    if as_json:
        print_json_lines(entry.to_dict() for entry in api.entries(images, filters=filters))
    else:
        write_lines(api.ls(images, filters=filters))


@click.command(epilog=examples("mkcfs dump image.cfs", "mkcfs dump --filter usr --json-lines image.cfs"))
@_images
@_filter
@json_lines_option
def dump(*, images: tuple[bytes, ...], filters: tuple[bytes, ...], as_json: bool) -> None:
    """Print each IMAGE as composefs-dump(5) text, which `mkcfs build --from-file` reads."""
    if as_json:
        print_json_lines(entry.to_dict() for entry in api.entries(images, filters=filters))
    else:
        write_lines(api.dump(images, filters=filters))


@click.command(
    epilog=examples("mkcfs objects image.cfs", "mkcfs objects --missing --store ./objects image.cfs"),
)
@_images
@_filter
@click.option("--missing", is_flag=True, help="Only objects that are in none of the stores.")
@store_option("A store to look in; may be given again.")
@store_network_options
@zero_option
@json_lines_option
def objects(
    *,
    images: tuple[bytes, ...],
    filters: tuple[bytes, ...],
    missing: bool,
    stores: list[bytes],
    zero: bool,
    as_json: bool,
    **network: Unpack[StoreNetworkWords],
) -> None:
    """List the objects that the IMAGEs need, each once, in byte order.

    They are escaped as in `ls`; -z prints them as they are.
    """
    if zero and as_json:
        raise UsageError("-z and --json-lines are two different forms: choose one")
    if missing and not stores:
        raise UsageError("--missing needs a store to look in", hint="add --store DIR")
    if stores and not missing:
        raise UsageError("--store only has a meaning with --missing")
    payloads = api.objects(images, filters=filters, missing_from=readable_stores(stores, network) if missing else None)
    if as_json:
        print_json_lines(api.ObjectReport(payload=shown_path(payload)).to_dict() for payload in payloads)
    else:
        write_lines(payload + b"\0" if zero else escape(payload) + b"\n" for payload in payloads)
