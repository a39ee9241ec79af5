"""The options of verbs that mount about objects which are fetched when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cfstools.cli.network_options import NetworkWords, network_options, networks_of
from cfstools.cli.oci_options import platform_of
from cfstools.cli.params import PATH, F, given, option_group
from cfstools.errors import UsageError

if TYPE_CHECKING:
    from cfstools.api.lazy import LazyStores, Prefetch


class LazyWords(NetworkWords):
    """What click hands over for :func:`lazy_options`."""

    lazy: tuple[bytes, ...]
    readahead: int | None
    jobs: int | None
    prefetch: bytes | None
    trace: bytes | None
    fetch_timeout: float | None
    attempts: int | None
    cache_size: int | None
    platform: str | None


_OPTIONS = (
    click.option(
        "--lazy",
        type=PATH,
        multiple=True,
        metavar="PLACE",
        help="Fetch objects that no store has when they are read, from this store (a directory or URL) or pushed image "
        "(docker://HOST/NAME, oci:DIR); repeatable, in the order in which they are asked. What comes is compared with "
        "its digest and goes into the first store.",
    ),
    click.option(
        "--readahead",
        type=click.IntRange(0, 4096),
        metavar="N",
        help="With each object that is fetched, fetch N more in the order of the tree (default 8).",
    ),
    click.option(
        "-j", "--jobs", type=click.IntRange(1, 64), metavar="N", help="Objects fetched at a time (default 8)."
    ),
    click.option(
        "--prefetch",
        type=PATH,
        metavar="FILE|all|none",
        help="Fetch behind what is read, in this order: what a trace says (default IMAGE.trace, if it is there), all.",
    ),
    click.option(
        "--trace", type=PATH, metavar="FILE", help="At the end write the order in which objects were wanted first."
    ),
    click.option(
        "--fetch-timeout",
        type=click.FloatRange(min=0.1),
        metavar="SECONDS",
        help="Give up a fetch from which nothing comes for so long (default 30).",
    ),
    click.option(
        "--attempts", type=click.IntRange(1, 100), metavar="N", help="Try to fetch an object so often (default 3)."
    ),
    click.option(
        "--cache-size",
        type=click.IntRange(min=0),
        metavar="BYTES",
        help="Keep so many bytes in TMPDIR of what no store takes (default 1 GiB).",
    ),
    click.option(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="The image for this platform, where there are several."
    ),
)


def lazy_options(function: F) -> F:
    """Add the options about lazy stores and the way to them; they arrive as :class:`LazyWords`."""
    return option_group("Lazy options", *_OPTIONS)(network_options(function))


def lazy_stores(context: click.Context, words: LazyWords, image: bytes) -> LazyStores | None:
    """The lazy stores that the options name; ``None`` without any, for an image in a file.

    Raises UsageError for options about them where there are none, and InputError for a proxy that cannot be used.
    """
    if not words["lazy"] and not _is_elsewhere(image):
        if asked := given(context, LazyWords.__annotations__.keys() - {"lazy"}):
            raise UsageError(f"{', '.join(asked)} is only for objects from elsewhere: add --lazy")
        return None
    from cfstools.api.lazy import LazyStores
    from cfstools.mount.lazy.options import LazyOptions

    registries, network = networks_of(context, words, image, *words["lazy"])
    names = {"readahead": "readahead", "jobs": "connections", "fetch_timeout": "timeout"}
    names |= {name: name for name in ("attempts", "cache_size")}
    said = {field: words[name] for name, field in names.items() if words[name] is not None}  # type: ignore[literal-required]
    return LazyStores(
        places=words["lazy"],
        options=LazyOptions(**said),
        prefetch=_prefetch(words["prefetch"]),
        trace=words["trace"],
        platform=platform_of(words["platform"]),
        registries=registries,
        network=network,
    )


def _is_elsewhere(image: bytes) -> bool:
    if b":" not in image:
        return False
    from cfstools.sources.oci_request import is_elsewhere

    return is_elsewhere(image)


def _prefetch(word: bytes | None) -> Prefetch | bytes:
    from cfstools.api.lazy import Prefetch

    return {None: Prefetch.BESIDE, b"all": Prefetch.ALL, b"none": Prefetch.NONE}.get(word) or word or Prefetch.BESIDE
