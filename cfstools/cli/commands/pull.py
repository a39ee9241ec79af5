"""``mkcfs pull``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cfstools.api.pull import PullOptions, PullReport
from cfstools.api.pull import pull as run_pull
from cfstools.cli.commands.plan import cost_lines
from cfstools.cli.network_options import NetworkWords, network_options, networks_of
from cfstools.cli.oci_options import platform_of
from cfstools.cli.output import print_json, print_line, print_lines, size_text
from cfstools.cli.params import (
    PATH,
    GroupedCommand,
    examples,
    json_option,
    option_group,
    public_keys,
    store_option,
)
from cfstools.cli.session import Session
from cfstools.cli.store_options import lock_timeout_option, new_object_options, waiting
from cfstools.errors import UsageError
from cfstools.linux.files import raise_fd_limit
from cfstools.signing import Verdict
from cfstools.store.base import FsVerity, Sync
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from typing_extensions import Unpack


_CHECK_OPTIONS = (
    click.option("--key", "keys", type=PATH, multiple=True, metavar="PUB", help="Public key in PEM; repeatable."),
    click.option(
        "--threshold",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many of the keys have to have signed (default 1).",
    ),
    click.option("--digest", metavar="HEX", help="The fs-verity digest the image has to have."),
)
_STORE_OPTIONS = (
    store_option("Put missing objects here; further stores are only looked in for objects already there."),
    *new_object_options,
    lock_timeout_option,
)


class _Words(NetworkWords):
    """What click hands over for the options."""

    keys: tuple[bytes, ...]
    threshold: int | None
    digest: str | None
    mirrors: tuple[bytes, ...]
    stores: list[bytes]
    verity: FsVerity
    sync: Sync
    object_mode: int
    lock_timeout: float | None
    platform: str | None


@click.command(
    cls=GroupedCommand,
    epilog=examples(
        "mkcfs pull docker://registry.example/app:2 app.cfs --store ./objects --key release.pub",
        "mkcfs pull docker://registry.example/app:2 --store ./objects --key release.pub --dry-run",
        "mkcfs pull oci:layout:app app.cfs --store ./objects",
        "mkcfs pull https://example.com/images/image.cfs app.cfs --store ./objects --key release.pub",
        "mkcfs pull s3://bucket/images/image.cfs app.cfs --store ./objects --from https://example.com/images/objects",
    ),
)
@click.argument("place", type=PATH)
@click.argument("image", type=PATH, required=False)
@click.option(
    "--from",
    "mirrors",
    type=PATH,
    multiple=True,
    metavar="PLACE",
    help="Fetch objects from this store, a directory or URL, before the layers of a container image, instead of "
    "objects/ beside an image file; repeatable, in the order in which they are asked.",
)
@option_group("Check options", *_CHECK_OPTIONS)
@option_group("Store options", *_STORE_OPTIONS)
@network_options
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="The image for this platform, where there are several.")
@click.option("--dry-run", is_flag=True, help="Fetch no objects and write nothing: say what would be fetched.")
@json_option
@click.pass_context
def pull(
    context: click.Context,
    *,
    place: bytes,
    image: bytes | None,
    dry_run: bool,
    as_json: bool,
    **words: Unpack[_Words],
) -> None:
    """Pull the pushed image at PLACE to IMAGE, and of its objects those that no store has.

    PLACE is docker://HOST/NAME[:TAG|@DIGEST], oci:DIR[:NAME] or oci-archive:FILE[:NAME], or an image file: a path or a
    URL of https, s3, gs, az or file, whose objects are in objects/ beside it. With --key or --digest nothing in the
    image is interpreted before that holds; the signature is kept as IMAGE.sig. Each object is compared with its digest
    before the store gets it, wherever it comes from.
    """
    session: Session = context.obj
    if not words["stores"]:
        raise UsageError("the objects of the image have to go somewhere: add --store")
    if image is None and not dry_run:
        raise UsageError("there is no IMAGE to write; --dry-run needs none")
    raise_fd_limit()
    registries, network = networks_of(context, words, place, *words["mirrors"])
    report = run_pull(
        place,
        None if dry_run else image,
        stores=words["stores"],
        options=_pull_options(session, words),
        registries=registries,
        network=network,
        warn=session.warn,
        progress=session.progress(),
    )
    if as_json:
        print_json(report.to_dict())
    elif dry_run:
        print_line(_summary(report, "to fetch"))
        if report.cost is not None:
            print_lines(cost_lines(report.cost))
    if not dry_run:
        session.summary(f"{report.image}: {_summary(report, 'fetched')}")


def _pull_options(session: Session, words: _Words) -> PullOptions:
    if words["threshold"] is not None and not words["keys"]:
        raise UsageError("--threshold counts keys, and there is no --key")
    return PullOptions(
        keys=public_keys(words["keys"]),
        threshold=words["threshold"] or 1,
        digest=None if words["digest"] is None else ObjectId.parse(words["digest"]),
        platform=platform_of(words["platform"]),
        mirrors=words["mirrors"],
        connections=words["connections"],
        scratch=os.environb.get(b"TMPDIR") or None,
        object_mode=words["object_mode"],
        fs_verity=words["verity"],
        sync=words["sync"],
        waiting=waiting(session, words["lock_timeout"]),
    )


def _summary(report: PullReport, verb: str) -> str:
    what = f"{report.objects_fetched:,} of {report.objects:,} objects {verb}"
    how = (
        f"{size_text(report.bytes_fetched)} in {report.requests:,} {'request' if report.requests == 1 else 'requests'}"
        if report.requests
        else "nothing to ask for"
    )
    return f"{what}, {how}; {_checked(report)}"


def _checked(report: PullReport) -> str:
    if report.signature.state is Verdict.VERIFIED:
        by = ", ".join(key[:8] for key in report.signature.verified_by)
        return f"signature verified by {by}…"
    return "digest verified" if report.digest_checked else "not checked: no key and no digest was given"
