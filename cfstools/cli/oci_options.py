"""The options that only matter where a source is a container image."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from cfstools.cli.params import PATH, given, option_group
from cfstools.errors import UsageError
from cfstools.oci.mapping import KeptXattrs, OciMapping
from cfstools.sources.oci_request import OciOptions, OciRequest
from cfstools.streams.limits import DecompressionLimits, TarLimits
from cfstools.tree.layer_rules import DEFAULT_RULES, LayerRules

if TYPE_CHECKING:
    from cfstools.oci.descriptor import Platform

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT_LIMITS = DecompressionLimits()


class OciWords(TypedDict):
    """What click hands over for the options below."""

    platform: str | None
    layers: tuple[bytes, ...]
    oci_mapping: str
    oci_xattrs: str | None
    oci_strict: bool
    allow_duplicates: bool
    max_unpacked: int
    max_ratio: int
    max_window: int
    max_entries: int


def platform_option(function: F) -> F:
    """``--platform``."""
    return click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="The image for this platform, where there are several."
    )(function)


_OPTIONS = (
    platform_option,
    click.option(
        "--layer",
        "layers",
        metavar="FILE",
        type=PATH,
        multiple=True,
        help="SOURCE is a layer tar and this one goes over it; may be given again.",
    ),
    click.option(
        "--oci-mapping",
        type=click.Choice([mapping.value for mapping in OciMapping]),
        default=OciMapping.COMPOSEFS.value,
        show_default=True,
        help="Canonical tree as cfsctl makes it, or the tree as an unpacker leaves it.",
    ),
    click.option(
        "--oci-xattrs",
        type=click.Choice([kept.value for kept in KeptXattrs]),
        help="Extended attributes to keep (default: capability, with the plain mapping all).",
    ),
    click.option("--oci-strict", is_flag=True, help="Refuse layers that other tools read differently."),
    click.option(
        "--allow-duplicates", is_flag=True, help="Let the last of several entries of one name in a layer win."
    ),
    click.option(
        "--max-unpacked",
        type=click.IntRange(min=1),
        default=_DEFAULT_LIMITS.total,
        show_default=True,
        metavar="BYTES",
        help="Refuse a layer that unpacks to more than this, or makes up more zeros for sparse files.",
    ),
    click.option(
        "--max-ratio",
        type=click.IntRange(min=1),
        default=_DEFAULT_LIMITS.ratio,
        show_default=True,
        metavar="N",
        help="Refuse a layer that unpacks to more than N times its size (beyond 1 GiB).",
    ),
    click.option(
        "--max-window",
        type=click.IntRange(min=1 << 20),
        default=_DEFAULT_LIMITS.window,
        show_default=True,
        metavar="BYTES",
        help="Refuse zstd and xz streams that need more memory than this for their window.",
    ),
    click.option(
        "--max-entries",
        type=click.IntRange(min=1),
        default=DEFAULT_RULES.max_entries,
        show_default=True,
        metavar="N",
        help="Refuse an image whose layers have more entries than this.",
    ),
)


oci_options = option_group("Container image options", *_OPTIONS)
"""Add the options; they arrive as :class:`OciWords`."""


def oci_given(context: click.Context) -> tuple[str, ...]:
    """The names of these options that are on the command line, whatever their values."""
    return given(context, OciWords.__annotations__)


def oci_request(words: OciWords) -> OciRequest:
    """The request that the options spell. Raises UsageError for a malformed platform."""
    return OciRequest(
        platform=platform_of(words["platform"]),
        layers=words["layers"],
        scratch=os.environb.get(b"TMPDIR") or None,
        options=OciOptions(
            mapping=OciMapping(words["oci_mapping"]),
            xattrs=None if words["oci_xattrs"] is None else KeptXattrs(words["oci_xattrs"]),
            rules=LayerRules(
                allow_duplicates=words["allow_duplicates"],
                strict=words["oci_strict"],
                max_entries=words["max_entries"],
            ),
            tar_limits=TarLimits(holes=words["max_unpacked"]),
            decompression_limits=DecompressionLimits(
                total=words["max_unpacked"], ratio=words["max_ratio"], window=words["max_window"]
            ),
        ),
    )


def platform_of(text: str | None) -> Platform | None:
    """The platform that *text* spells. Raises UsageError."""
    if text is None:
        return None
    from cfstools.oci.descriptor import parse_platform

    try:
        return parse_platform(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
