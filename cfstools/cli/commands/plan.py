"""``mkcfs plan``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cfstools.api.plan import TOP, FetchCost, PlanOptions
from cfstools.api.plan import plan as run_plan
from cfstools.cli.network_options import NetworkWords, network_options, networks_of
from cfstools.cli.oci_options import platform_of
from cfstools.cli.output import print_json, print_line, print_lines, size_text
from cfstools.cli.params import PATH, GroupedCommand, examples, json_option, store_option
from cfstools.cli.remote_stores import over_network
from cfstools.cli.session import Session
from cfstools.linux.files import raise_fd_limit
from cfstools.text import counted

if TYPE_CHECKING:
    from typing_extensions import Unpack


@click.command(
    cls=GroupedCommand,
    epilog=examples(
        "mkcfs plan image.cfs https://example.com/images/image.cfs --store ./objects",
        "mkcfs plan image.cfs docker://registry.example/app:2 --json",
        "mkcfs plan image.cfs oci:layout:app --top 3",
    ),
)
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@store_option("What is in this store does not have to be fetched either; repeatable.")
@click.option(
    "--from", "mirrors", type=PATH, multiple=True, metavar="PLACE", help="As pull would be told to; repeatable."
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=TOP,
    show_default=True,
    metavar="N",
    help="List so many of the largest directories and files; 0: all.",
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of several (default: this machine's).")
@network_options
@json_option
@click.pass_context
def plan(
    context: click.Context,
    *,
    old: bytes,
    new: bytes,
    stores: list[bytes],
    mirrors: tuple[bytes, ...],
    top: int,
    platform: str | None,
    as_json: bool,
    **words: Unpack[NetworkWords],
) -> None:
    """Say what an update from the image at OLD to that at NEW would fetch.

    Both are image files or whatever pull takes. Objects that OLD has do not have to be fetched, nor those that the
    stores have. Nothing is fetched but the images themselves, and these are not checked.
    """
    session: Session = context.obj
    registries, network = networks_of(context, words, old, new, *mirrors, *stores)
    raise_fd_limit()
    report = run_plan(
        old,
        new,
        stores=over_network(stores, network),
        options=PlanOptions(
            mirrors=mirrors,
            platform=platform_of(platform),
            scratch=os.environb.get(b"TMPDIR") or None,
            top=top or None,
        ),
        registries=registries,
        network=network,
        warn=session.warn,
    )
    if as_json:
        print_json(report.to_dict())
        return
    print_line(f"{report.new}: {cost_text(report.cost, report.objects)}")
    print_lines(cost_lines(report.cost))


def cost_text(cost: FetchCost, objects: int) -> str:
    """The whole of it in one line, of an image that has so many *objects*."""
    text = f"{cost.objects:,} of {objects:,} objects to fetch ({size_text(cost.bytes)})"
    if cost.requests:
        text += f": {size_text(cost.bytes_fetched)} in {counted(cost.requests, 'request')}"
    return text + (f"; {cost.unreachable:,} of them are in no place" if cost.unreachable else "")


def cost_lines(cost: FetchCost) -> Iterator[str]:
    """The largest directories and files of it."""
    if cost.directories:
        yield "directories:"
        for directory in cost.directories:
            yield f"  {size_text(directory.bytes):>11}  {counted(directory.objects, 'object'):>13}  {directory.path}"
    if cost.files:
        yield "files:"
        for file in cost.files:
            yield f"  {size_text(file.bytes):>11}  {file.path}"
