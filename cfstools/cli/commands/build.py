"""``mkcfs build``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from cfstools.api.build import BuildOptions, BuildReport, ObjectOptions
from cfstools.api.build import build as run_build
from cfstools.cli.network_options import NetworkWords, network_options, registries_of
from cfstools.cli.oci_options import OciWords, oci_given, oci_options, oci_request
from cfstools.cli.output import binary_stdout, print_json, print_line, size_text
from cfstools.cli.params import (
    PATH,
    GroupedCommand,
    examples,
    given,
    json_option,
    option_group,
    store_option,
    xattr_policy,
)
from cfstools.cli.passphrase import Passphrases, passphrase_fd_option, passphrase_file_option
from cfstools.cli.session import Session, default_cache
from cfstools.cli.store_options import lock_timeout_option, new_object_options, waiting
from cfstools.errors import UsageError
from cfstools.linux.files import raise_fd_limit
from cfstools.sources.source import SourceKind
from cfstools.store.base import FsVerity, Sync
from cfstools.text import counted
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cfstools.signing.new_image import Signing

_STDIO = b"-"
_KINDS = {
    SourceKind.DIRECTORY: "a directory",
    SourceKind.CONTAINER: "a container image",
    SourceKind.IMAGE: "a composefs image",
}


_SOURCE_OPTIONS = (
    click.option("--from-file", is_flag=True, help="SOURCE is a composefs-dump(5) text; - is standard input."),
    click.option(
        "--strict", is_flag=True, help="Refuse lenient dump texts; CFS_PARSE_STRICT in the environment does so as well."
    ),
    click.option("--use-epoch", is_flag=True, help="Set all modification times to 0."),
    click.option(
        "--clamp-mtime", type=int, metavar="SECONDS", help="Set later modification times to this time since the epoch."
    ),
    click.option("--skip-devices", is_flag=True, help="Leave out device nodes."),
    click.option("--skip-xattrs", is_flag=True, help="Leave out extended attributes."),
    click.option("--user-xattrs", is_flag=True, help="Keep only user.* extended attributes."),
    click.option(
        "--exclude", "excludes", metavar="GLOB", multiple=True, help="Leave out names that match; repeatable."
    ),
    click.option("--no-hardlinks", is_flag=True, help="Make every name a file of its own, as mkcomposefs does."),
)
_IMAGE_OPTIONS = (
    click.option("--print-digest", is_flag=True, help="Print the image's fs-verity digest."),
    click.option("--print-digest-only", is_flag=True, help="Print the digest and write nothing."),
    click.option(
        "--hash",
        "algorithm",
        type=click.Choice([algorithm.value for algorithm in Algorithm]),
        default=Algorithm.SHA256.value,
        show_default=True,
        help="Algorithm of all objects and of the image.",
    ),
    click.option(
        "--format-version", type=click.IntRange(0, 1), metavar="N", help="Exactly this format version, 0 or 1."
    ),
    click.option("--min-version", type=int, metavar="N", help="Lowest format version, 0 or 1."),
    click.option("--max-version", type=int, metavar="N", help="Highest format version, 0 or 1."),
)
_STORE_OPTIONS = (
    store_option("Put file contents here; further stores are only looked in for objects already there."),
    *new_object_options,
    click.option(
        "--cache-dir",
        type=PATH,
        envvar="MKCFS_CACHE_DIR",
        metavar="DIR",
        help="Keep the digests of unchanged files here; the default is /var/cache/cfstools for root, and cfstools in "
        "XDG_CACHE_HOME or ~/.cache for others.",
    ),
    click.option("--no-cache", is_flag=True, help="Read every file, also those the digest cache knows."),
    lock_timeout_option,
)
_SIGNATURE_OPTIONS = (
    click.option("--sign-key", "sign_keys", type=PATH, multiple=True, metavar="KEY", help="Sign with it; repeatable."),
    click.option("--attach", is_flag=True, help="Append the signature to the image instead of writing IMAGE.sig."),
    passphrase_file_option,
    passphrase_fd_option,
)


class _Words(OciWords, NetworkWords):
    """What click hands over for the options."""

    stores: list[bytes]
    verity: FsVerity
    sync: Sync
    object_mode: int
    from_file: bool
    strict: bool
    print_digest: bool
    print_digest_only: bool
    algorithm: str
    use_epoch: bool
    clamp_mtime: int | None
    skip_devices: bool
    skip_xattrs: bool
    user_xattrs: bool
    excludes: tuple[str, ...]
    no_hardlinks: bool
    format_version: int | None
    min_version: int | None
    max_version: int | None
    sign_keys: tuple[bytes, ...]
    attach: bool
    passphrase_file: bytes | None
    passphrase_fd: int | None
    cache_dir: bytes | None
    no_cache: bool
    lock_timeout: float | None
    threads: int | None
    as_json: bool


_EXAMPLES = (
    "mkcfs build rootfs/ image.cfs --store ./objects",
    "mkcfs build rootfs/ image.cfs --store ./objects --sign-key release.key",
    "mkcfs build rootfs/ --print-digest-only",
    "mkcfs build rootfs/ small.cfs --store ./objects --exclude '/var/cache/**' --clamp-mtime 1700000000",
    "mkcfs build --from-file tree.dump image.cfs --print-digest",
    "mkcfs build oci-archive:app.tar app.cfs --store ./objects",
    "mkcfs build oci:layout:latest app.cfs --store ./objects --platform linux/amd64",
    "mkcfs build docker://registry.example/app:2 app.cfs --store ./objects",
    "mkcfs build base.tar.gz app.cfs --layer top.tar --oci-mapping plain",
)


@click.command(cls=GroupedCommand, epilog=examples(*_EXAMPLES))
@click.argument("source", type=PATH)
@click.argument("image", type=PATH, required=False)
@option_group("Source options", *_SOURCE_OPTIONS)
@oci_options
@network_options
@option_group("Image options", *_IMAGE_OPTIONS)
@option_group("Store options", *_STORE_OPTIONS)
@option_group("Signature options", *_SIGNATURE_OPTIONS)
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@json_option
@click.pass_context
def build(context: click.Context, *, source: bytes, image: bytes | None, **words: Unpack[_Words]) -> None:
    """Turn SOURCE into the composefs image IMAGE.

    SOURCE is a directory, a container image (docker://HOST/NAME[:TAG] in a registry, oci:DIR[:TAG], oci-archive:FILE,
    docker-archive:FILE, a layer tar or - for one on standard input), a composefs image, or with --from-file a
    composefs-dump(5) text.

    The bytes equal those of mkcomposefs with the same options, except that hard links are kept (see --no-hardlinks),
    and for a container image those of cfsctl. IMAGE is replaced only once it is whole; - writes it to standard output.
    """
    session: Session = context.obj
    options = _build_options(words)
    options = options._replace(oci=options.oci._replace(registries=registries_of(context, words, source)))
    _check_targets(image, words)
    signing = _signing(session, words)
    _check_objects(context, words)
    raise_fd_limit()  # a batch of objects holds one descriptor each
    report = run_build(
        source,
        binary_stdout("an image") if image == _STDIO else image,
        stores=() if words["print_digest_only"] else words["stores"],
        options=options,
        objects=_object_options(session, words),
        signing=signing,
        threads=words["threads"] or len(os.sched_getaffinity(0)),
        stdin=sys.stdin.buffer,
        accept=partial(
            _accept,
            containers=oci_given(context),
            dumps=given(context, {"strict"}),
            from_file=words["from_file"],
        ),
        progress=session.progress(),
    )
    for warning in report.warnings:
        session.warn(warning)
    if words["as_json"]:
        print_json(report.to_dict())
    elif words["print_digest"] or words["print_digest_only"]:
        print_line(report.digest)
    session.summary(*_summary(report))


def _build_options(words: _Words) -> BuildOptions:
    lowest, highest = words["min_version"], words["max_version"]
    if words["format_version"] is not None:
        if lowest is not None or highest is not None:
            raise UsageError("--format-version cannot be combined with --min-version or --max-version")
        lowest = highest = words["format_version"]
    return BuildOptions(
        algorithm=Algorithm(words["algorithm"]),
        min_version=lowest,
        max_version=highest,
        use_epoch=words["use_epoch"],
        skip_devices=words["skip_devices"],
        xattrs=xattr_policy(skip=words["skip_xattrs"], user=words["user_xattrs"]),
        hardlinks=not words["no_hardlinks"],
        clamp_mtime=words["clamp_mtime"],
        exclude=tuple(map(os.fsencode, words["excludes"])),
        from_file=words["from_file"],
        oci=oci_request(words),
        strict=words["strict"] or "CFS_PARSE_STRICT" in os.environ,
    )


def _object_options(session: Session, words: _Words) -> ObjectOptions:
    return ObjectOptions(
        mode=words["object_mode"],
        fs_verity=words["verity"],
        sync=words["sync"],
        cache=None if words["no_cache"] else words["cache_dir"] or default_cache(),
        waiting=waiting(session, words["lock_timeout"]),
    )


def _signing(session: Session, words: _Words) -> Signing | None:
    """The keys to sign with, opened before any work; ``None`` without."""
    file, fd = words["passphrase_file"], words["passphrase_fd"]
    if words["sign_keys"]:
        from cfstools.signing.new_image import Signing

        passphrases = Passphrases.of(file, fd, session.warn)
        return Signing(keys=[passphrases.load(key) for key in words["sign_keys"]], attach=words["attach"])
    if words["attach"] or file is not None or fd is not None:
        raise UsageError("--attach and passphrases are about a signature: add --sign-key")
    return None


def _accept(kind: SourceKind, *, containers: Sequence[str], dumps: Sequence[str], from_file: bool) -> None:
    """Refuse options that would do nothing for a source of this *kind*."""
    if containers and kind is not SourceKind.CONTAINER:
        other = "a dump text" if from_file else "no container image"
        what = _KINDS[kind] if kind is SourceKind.DIRECTORY else other
        raise UsageError(f"{', '.join(containers)} is only for a container image, and the source is {what}")
    if dumps and kind in _KINDS:
        raise UsageError(f"{', '.join(dumps)} is only for a composefs-dump(5) text, and the source is {_KINDS[kind]}")


def _check_targets(image: bytes | None, words: _Words) -> None:
    only = words["print_digest_only"]
    if only and image is not None:
        raise UsageError("--print-digest-only writes no image: leave IMAGE out")
    if not only and image is None:
        raise UsageError("no IMAGE to write", hint="name one, or use --print-digest-only")
    if image == _STDIO and (words["as_json"] or words["print_digest"]):
        raise UsageError("the image itself goes to standard output: it cannot hold a digest or a report as well")


def _check_objects(context: click.Context, words: _Words) -> None:
    about_objects = {"verity", "sync", "object_mode", "cache_dir", "no_cache", "lock_timeout"}
    if not words["stores"] and (asked := given(context, about_objects)):
        raise UsageError(f"{', '.join(asked)} is about objects: add --store")
    if words["no_cache"] and given(context, {"cache_dir"}):
        raise UsageError("--no-cache and --cache-dir contradict each other")


def _summary(report: BuildReport) -> list[str]:
    lines = [
        f"{report.image or 'image'}: {report.format} {report.digest}, {report.image_size} bytes, {report.inodes} inodes"
    ]
    if report.signature is not None:
        lines.append(f"{report.signature}: signed by {', '.join(report.key_ids)}")
    if report.store is not None:
        lines.append(
            f"{report.store}: {report.objects_new} objects new ({size_text(report.bytes_new)}), "
            f"{report.objects_shared} shared ({size_text(report.bytes_shared)})"
            + (f"; {counted(report.cache_hits, 'file')} known unread" if report.cache_hits else "")
        )
    return lines
