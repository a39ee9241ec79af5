"""``mkcfs push``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cfstools.api.push import PushOptions, PushReport
from cfstools.api.push import push as run_push
from cfstools.api.push_files import is_place_of_files
from cfstools.cli.network_options import NetworkWords, network_options, networks_of
from cfstools.cli.oci_options import platform_of
from cfstools.cli.output import print_json, print_line, size_text
from cfstools.cli.params import PATH, GroupedCommand, examples, given, json_option, option_group, store_option
from cfstools.cli.passphrase import Passphrases, passphrase_fd_option, passphrase_file_option
from cfstools.cli.remote_stores import over_network
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.linux.files import raise_fd_limit
from cfstools.oci.pushed.layer import LayerForm
from cfstools.streams.decompress import Compression

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_BASE = b"none"
_LEVEL = 6
# What the kernel calls a machine, and what images do, where that is something else.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i686": "386",
    "i386": "386",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "loongarch64": "loong64",
}
_OF_CONTAINERS = frozenset(
    (
        *("base", "platform", "config", "compression", "level", "skip_sockets", "mount_from", "chunk_size"),
        *("sign_keys", "threads", "passphrase_file", "passphrase_fd"),
    )
)
_IMAGE_OPTIONS = (
    store_option("Take the objects from this store; of several, the first that has an object counts."),
    click.option("--signature", type=PATH, metavar="FILE", help="Signature file (default IMAGE.sig, if it is there)."),
    click.option(
        "--base",
        type=PATH,
        default="auto",
        show_default=True,
        metavar="PLACE",
        help="Send only what changed since this pushed image; auto: the one that has the name now, none: send all.",
    ),
    click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="What it runs on (default: linux and this machine's)."
    ),
    click.option(
        "--config", type=PATH, metavar="FILE", help="Take command, environment and the like from this image config."
    ),
)
_LAYER_OPTIONS = (
    click.option(
        "--compression",
        type=click.Choice([Compression.ZSTD.value, Compression.GZIP.value]),
        default=Compression.ZSTD.value,
        show_default=True,
        help="Compress layers so; podman pulls zstd ones in part, older tools know gzip only.",
    ),
    click.option("--level", type=click.IntRange(1, 19), metavar="N", help="Level of compression (default 6)."),
    click.option("--skip-sockets", is_flag=True, help="Leave out sockets, which tar cannot hold."),
    click.option("--mount-from", metavar="REPOSITORY", help="Take blobs from this repository of the same registry."),
    click.option(
        "--chunk-size",
        type=click.IntRange(min=1 << 16),
        metavar="BYTES",
        help="Send blobs in parts of this size (default: whole, in parts where the registry asks for that).",
    ),
)
_SIGN_OPTIONS = (
    click.option(
        "--sign-key",
        "sign_keys",
        type=PATH,
        multiple=True,
        metavar="KEY",
        help="Attach a signature that names the manifest as well, for cosign; repeatable.",
    ),
    passphrase_file_option,
    passphrase_fd_option,
)


class _Words(NetworkWords):
    """What click hands over for the options."""

    stores: list[bytes]
    signature: bytes | None
    base: bytes
    platform: str | None
    config: bytes | None
    compression: str
    level: int | None
    skip_sockets: bool
    mount_from: str | None
    chunk_size: int | None
    sign_keys: tuple[bytes, ...]
    passphrase_file: bytes | None
    passphrase_fd: int | None
    threads: int | None


@click.command(
    cls=GroupedCommand,
    epilog=examples(
        "mkcfs push image.cfs --store ./objects docker://registry.example/app:2",
        "mkcfs push image.cfs --store ./objects docker://registry.example/app:2 --sign-key release.key",
        "mkcfs push image.cfs --store ./objects docker://localhost:5000/app --plain-http --base none",
        "mkcfs push image.cfs --store ./objects oci:layout:app --compression gzip",
        "mkcfs push image.cfs --store ./objects s3://bucket/images/",
    ),
)
@click.argument("image", type=PATH)
@click.argument("place", type=PATH)
@option_group("Image options", *_IMAGE_OPTIONS)
@option_group("Layer options", *_LAYER_OPTIONS)
@option_group("Signature options", *_SIGN_OPTIONS)
@network_options
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@json_option
@click.pass_context
def push(context: click.Context, *, image: bytes, place: bytes, as_json: bool, **words: Unpack[_Words]) -> None:
    """Push IMAGE with its objects to PLACE: docker://HOST/NAME[:TAG] in a registry, oci:DIR[:NAME], or files elsewhere.

    In a registry, what arrives is an ordinary container image, which other tools run, and which mkcfs pulls object by
    object. Its signature goes with it. Only what is not there yet is sent; nothing appears under the name before all of
    it is there. Files are for DIR/ or a URL of s3, gs, az or file: IMAGE, IMAGE.sig and objects/, which pull takes from
    there and from a web server.
    """
    session: Session = context.obj
    if not words["stores"]:
        raise UsageError("the objects of the image have to come from somewhere: add --store")
    raise_fd_limit()
    if is_place_of_files(place):
        _push_files(context, image, place, words, as_json=as_json)
        return
    registries, _ = networks_of(context, words, place, words["base"])
    report = run_push(
        image,
        place,
        stores=words["stores"],
        options=_push_options(session, words),
        signature=words["signature"],
        registries=registries,
        warn=session.warn,
        progress=session.progress(),
    )
    for warning in report.warnings:
        session.warn(f"{report.image}: {warning}")
    if as_json:
        print_json(report.to_dict())
    else:
        print_line(report.manifest)
    session.summary(_summary(report))


def _push_files(context: click.Context, image: bytes, place: bytes, words: _Words, *, as_json: bool) -> None:
    """Push to a place of files. Raises UsageError for options that are for container images."""
    from cfstools.api.push_files import push_files
    from cfstools.api.store_push import SendOptions

    if asked := given(context, _OF_CONTAINERS):
        raise UsageError(f"{', '.join(asked)} is only for docker://HOST/NAME or oci:DIR")
    _, network = networks_of(context, words, place, *words["stores"])
    session: Session = context.obj
    report = push_files(
        image,
        place,
        stores=over_network(words["stores"], network),
        options=SendOptions(connections=network.connections),
        signature=words["signature"],
        network=network,
        progress=session.progress(),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_line(report.digest)
    sent = f"{report.objects_sent:,} of {report.objects:,} objects sent, {size_text(report.bytes_sent)}"
    session.summary(f"{report.place}: {report.name}: {sent}; {'signed' if report.signed else 'not signed'}")


def _push_options(session: Session, words: _Words) -> PushOptions:
    platform, base = platform_of(words["platform"] or _this_machine()), words["base"]
    assert platform is not None
    passphrases = Passphrases.of(words["passphrase_file"], words["passphrase_fd"], session.warn)
    return PushOptions(
        form=LayerForm(
            compression=Compression(words["compression"]),
            level=words["level"] or _LEVEL,
            threads=words["threads"] or len(os.sched_getaffinity(0)),
            sockets=not words["skip_sockets"],
        ),
        platform=platform,
        config=words["config"],
        base=None if base == _NO_BASE else base,
        keys=[passphrases.load(key) for key in words["sign_keys"]],
        mount_from=words["mount_from"],
        chunk=words["chunk_size"],
        scratch=os.environb.get(b"TMPDIR") or None,
    )


def _this_machine() -> str:
    """The platform of this machine, as images call it."""
    machine = os.uname().machine
    return "linux/" + _ARCHITECTURES.get(machine, machine)


def _summary(report: PushReport) -> str:
    if report.no_delta is not None:
        kind = f"a whole layer, for {report.no_delta}"
    elif report.layer_size:
        kind = "what changed" if report.delta else "a whole layer"
    else:
        kind = "no layer, for nothing changed"
    return f"{report.place}: {size_text(report.bytes_sent)} of {size_text(report.size)} sent: {kind}"
