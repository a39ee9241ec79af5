"""``mkcfs keygen``."""

from __future__ import annotations

import click

from cfstools.api.keygen import keygen as make
from cfstools.cli.output import print_json, print_line
from cfstools.cli.params import PATH, examples, json_option
from cfstools.cli.passphrase import Passphrases, guard_secrets, passphrase_options
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.signing.keys import MIN_NEW_RSA_BITS, KeyType


@click.command(
    epilog=examples(
        "mkcfs keygen mykey --no-passphrase",
        "mkcfs keygen backup --type ecdsa-p256 --passphrase-file secret.txt",
        "mkcfs keygen robot --type rsa --bits 3072 --no-passphrase",
    )
)
@click.argument("name", type=PATH)
@click.option(
    "--type",
    "kind",
    type=click.Choice([kind.value for kind in KeyType]),
    default=KeyType.ED25519.value,
    show_default=True,
    help="Kind of key.",
)
@click.option("--bits", type=int, metavar="N", help=f"Size of an RSA key (default {MIN_NEW_RSA_BITS}).")
@click.option("--no-passphrase", is_flag=True, help="Do not encrypt the private key, and do not ask.")
@passphrase_options
@json_option
@click.pass_obj
def keygen(
    session: Session,
    *,
    name: bytes,
    kind: str,
    bits: int | None,
    no_passphrase: bool,
    passphrase_file: bytes | None,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Make a key to sign images with: the private NAME.key and the public NAME.pub.

    NAME.key is PKCS#8 in PEM, readable by its owner alone, and encrypted if there is a passphrase. On a terminal it is
    asked for; without one, --no-passphrase says that the key shall not be encrypted. Prints the public key's file, its
    kind and its id. No file is ever overwritten.
    """
    key_type = KeyType(kind)
    if bits is not None and key_type is not KeyType.RSA:
        raise UsageError("--bits is for RSA keys only")
    if no_passphrase and (passphrase_file is not None or passphrase_fd is not None):
        raise UsageError("--no-passphrase contradicts a passphrase")
    guard_secrets(session.warn)
    passphrase = None if no_passphrase else Passphrases.of(passphrase_file, passphrase_fd, session.warn).fresh()
    report = make(name, kind=key_type, rsa_bits=MIN_NEW_RSA_BITS if bits is None else bits, passphrase=passphrase)
    if as_json:
        print_json(report.to_dict())
    else:
        print_line(f"{report.public_key}: {report.algorithm} key {report.key_id}")
    session.detail(f"{report.private_key}: {'encrypted' if report.encrypted else 'not encrypted'}")
