"""``mkcfs inspect``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cfstools import api
from cfstools.cli.network_options import NetworkWords, network_options, registries_of
from cfstools.cli.oci_options import platform_of, platform_option
from cfstools.cli.output import print_json, print_lines, size_text
from cfstools.cli.params import PATH, examples, json_option
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.formats.base import Region
from cfstools.report import Json
from cfstools.signing.files import PlacedSignature
from cfstools.text import counted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cfstools.oci.registry.reference import RegistryOptions
    from cfstools.sources.oci_describe import ImageDescription

_ROOT = b"/"


@click.command(
    epilog=examples(
        "mkcfs inspect image.cfs",
        "mkcfs inspect image.cfs --tree /etc",
        "mkcfs inspect image.cfs --layout",
        "mkcfs inspect image.cfs --json",
        "mkcfs inspect oci-archive:app.tar",
        "mkcfs inspect docker://registry.example/app:2",
    )
)
@click.argument("image", metavar="IMAGE", type=PATH)
@click.option("--tree", type=PATH, is_flag=False, flag_value=_ROOT, metavar="[PATH]", help="List the names below PATH.")
@click.option("--layout", is_flag=True, help="Name every byte range of the image.")
@platform_option
@network_options
@json_option
@click.pass_context
def inspect(
    context: click.Context,
    *,
    image: bytes,
    tree: bytes | None,
    layout: bool,
    platform: str | None,
    as_json: bool,
    **network: Unpack[NetworkWords],
) -> None:
    """Say what IMAGE is and what it holds.

    Prints the format in one word, the fs-verity digest, counts and sizes by kind, sharing of objects and of extended
    attributes, and the largest files. IMAGE may also be a container image, as for `mkcfs build`: then its manifest,
    config and layers are shown.

    With --json, --tree has the members of `ls --json-lines` for each of its `names`, and --layout has `regions`.
    """
    registries = registries_of(context, network, image)
    if tree is not None and layout:
        raise UsageError("--tree and --layout are two different answers: ask for one")
    if tree is not None:
        if as_json:
            print_json(api.tree_report(image, tree).to_dict())
        else:
            print_lines(_tree_text(api.tree(image, tree)))
    elif layout:
        if as_json:
            print_json({"schema": 1, "regions": [_region_dict(region) for region in api.layout(image)]})
        else:
            print_lines(_layout_text(image))
    else:
        _summary(context.obj, image, platform, registries, as_json=as_json)


def _summary(
    session: Session, image: bytes, platform: str | None, registries: RegistryOptions | None, *, as_json: bool
) -> None:
    report = api.describe_source(
        image,
        platform=platform_of(platform),
        stdin=sys.stdin.buffer,
        scratch=os.environb.get(b"TMPDIR") or None,
        registries=registries,
        progress=session.progress(),
    )
    for warning in () if isinstance(report, api.InspectReport) else report.warnings:
        session.warn(warning)
    if as_json:
        print_json(report.to_dict())
    elif isinstance(report, api.InspectReport):
        print_lines(_report_text(report))
    else:
        print_lines(_image_text(report))


def _image_text(image: ImageDescription) -> list[str]:
    rows = [
        ("kind", image.kind),
        ("names", ", ".join(image.names)),
        ("manifest", image.manifest),
        ("config", image.config),
        ("platform", image.platform),
        ("created", image.created),
        ("author", image.author),
    ]
    lines = [f"{label + ':':<10}{value}" for label, value in rows if value]
    lines += [f"label:    {key}={value}" for key, value in image.labels.items()]
    others = [name for name in image.images if name not in image.names]
    lines += [f"also:     {name}" for name in others]
    for number, layer in enumerate(image.layers, 1):
        size = "" if layer.size is None else f", {layer.size} bytes ({size_text(layer.size)})"
        lines.append(f"layer {number}:  {layer.digest or layer.path}{size}")
        details = ", ".join(text for text in (layer.media_type, layer.diff_id and f"DiffID {layer.diff_id}") if text)
        lines.append(f"          {details}")
    return lines


def _region_dict(region: Region) -> Json:
    return {**region._asdict(), "kind": region.kind.value}


def _layout_text(image: bytes) -> Iterator[str]:
    for region in api.layout(image):
        size = region.end - region.start
        yield f"{region.start:#010x} {size:>9} {region.kind.value:<14} {region.label}"


def _tree_text(lines: Iterator[api.TreeLine]) -> Iterator[str]:
    for line in lines:
        arrow = "" if line.target is None else f" -> {line.target}"
        indent = "  " * line.depth
        yield f"{line.mode} {line.owner:>11} {line.size:>11} {indent}{line.name}{arrow}"


def _signature_text(signature: PlacedSignature) -> str:
    if signature.report.problems:
        return f"{signature.place.value}, damaged: {'; '.join(signature.report.problems)}"
    claimed = [one.key_id[:64] or "a key without id" for one in signature.report.signatures]
    return f"{signature.place.value}, {signature.report.state.value}, claims to be by {', '.join(claimed)}"


def _kind_text(count: int, kind: str) -> str:
    if kind == "regular":
        return counted(count, "regular file")
    return f"{count} directories" if kind == "directory" and count != 1 else counted(count, kind)


def _report_text(report: api.InspectReport) -> list[str]:
    info = report.contents
    kinds = ", ".join(_kind_text(count, kind) for kind, count in info.inodes.items())
    shared = f"{info.objects_shared} {'is' if info.objects_shared == 1 else 'are'} shared by several files"
    entries = "1 shared entry" if info.shared_xattrs == 1 else f"{info.shared_xattrs} shared entries"
    rows = [
        ("image", report.path),
        ("format", report.format + (", with POSIX ACLs" if info.has_acl else "")),
        ("fs-verity", report.digest),
        ("sha256", report.sha256),
        ("size", f"{info.size} bytes ({size_text(info.size)})"),
        ("inodes", f"{sum(info.inodes.values())}: {kinds}"),
        ("links", counted(info.hard_links, "hard link")),
        ("inline", f"{counted(info.inline_files, 'file')}, {size_text(info.inline_bytes)}"),
        ("external", f"{counted(info.external_files, 'file')}, {size_text(info.external_bytes)}"),
        ("objects", f"{info.objects}, {size_text(info.object_bytes)}; {shared}"),
        ("xattrs", f"{entries}, used {counted(info.xattr_references, 'time')}"),
    ]
    if info.located_files:
        rows.append(("in blobs", f"{counted(info.located_files, 'file')}, {size_text(info.located_bytes)}"))
    rows += [("signature", _signature_text(signature)) for signature in report.signatures] or [("signature", "none")]
    if info.appended:
        rows.append(("appended", f"{counted(info.appended, 'byte')} behind the image"))
    lines = [f"{label + ':':<11}{value}" for label, value in rows]
    if info.largest:
        lines.append("largest files:")
        lines += [f"{size_text(size):>12}  {path}" for size, path in info.largest]
    return lines
