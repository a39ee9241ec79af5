"""Images that places offer: judged first, then looked into, and given to mounts as files.

`pull`, `plan` and mounts of images elsewhere share the order: the digest and the signatures of what came, then its
structure, then which objects are missing. Nothing of an offer is trusted before (docs/distribution.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from cfstools.errors import CheckFailed, ImageError, os_error
from cfstools.formats.base import OpenImage, errors_of
from cfstools.formats.registry import open_image
from cfstools.linux.files import close, unnamed_file, write_all
from cfstools.signing import ImageDigests, SignatureReport, Verdict, Verifier, judge
from cfstools.sources.offers import Offer
from cfstools.store.base import Store
from cfstools.text import shown_path
from cfstools.tree.objects import object_sizes
from cfstools.verity import ObjectId, digest_bytes

_TEMPORARY_PREFIX = b".mkcfs-image-"


class Judged(NamedTuple):
    """What is known of an image before it is interpreted, and the envelope that says it."""

    report: SignatureReport
    envelope: bytes | None


def judge_offer(
    offer: Offer, *, keys: Sequence[Verifier] = (), threshold: int = 1, digest: ObjectId | None = None
) -> Judged:
    """Compare digest and signatures of what is offered with what is asked for.

    The envelopes that came with it are judged in their order, then those that refer to it. Without *keys* the first is
    only reported. Raises CheckFailed for another digest, SignatureInvalid if too few of *keys* signed.
    """
    data = offer.data
    if digest is not None:
        found = digest_bytes(data, digest.params)
        if found != digest.digest:
            raise CheckFailed(f"the image has the fs-verity digest {found.hex()}, not {digest.digest.hex()}")
    digests = ImageDigests.of(data)
    first: Judged | None = None
    for envelope in chain(offer.envelopes, offer.further() if keys else ()):
        report = judge(envelope, digests, keys, threshold=threshold)
        if report.state is Verdict.VERIFIED or not keys:
            return Judged(report, envelope)
        first = first or Judged(report, envelope)
    if first is None:
        first = Judged(judge(None, digests, keys, threshold=threshold), None)
    if keys:
        first.report.require()
    return first


def examine(offer: Offer) -> tuple[OpenImage, dict[bytes, int]]:
    """The image that is offered, whose structure is right, and the sizes of its objects.

    Raises ImageError, OciError.
    """
    opened = open_image(offer.data)
    if wrong := errors_of(opened):
        raise ImageError(f"the image there is broken: {wrong[0]}")
    return opened, object_sizes(opened.tree())


def missing_objects(sizes: Mapping[bytes, int], stores: Sequence[Store]) -> dict[bytes, int]:
    """The objects that none of *stores* has with the right size."""
    return {digest: size for digest, size in sizes.items() if all(store.size(digest) != size for store in stores)}


def unnamed_image(data: bytes, scratch: bytes) -> int:
    """A descriptor that can only read *data*, whose file nobody else can open for writing."""
    try:
        directory = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            writable = unnamed_file(directory, _TEMPORARY_PREFIX)
        finally:
            close(directory)
        try:
            write_all(writable, data)
            return os.open(b"/proc/self/fd/%d" % writable, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            close(writable)
    except OSError as error:
        raise os_error(error, f"cannot keep the image in {shown_path(scratch)}") from error
