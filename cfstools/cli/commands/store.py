"""``mkcfs store fsck``, ``mkcfs store gc``, ``mkcfs store push`` and ``mkcfs store stat``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import click

from cfstools.cli.output import print_json, print_line, print_lines, size_text
from cfstools.cli.params import PATH, STORE, GroupedCommand, examples, json_option, store_option
from cfstools.cli.remote_stores import StoreNetworkWords, network_of, readable_stores, store_network_options
from cfstools.cli.session import Session
from cfstools.cli.store_options import Duration, lock_timeout_option, no_wait_option, waiting
from cfstools.errors import CheckFailed, UsageError
from cfstools.text import counted

if TYPE_CHECKING:
    from cfstools.api.store_fsck import StoreFsckReport
    from cfstools.api.store_gc import StoreGcReport
    from cfstools.api.store_stat import StoreStatReport
    from cfstools.store.care.usage import StoreUsage

F = TypeVar("F", bound=Callable[..., Any])


def _store_option(function: F) -> F:
    return click.option("--store", type=STORE, required=True, metavar="DIR", help="The object store.")(function)


@click.group()
def store() -> None:
    """Care for an object store: check it, collect garbage, count, push its objects."""


@store.command(
    short_help="Check every object, and put right what is wrong.",
    epilog=examples(
        "mkcfs store fsck --store ./objects",
        "mkcfs store fsck --store ./objects --repair --from rootfs/",
        "mkcfs store fsck --store ./objects --remove-damaged --remove-temporaries --json",
    ),
)
@_store_option
@click.option("--repair", is_flag=True, help="Put right what can be put right.")
@click.option(
    "--from",
    "donors",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="With --repair: look for good contents in this store, directory tree or store over a network; repeatable.",
)
@click.option("--remove-damaged", is_flag=True, help="Remove damaged objects (that could not be replaced).")
@click.option("--remove-temporaries", is_flag=True, help="Remove what killed writers left behind; part of --repair.")
@click.option(
    "--measure", is_flag=True, help="Take the kernel's word for files with fs-verity instead of reading them."
)
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@store_network_options
@lock_timeout_option
@no_wait_option
@json_option
@click.pass_context
def fsck(
    ctx: click.Context,
    *,
    store: bytes,
    repair: bool,
    donors: tuple[bytes, ...],
    remove_damaged: bool,
    remove_temporaries: bool,
    measure: bool,
    threads: int | None,
    lock_timeout: float | None,
    no_wait: bool,
    as_json: bool,
    **network: Unpack[StoreNetworkWords],
) -> None:
    """Check the contents of every object, and list whatever else is wrong in a store.

    With --repair damaged objects are replaced from where --from says, objects in a wrong place moved to the right one,
    and stale temporaries removed. Nothing is given up before what replaces it is on stable storage. Exit code 3 if
    problems remain.
    """
    from cfstools.api.store_fsck import fsck as run
    from cfstools.store.care.repair import RepairOptions

    if donors and not repair:
        raise UsageError("--from says where --repair finds contents: it does nothing alone")
    options = RepairOptions(
        replace=repair,
        sync="auto",
        donors=readable_stores(donors, network),
        remove_damaged=remove_damaged,
        remove_temporaries=repair or remove_temporaries,
    )
    session = ctx.obj
    assert isinstance(session, Session)
    report = run(
        store,
        now=time.time(),
        options=options if repair or remove_damaged or remove_temporaries else None,
        measure=measure,
        threads=threads,
        waiting=waiting(session, lock_timeout, no_wait=no_wait),
        progress=session.progress(),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print_fsck(report)
    if not report.ok:
        ctx.exit(CheckFailed.exit_code)


def _print_fsck(report: StoreFsckReport) -> None:
    place = report.store
    for problem in report.problems:
        print_line(f"{place}: {problem}")
    unlisted = sum(report.faults.values()) - len(report.problems)
    if unlisted:
        print_line(f"{place}: and {unlisted} more like these")
    parts = [f"{counted(report.objects, 'object')} checked ({size_text(report.bytes)})"]
    if report.measured:
        parts.append(f"{report.measured} by the kernel")
    parts += [f"{count} {fault}" for fault, count in report.faults.items()]
    if report.settled:
        parts.append(f"{report.settled} put right")
    verdict = "ok" if report.ok else f"FAILED: {counted(report.remaining, 'problem')}"
    print_line(f"{place}: {verdict}: {', '.join(parts)}")


@store.command(
    epilog=examples(
        "mkcfs store gc --store ./objects --keep image.cfs --dry-run",
        "mkcfs store gc --store ./objects --keep-dir . --grace 2d",
    )
)
@_store_option
@click.option("--keep", type=PATH, multiple=True, metavar="IMAGE", help="Keep the objects of this image; repeatable.")
@click.option(
    "--keep-dir",
    "keep_dirs",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="Keep the objects of every image below this directory; repeatable.",
)
@click.option(
    "--no-image",
    "no_images",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="This file below --keep-dir is no image, although it looks like one; repeatable.",
)
@click.option(
    "--forget",
    type=PATH,
    multiple=True,
    metavar="IMAGE",
    help="Go on although this image, which the last collection kept, is gone; repeatable.",
)
@click.option("--forget-missing", is_flag=True, help="Go on whichever images of the last collection are gone.")
@click.option("--keep-nothing", is_flag=True, help="Go on although no image was given or found: remove everything.")
@click.option(
    "--grace",
    type=Duration(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Keep objects added more recently than this: 90s, 15m, 1h, 2d.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@lock_timeout_option
@no_wait_option
@json_option
@click.pass_obj
def gc(
    session: Session,
    *,
    store: bytes,
    keep: tuple[bytes, ...],
    keep_dirs: tuple[bytes, ...],
    no_images: tuple[bytes, ...],
    forget: tuple[bytes, ...],
    forget_missing: bool,
    keep_nothing: bool,
    grace: float,
    dry_run: bool,
    lock_timeout: float | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Remove the objects that none of the images to keep needs.

    Waits for running builds to end and keeps new ones waiting meanwhile, so nothing they need is touched. An image that
    cannot be read, a file below --keep-dir that might be a damaged image, and an image of the last collection that is
    gone, stop everything before anything is removed. What killed builds left behind is removed as well.
    """
    from cfstools.api.store_gc import gc as run

    report = run(
        store,
        keep=keep,
        keep_dirs=keep_dirs,
        no_images=no_images,
        forget=forget,
        forget_missing=forget_missing,
        keep_nothing=keep_nothing,
        now=time.time(),
        grace=grace,
        dry_run=dry_run,
        waiting=waiting(session, lock_timeout, no_wait=no_wait),
        progress=session.progress(),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print_gc(report, verbose=session.verbosity > 0)


def _print_gc(report: StoreGcReport, *, verbose: bool) -> None:
    if verbose:
        for name in report.passed_over:
            print_line(f"{name}: is no image")
    for name in (*report.forgotten, *report.left_out):
        print_line(f"{name}: was kept by the last collection, and is not kept any more")
    if report.dry_run or verbose:
        for digest in report.removed:
            print_line(f"{digest.hex()[:2]}/{digest.hex()[2:]}")
    done = "would remove" if report.dry_run else "removed"
    lines = [
        f"{done} {counted(len(report.removed), 'object')} ({size_text(report.bytes_removed)})",
        f"kept {report.kept} ({size_text(report.bytes_kept)}) of {counted(len(report.images), 'image')}",
    ]
    if report.young:
        lines.append(f"{report.young} too young ({size_text(report.bytes_young)})")
    if report.temporaries_removed:
        lines.append(f"{done} {report.temporaries_removed} left behind by writers")
    if report.missing:
        lines.append(f"{report.missing} needed but not there")
    if report.passed_over:
        lines.append(f"passed over {counted(len(report.passed_over), 'file')} that are no images")
    print_line(f"{report.store}: {', '.join(lines)}")


@store.command(
    cls=GroupedCommand,
    short_help="Send objects to another store.",
    epilog=examples(
        "mkcfs store push --store ./objects /mnt/objects",
        "mkcfs store push --store ./objects s3://bucket/images/objects image.cfs",
    ),
)
@store_option("Send objects of this store; of several, the first that has an object counts.")
@click.argument("place", type=PATH)
@click.argument("images", metavar="[IMAGE]...", nargs=-1, type=PATH)
@store_network_options
@lock_timeout_option
@json_option
@click.pass_obj
def push(
    session: Session,
    *,
    stores: list[bytes],
    place: bytes,
    images: tuple[bytes, ...],
    lock_timeout: float | None,
    as_json: bool,
    **network: Unpack[StoreNetworkWords],
) -> None:
    """Send the objects of the IMAGEs, or all, to the store at PLACE, as far as it lacks them.

    PLACE is a directory, or a URL of s3, gs, az or file; as a store, --store reads it. Each object is compared with its
    digest on the way.
    """
    from cfstools.api.store_push import SendOptions, push_objects

    if not stores:
        raise UsageError("the objects have to come from somewhere: add --store")
    sources = readable_stores([*stores, place], network)[:-1]
    report = push_objects(
        sources,
        place,
        images,
        options=SendOptions(connections=network["connections"], waiting=waiting(session, lock_timeout)),
        network=network_of(network["ca_file"], network["connections"]),
        progress=session.progress(),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        what = f"{report.objects_sent:,} of {report.objects:,} objects sent"
        print_line(f"{report.place}: {what}, {size_text(report.bytes_sent)} of {size_text(report.bytes)}")


@store.command(
    epilog=examples("mkcfs store stat --store ./objects", "mkcfs store stat --store ./objects image.cfs --json")
)
@_store_option
@click.argument("images", metavar="[IMAGE]...", nargs=-1, type=PATH)
@lock_timeout_option
@json_option
@click.pass_obj
def stat(
    session: Session, *, store: bytes, images: tuple[bytes, ...], lock_timeout: float | None, as_json: bool
) -> None:
    """Count objects and their sizes, and what the IMAGEs share of them.

    Of each image, exclusive objects are those that none of the other images given needs.
    """
    from cfstools.api.store_stat import stat as run

    report = run(store, images, waiting=waiting(session, lock_timeout), progress=session.progress())
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines(_stat_lines(report))


def _stat_lines(report: StoreStatReport) -> list[str]:
    usage = report.usage
    algorithms = ", ".join(f"{count} {name}" for name, count in usage.algorithms.items()) or "none"
    rows = [
        ("store", report.store),
        ("objects", f"{usage.objects}: {algorithms}"),
        ("size", f"{usage.bytes} bytes ({size_text(usage.bytes)}), {size_text(usage.bytes_allocated)} on disk"),
        ("temporaries", str(usage.temporaries)),
        ("foreign", str(usage.foreign)),
    ]
    lines = [f"{label + ':':<13}{value}" for label, value in rows]
    for size in usage.sizes:
        if size.objects:
            limit = f"up to {size_text(size.limit)}" if size.limit is not None else "larger"
            lines.append(f"{limit:>18}  {size.objects:>9}  {size_text(size.bytes):>11}")
    if report.images:
        lines += _sharing_lines(report, usage)
    return lines


def _sharing_lines(report: StoreStatReport, usage: StoreUsage) -> list[str]:
    lines = ["images:"]
    for name, image in zip(report.images, usage.images, strict=True):
        text = (
            f"  {name}: {counted(image.objects, 'object')} ({size_text(image.bytes)}), "
            f"{image.exclusive} exclusive ({size_text(image.bytes_exclusive)})"
        )
        lines.append(text + (f", {image.missing} missing ({size_text(image.bytes_missing)})" if image.missing else ""))
    lines += [
        f"  needed by {counted(number, 'image')}: {counted(objects, 'object')}"
        for number, objects in usage.sharing.items()
    ]
    lines.append(f"  needed by none: {counted(usage.unused, 'object')} ({size_text(usage.bytes_unused)})")
    return lines
