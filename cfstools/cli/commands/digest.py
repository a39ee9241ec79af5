"""``mkcfs digest``."""

from __future__ import annotations

import os

import click

from cfstools.api.digest import digest as compute
from cfstools.cli.output import print_json_lines, print_line, write_lines
from cfstools.cli.params import PATH, examples, json_lines_option, zero_option
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.text import shown_path
from cfstools.verity import Algorithm, ObjectId, Params, formatted_digest


@click.command(
    epilog=examples(
        "mkcfs digest rootfs/etc/hostname",
        "mkcfs digest --compact --hash-alg sha512 image.cfs",
        "mkcfs digest --block-size 1024 --salt 00ff image.cfs",
    )
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("--compact", is_flag=True, help="Print the digests alone.")
@click.option(
    "--hash-alg",
    type=click.Choice([algorithm.value for algorithm in Algorithm]),
    default=Algorithm.SHA256.value,
    show_default=True,
    help="Hash algorithm.",
)
@click.option("--block-size", type=int, default=4096, show_default=True, metavar="BYTES", help="Merkle tree block.")
@click.option("--salt", default="", metavar="HEX", help="Salt, up to 32 bytes in hexadecimal.")
@click.option("--for-builtin-sig", is_flag=True, help="Print what the kernel's built-in signatures sign.")
@zero_option
@json_lines_option
@click.pass_obj
def digest(
    session: Session,
    *,
    files: tuple[bytes, ...],
    compact: bool,
    hash_alg: str,
    block_size: int,
    salt: str,
    for_builtin_sig: bool,
    zero: bool,
    as_json: bool,
) -> None:
    """Print the fs-verity digest of each FILE, as `fsverity digest` prints it.

    Names that are not printable are escaped as in a dump, and a backslash is written twice; -z prints them as they are.
    """
    if zero and as_json:
        raise UsageError("-z and --json-lines are two different forms: choose one")
    params = Params(algorithm=Algorithm(hash_alg), block_size=block_size, salt=_salt(salt))
    reports = compute(files, params=params, threads=len(os.sched_getaffinity(0)), progress=session.progress())
    if as_json:
        print_json_lines({**report.to_dict(), "path": shown_path(report.path)} for report in reports)
        return
    for report in reports:
        value = formatted_digest(ObjectId(params.algorithm, report.digest)) if for_builtin_sig else report.digest
        text = value.hex() if for_builtin_sig or compact else f"{report.algorithm}:{value.hex()}"
        if zero:
            write_lines([text.encode() + (b"" if compact else b" " + report.path) + b"\0"])
        else:
            print_line(text if compact else f"{text} {shown_path(report.path)}")


def _salt(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"salt {text!r} is not hexadecimal") from None
