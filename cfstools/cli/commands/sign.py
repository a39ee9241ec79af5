"""``mkcfs sign``."""

from __future__ import annotations

import click

from cfstools import api
from cfstools.cli.output import print_json
from cfstools.cli.params import PATH, examples, json_option
from cfstools.cli.passphrase import Passphrases, passphrase_options
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.verity import Algorithm


@click.command(
    epilog=examples(
        "mkcfs sign image.cfs --key release.key",
        "mkcfs sign image.cfs --key release.key --key ci.key --attach",
        "mkcfs sign image.cfs --remove",
        "mkcfs sign image.cfs --kernel --key kernel.key --cert kernel.crt -o image.cfs.p7s",
    )
)
@click.argument("image", type=PATH)
@click.option("--key", "keys", type=PATH, multiple=True, metavar="KEY", help="Private key in PEM; repeatable.")
@passphrase_options
@click.option("--attach", is_flag=True, help="Append the signature to the image instead of writing IMAGE.sig.")
@click.option("--remove", is_flag=True, help="Remove the signature appended to the image, and delete IMAGE.sig.")
@click.option(
    "-o",
    "--signature",
    "output",
    type=PATH,
    metavar="FILE",
    help="Signature file (default IMAGE.sig; IMAGE.p7s with --kernel).",
)
@click.option("--kernel", is_flag=True, help="Write the PKCS#7 that the kernel checks when it enables fs-verity.")
@click.option("--cert", "certificate", type=PATH, metavar="CERT", help="Certificate of the key, for --kernel.")
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice([algorithm.value for algorithm in Algorithm]),
    help="Hash of the fs-verity digest (default: that of the image's objects).",
)
@json_option
@click.pass_obj
def sign(
    session: Session,
    *,
    image: bytes,
    keys: tuple[bytes, ...],
    passphrase_file: bytes | None,
    passphrase_fd: int | None,
    attach: bool,
    remove: bool,
    output: bytes | None,
    kernel: bool,
    certificate: bytes | None,
    algorithm: str | None,
    as_json: bool,
) -> None:
    """Sign IMAGE with one key or several.

    The signature is written to IMAGE.sig, or appended to the image with --attach. Signatures already there are kept,
    and signing again with the same key changes nothing. IMAGE is read and checked first: only a valid image is signed.
    """
    _check_options(keys, attach=attach, remove=remove, output=output, kernel=kernel, certificate=certificate)
    if remove:
        removal = api.remove_signatures(image, output=output)
        if as_json:
            print_json(removal.to_dict())
        session.detail(*[f"{path}: signature removed" for path in removal.removed] or ["no signature to remove"])
        return
    passphrases = Passphrases.of(passphrase_file, passphrase_fd, session.warn)
    loaded = [passphrases.load(key) for key in keys]
    hash_choice = None if algorithm is None else Algorithm(algorithm)
    if kernel:
        assert certificate is not None
        report = api.sign_for_kernel(image, loaded[0], certificate, output=output, algorithm=hash_choice)
    else:
        report = api.sign(image, loaded, attach=attach, output=output, algorithm=hash_choice)
    if as_json:
        print_json(report.to_dict())
    signers = ", ".join(f"{key.algorithm} key {key.key_id}" for key in loaded)
    session.summary(f"{report.signature}: {'signed by' if report.changed else 'was already signed by'} {signers}")


def _check_options(
    keys: tuple[bytes, ...],
    *,
    attach: bool,
    remove: bool,
    output: bytes | None,
    kernel: bool,
    certificate: bytes | None,
) -> None:
    if remove and (keys or attach or kernel):
        raise UsageError("--remove only removes signatures: leave --key, --attach and --kernel out")
    if not remove and not keys:
        raise UsageError("there is no key to sign with", hint="add --key KEY; `mkcfs keygen` makes one")
    if attach and output is not None:
        raise UsageError("--attach puts the signature into the image: leave --signature out")
    if kernel and (attach or len(keys) != 1 or certificate is None):
        raise UsageError("--kernel takes exactly one --key and its --cert, and writes a file of its own")
    if certificate is not None and not kernel:
        raise UsageError("--cert only has a meaning with --kernel")
