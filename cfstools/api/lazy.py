"""Where the missing objects of a mount come from, as its caller names it, and what the server makes of that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING

from cfstools.api.mountable import Mountable
from cfstools.errors import CfsError, naming, os_error
from cfstools.linux.contents import open_regular
from cfstools.linux.files import close
from cfstools.mount.daemon.serving import Filling, OpenSources
from cfstools.mount.lazy.options import LazyOptions
from cfstools.mount.lazy.trace import MAX_TRACE, parse_trace
from cfstools.oci.descriptor import Platform
from cfstools.oci.registry.reference import RegistryOptions
from cfstools.sources.oci_request import REGISTRY, is_container, is_elsewhere
from cfstools.store.place import is_remote
from cfstools.text import shown_path, without_secrets
from cfstools.transport.fetch import ObjectSource
from cfstools.transport.open import DEFAULT_NETWORK, NetworkOptions
from cfstools.transport.retry import RetryRules
from cfstools.tree.objects import object_sizes
from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.sources.elsewhere import Elsewhere

TRACE_SUFFIX = b".trace"
"""The trace of an image is beside it, in ``IMAGE.trace``."""


class Prefetch(Enum):
    """What is fetched before anybody asks for it: what a trace beside the image says, if there is one; all; nothing."""

    BESIDE = "beside"
    ALL = "all"
    NONE = "none"


class LazyStores(Value):
    """Where missing objects come from, and how.

    ``places`` are asked in their order: stores, in directories and at URLs, and images that were pushed to a registry
    or layout. An image that is itself elsewhere is asked after them. ``prefetch`` is the path of a trace, or what
    :class:`Prefetch` names; to ``trace`` the order in which objects were wanted is written at the end.
    """

    places: Sequence[bytes] = ()
    options: LazyOptions = LazyOptions()
    prefetch: Prefetch | bytes = Prefetch.BESIDE
    trace: bytes | None = None
    platform: Platform | None = None
    registries: RegistryOptions | None = None
    network: NetworkOptions | None = None

    def is_elsewhere(self, image: bytes) -> bool:
        """Whether *image* has to be fetched: it is a place of pushed images or a URL."""
        return is_elsewhere(image)

    def shown(self, place: bytes) -> str:
        """*place* for messages, without what must stay secret."""
        return without_secrets(shown_path(place))

    def shown_for(self, image: bytes) -> tuple[str, ...]:
        """The places that are asked for the objects of *image*, for messages."""
        return tuple(map(self.shown, (*self.places, *([image] if is_elsewhere(image) else ()))))

    def elsewhere(self, scratch: bytes, warn: Callable[[str], None]) -> Elsewhere:
        """The door to images in other places."""
        from cfstools.sources.elsewhere import Elsewhere

        return Elsewhere(self.registries, network=self.network, scratch=scratch, warn=warn)

    def sources(self, scratch: bytes, warn: Callable[[str], None]) -> Elsewhere:
        """The same for objects that somebody waits for: the next place is asked instead of the same one again."""
        from cfstools.sources.elsewhere import Elsewhere

        timeout = self.options.timeout
        registries = self.registries or RegistryOptions()
        return Elsewhere(
            registries._replace(network=registries.network._replace(timeout=timeout)),
            network=(self.network or DEFAULT_NETWORK)._replace(timeout=timeout),
            scratch=scratch,
            rules=RetryRules(attempts=1),
            warn=warn,
        )

    def absolute(self) -> LazyStores:
        """The same for a process that works in another directory."""
        return self._replace(
            places=tuple(map(absolute_place, self.places)),
            prefetch=absolute_path(self.prefetch) if isinstance(self.prefetch, bytes) else self.prefetch,
            trace=None if self.trace is None else absolute_path(self.trace),
            registries=None if self.registries is None else self.registries.with_paths(absolute_path),
            network=None if self.network is None else self.network.with_paths(absolute_path),
        )


def filling_of(image: bytes, found: Mountable, lazy: LazyStores, scratch: bytes) -> Filling:
    """How the objects of the image *found*, at *image*, come.

    Raises InputError and FormatError for a trace that was named and cannot be read.
    """
    lazy = lazy.absolute()
    sizes = object_sizes(found.opened.tree())
    return Filling(
        sources=_sources(absolute_place(image), lazy, sizes, scratch),
        sizes=sizes,
        image=found.digest,
        options=lazy.options,
        scratch=absolute_path(scratch),
        ahead=_ahead(image, lazy, sizes),
        trace=lazy.trace,
    )


def _sources(image: bytes, lazy: LazyStores, sizes: Mapping[bytes, int], scratch: bytes) -> OpenSources:
    also = image if is_elsewhere(image) else None

    @contextmanager
    def open_sources(warn: Callable[[str], None]) -> Iterator[Sequence[ObjectSource]]:
        with (
            lazy.sources(scratch, warn) as elsewhere,
            elsewhere.objects(lazy.places, sizes, image=also, platform=lazy.platform) as sources,
        ):
            yield sources

    return open_sources


def _ahead(image: bytes, lazy: LazyStores, sizes: Mapping[bytes, int]) -> Sequence[bytes]:
    match lazy.prefetch:
        case Prefetch.NONE:
            return ()
        case Prefetch.ALL:
            return list(sizes)
        case Prefetch.BESIDE:
            # A hint that nobody asked for: what is wrong with it does not matter.
            with suppress(OSError, CfsError):
                return _read_trace(image + TRACE_SUFFIX, sizes) if not is_elsewhere(image) else ()
            return ()
        case bytes() as path:
            with naming(path):
                try:
                    return _read_trace(path, sizes)
                except OSError as error:
                    raise os_error(error, "cannot read the trace") from error


def _read_trace(path: bytes, sizes: Mapping[bytes, int]) -> Sequence[bytes]:
    fd = open_regular(path)
    try:
        # One byte more than a trace may have, so that a larger one is seen to be.
        data = bytearray()
        while len(data) <= MAX_TRACE and (piece := os.read(fd, 1 << 20)):
            data += piece
    finally:
        close(fd)
    return parse_trace(bytes(data), sizes)


def absolute_path(path: bytes) -> bytes:
    """*path* from the root on. Links and ``..`` stay what they are."""
    return path if path.startswith(b"/") else os.path.join(os.getcwdb(), path)


def absolute_place(place: bytes) -> bytes:
    """A place of images or objects whose path, if it has one, starts at the root."""
    if place.startswith((REGISTRY, b"file://")) or is_remote(place):
        return place
    if is_container(place):
        form, _, path = place.partition(b":")
        return form + b":" + absolute_path(path)
    return absolute_path(place)
