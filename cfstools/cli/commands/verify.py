"""``mkcfs verify``."""

from __future__ import annotations

import os
from typing import Unpack

import click

from cfstools.api.verify import Outcome, VerifyReport
from cfstools.api.verify import verify as run_verify
from cfstools.cli.output import print_json, print_line
from cfstools.cli.params import PATH, examples, json_option, public_keys, store_option
from cfstools.cli.remote_stores import StoreNetworkWords, readable_stores, store_network_options
from cfstools.cli.session import Session
from cfstools.errors import CheckFailed, UsageError
from cfstools.linux.files import raise_fd_limit
from cfstools.signing import KeyState, Verdict
from cfstools.text import counted
from cfstools.verity import ObjectId

_SHOWN_WARNINGS = 10


@click.command(
    epilog=examples(
        "mkcfs verify image.cfs --key release.pub --store ./objects",
        "mkcfs verify image.cfs --key release.pub --key ci.pub --threshold 2",
        "mkcfs verify image.cfs --digest-file image.digest --store ./objects --shallow",
        "mkcfs verify image.cfs --canonical --json",
    )
)
@click.argument("image", type=PATH)
@click.option("--key", "keys", type=PATH, multiple=True, metavar="PUB", help="Public key in PEM; repeatable.")
@click.option(
    "--threshold", type=click.IntRange(min=1), metavar="N", help="How many of the keys have to have signed (default 1)."
)
@click.option("--signature", type=PATH, metavar="FILE", help="Signature file (default IMAGE.sig, if it is there).")
@click.option("--digest", metavar="HEX", help="The fs-verity digest the image has to have.")
@click.option("--digest-file", type=PATH, metavar="FILE", help="Read that digest from a file.")
@store_option("Check the objects in this store; of several, the first that has an object counts.")
@click.option("--deep/--shallow", default=True, help="Check the contents of objects (default), or that they are there.")
@click.option("--canonical", is_flag=True, help="Also check that a careful writer would have made the same bytes.")
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@store_network_options
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    image: bytes,
    keys: tuple[bytes, ...],
    threshold: int | None,
    signature: bytes | None,
    digest: str | None,
    digest_file: bytes | None,
    stores: list[bytes],
    deep: bool,
    canonical: bool,
    threads: int | None,
    as_json: bool,
    **network: Unpack[StoreNetworkWords],
) -> None:
    """Check IMAGE: its signature or digest, its structure, and every object it needs.

    With --key or --digest nothing in the image is interpreted before that holds. Without --store the objects are not
    checked, and the answer says so. All problems are listed, each on a line. Exit code 3 if there is one.
    """
    if threshold is not None and not keys:
        raise UsageError("--threshold counts keys, and there is no --key")
    session = ctx.obj
    assert isinstance(session, Session)
    raise_fd_limit()  # each thread holds some objects open
    report = run_verify(
        image,
        keys=public_keys(keys),
        threshold=threshold or 1,
        signature=signature,
        digest=_expected(digest, digest_file, image),
        stores=readable_stores(stores, network),
        deep=deep,
        canonical=canonical,
        threads=threads or len(os.sched_getaffinity(0)),
        progress=session.progress(),
    )
    for warning in report.warnings[:_SHOWN_WARNINGS]:
        session.warn(f"{report.image}: {warning}")
    if len(report.warnings) > _SHOWN_WARNINGS:
        session.warn(
            f"{report.image}: and {len(report.warnings) - _SHOWN_WARNINGS} more warnings (--json has them all)"
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, deep=deep)
    if not report.ok:
        ctx.exit(CheckFailed.exit_code)


def _expected(digest: str | None, digest_file: bytes | None, image: bytes) -> ObjectId | None:
    if digest is not None and digest_file is not None:
        raise UsageError("--digest and --digest-file contradict each other")
    if digest is not None:
        return ObjectId.parse(digest)
    if digest_file is not None:
        from cfstools.verity.files import read_digest_file

        return read_digest_file(digest_file, image)
    return None


def _print(report: VerifyReport, *, deep: bool) -> None:
    for problem in report.problems:
        print_line(f"{report.image}: {problem}")
    unlisted = report.problem_count - len(report.problems)
    if unlisted:
        print_line(f"{report.image}: and {counted(unlisted, 'problem')} more")
    verdict = "ok" if report.ok else f"FAILED: {counted(report.problem_count, 'problem')}"
    print_line(f"{report.image}: {verdict}: {', '.join(_states(report, deep=deep))}")


def _states(report: VerifyReport, *, deep: bool) -> list[str]:
    """What came of each part, in words."""
    states = []
    if report.digest_check is not Outcome.NOT_CHECKED:
        states.append("digest ok" if report.digest_check is Outcome.OK else "digest mismatch")
    states.append(_signature_text(report))
    states.append(f"structure {report.structure.value}")
    if report.canonical is not Outcome.NOT_CHECKED:
        states.append("canonical" if report.canonical is Outcome.OK else "not canonical")
    states.append(_objects_text(report, deep=deep))
    return states


def _signature_text(report: VerifyReport) -> str:
    signature = report.signature
    if signature.state is not Verdict.VERIFIED:
        return f"signature {signature.state.value}"
    keys = [
        f"{check.algorithm} key {check.key_id}" for check in signature.signatures if check.state is KeyState.VERIFIED
    ]
    return f"signature verified by {' and '.join(keys)}"


def _objects_text(report: VerifyReport, *, deep: bool) -> str:
    if report.objects is Outcome.NOT_CHECKED:
        return "objects not checked"
    good = report.objects_measured + report.objects_hashed + report.objects_present
    state = "intact" if deep else "present"
    if good == report.objects_needed:
        return f"{counted(good, 'object')} {state}"
    return f"{good} of {counted(report.objects_needed, 'object')} {state}"
