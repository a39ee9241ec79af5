"""``mkcfs diff``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cfstools.api.changes import ChangeReport, Difference
from cfstools.api.diff import DiffOptions, DiffReport, SideReport
from cfstools.api.diff import diff as run_diff
from cfstools.api.expect import BuildChoice
from cfstools.api.expect import expect as run_expect
from cfstools.cli.network_options import NetworkWords, network_options, registries_of
from cfstools.cli.output import print_json, print_line, print_lines, size_text
from cfstools.cli.params import PATH, examples, json_option, store_option
from cfstools.cli.remote_stores import stores_elsewhere
from cfstools.cli.session import Session
from cfstools.errors import CheckFailed, UsageError
from cfstools.text import counted
from cfstools.tree.diff import Aspect
from cfstools.verity import Algorithm, ObjectId

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cfstools.oci.registry.reference import RegistryOptions

_STDIO = b"-"
_FORMAT = "format"
_IGNORABLE = {aspect.value: aspect for aspect in Aspect if aspect is not Aspect.TYPE}
_OPTIONS = {
    BuildChoice.VERSION_0: "--max-version 0",
    BuildChoice.VERSION_1: "--min-version 1",
    BuildChoice.NO_DEVICES: "--skip-devices",
    BuildChoice.NO_XATTRS: "--skip-xattrs",
    BuildChoice.USER_XATTRS: "--user-xattrs",
    BuildChoice.NO_HARDLINKS: "--no-hardlinks",
    BuildChoice.EPOCH: "--use-epoch",
}
_SIGNS = {"added": "+", "removed": "-", "changed": "M"}


def _parse_ignore(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> frozenset[str]:
    names = frozenset(name for text in value for name in text.split(","))
    for name in sorted(names - _IGNORABLE.keys() - {_FORMAT}):
        known = ", ".join([*_IGNORABLE, _FORMAT])
        raise click.BadParameter(f"{name!r} is not one of {known}", ctx=ctx, param=param)
    return names


@click.command(
    epilog=examples(
        "mkcfs diff image.cfs rootfs/",
        "mkcfs diff image.cfs rootfs/ --ignore mtime,owner,xattrs --summary",
        "mkcfs diff image.cfs image.cfs --json",
        "mkcfs diff tree.dump --expect 52ad4c5217236417a602c9a06186d1c2f7a7e2ad77d0eee105ef4cbd6042e9fb",
    )
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@store_option("Objects here need not be fetched, and are read where digests cannot be compared.")
@click.option("--summary", is_flag=True, help="Leave out the lines of single names.")
@click.option(
    "--ignore",
    metavar="WHAT,...",
    multiple=True,
    callback=_parse_ignore,
    help=f"What does not matter: {', '.join([*_IGNORABLE, _FORMAT])}; repeatable.",
)
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice([algorithm.value for algorithm in Algorithm]),
    help="Digest sources that are not images with this (default: as the image on the other side, else sha256).",
)
@click.option(
    "--expect",
    metavar="HEX",
    help="Say which options of `build` make an image of A with this digest; there is no B.",
)
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@network_options
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    *,
    a: bytes,
    b: bytes | None,
    stores: list[bytes],
    summary: bool,
    ignore: frozenset[str],
    algorithm: str | None,
    expect: str | None,
    threads: int | None,
    as_json: bool,
    **network: Unpack[NetworkWords],
) -> None:
    """Say what changed from A to B, each an image or any source that `build` takes.

    A line for each name: `+` for one that only B has, `-` for one that only A has, `M` for one with something else in
    B, and what that is. Then how many there are, what a client that has A must fetch for B, and the digests. Where
    only these differ, the lines headed `why` name the rule that made them differ.

    The digest of what is not an image is that of the image `build` would make of it with default options. The exit
    code is 0 if A and B are the same, 3 if not. With --ignore digests do not matter; `--ignore format` ignores nothing
    else.

    With --expect and no B, images of A are made in every way `build` knows, in memory, until one has the digest.
    """
    session: Session = ctx.obj
    registries = registries_of(ctx, network, a, b or b"")
    if expect is not None:
        if b is not None or stores or summary or ignore or algorithm is not None:
            raise UsageError("--expect is about A alone: it takes no B, --store, --summary, --ignore or --hash")
        found = _expect(session, a, expect, threads, registries, as_json=as_json)
        ctx.exit(0 if found else CheckFailed.exit_code)
    if b is None:
        raise UsageError("nothing to compare A with", hint="name B, or give a digest with --expect")
    report = run_diff(
        a,
        b,
        stores=stores_elsewhere(stores, network),
        options=DiffOptions(
            algorithm=None if algorithm is None else Algorithm(algorithm),
            ignore=frozenset(_IGNORABLE[name] for name in ignore - {_FORMAT}),
            ignore_format=_FORMAT in ignore,
        ),
        threads=threads or len(os.sched_getaffinity(0)),
        stdin=sys.stdin.buffer if _STDIO in (a, b) else None,
        registries=registries,
        progress=session.progress(),
    )
    if as_json:
        document = report.to_dict()
        if summary:
            del document["changes"]
        print_json(document)
    else:
        if not summary:
            print_lines(map(_change_line, report.changes))
        print_lines(f"{label + ':':<11}{text}" for label, text in _rows(report))
    if not report.same:
        ctx.exit(CheckFailed.exit_code)


def _expect(
    session: Session,
    a: bytes,
    digest: str,
    threads: int | None,
    registries: RegistryOptions | None,
    *,
    as_json: bool,
) -> bool:
    report = run_expect(
        a,
        ObjectId.parse(digest),
        threads=threads or len(os.sched_getaffinity(0)),
        stdin=sys.stdin.buffer if a == _STDIO else None,
        registries=registries,
        progress=session.progress(),
    )
    choices = [_choice_text(choice) for choice in report.choices]
    if as_json:
        print_json({**report.to_dict(), "choices": choices})
    elif report.found:
        print_line(f"{report.format}: {'; '.join(choices) or 'the defaults'}")
    else:
        print_line(f"none of {counted(report.tried, 'image')} that A can become has this digest")
    return report.found


def _choice_text(choice: BuildChoice) -> str:
    """The choice in words, with the option of ``build`` where there is one."""
    option = _OPTIONS.get(choice)
    return choice.value if option is None else f"{choice.value} ({option})"


def _change_line(change: ChangeReport) -> str:
    said = [_difference_text(difference) for difference in change.differences]
    if change.link_to is not None:
        said.append(f"a link to {change.link_to}")
    text = f": {'; '.join(said)}" if said else ""
    return f"{_SIGNS[change.change]} {change.path}{text}"


def _difference_text(difference: Difference) -> str:
    before, after = difference.before, difference.after
    match difference.aspect:
        case "xattrs":
            verb = "added" if before is None else "removed" if after is None else "changed"
            return f"xattr {difference.key} {verb}"
        case "content" if difference.size_before != difference.size_after:
            return f"content {difference.size_before} -> {difference.size_after} bytes"
        case "content":
            return f"content of {difference.size_before} bytes"
        case "links":
            return f"{before} -> {after}"
        case aspect:
            return f"{aspect} {before or 'none'} -> {after or 'none'}"


def _rows(report: DiffReport) -> Iterator[tuple[str, str]]:
    yield "changes", _counts_text(report)
    if report.ignored:
        yield "ignored", ", ".join(report.ignored)
    yield "fetch", _fetch_text(report)
    yield "A", _side_text(report.a)
    yield "B", _side_text(report.b)
    for reason in report.reasons:
        yield "why", f"{reason.rule.value}: {reason.what}"
    if report.contents_unknown:
        yield "unknown", f"{counted(report.contents_unknown, 'file')} without a digest, compared by size and object"
    if report.contents_incomparable and not report.reasons:
        count = counted(report.contents_incomparable, "file")
        yield "unknown", f"{count} with digests of two algorithms, compared by size"


def _counts_text(report: DiffReport) -> str:
    if not report.changes:
        return "none"
    counts = f"{report.added} added, {report.removed} removed, {report.changed} changed"
    aspects = ", ".join(f"{aspect} {count}" for aspect, count in report.aspects.items())
    return f"{counts} ({aspects})" if aspects else counts


def _fetch_text(report: DiffReport) -> str:
    shared = f"{counted(report.objects_shared, 'object')} shared"
    if not report.image_to_fetch:
        return f"nothing; {shared}"
    if not report.objects_to_fetch:
        return f"only the image ({size_text(report.image_to_fetch)}); {shared}"
    objects = f"{counted(report.objects_to_fetch, 'object')} ({size_text(report.bytes_to_fetch)})"
    return f"{objects} and the image ({size_text(report.image_to_fetch)}); {shared}"


def _side_text(side: SideReport) -> str:
    return f"{side.format} {side.digest} {side.kind} {side.path}"
