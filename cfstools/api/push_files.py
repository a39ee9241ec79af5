"""Verb ``push`` to a place of files: objects first, then the signature, then the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from cfstools.api.push import outgoing_image
from cfstools.api.store_push import DEFAULT_SENDING, SendOptions, check_there, reading, send
from cfstools.errors import UsageError, naming
from cfstools.linux.contents import is_directory
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.signing.files import SIGNATURE_SUFFIX
from cfstools.sources.oci_request import is_container
from cfstools.sources.places import OBJECTS, open_to_fill
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace
from cfstools.store.place import is_remote, local_path
from cfstools.text import shown_path, without_secrets
from cfstools.transport.base import BytesBody, Target
from cfstools.transport.open import DEFAULT_NETWORK, NetworkOptions
from cfstools.tree.objects import object_sizes


class FilesPushReport(Report):
    """What was pushed to a place of files. Sizes are in bytes.

    ``name`` is that of the image below ``place``, ``digest`` its fs-verity digest. ``objects_sent`` of its ``objects``
    were not there yet.
    """

    image: str
    place: str
    name: str
    digest: str
    format: str
    objects: int
    bytes: int
    objects_sent: int
    bytes_sent: int
    signed: bool


def is_place_of_files(place: bytes) -> bool:
    """Whether *place* is one for :func:`push_files`: a URL of files, or a directory that exists or ends with ``/``."""
    if is_remote(place) or place.startswith(b"file://"):
        return True
    return not is_container(place) and (place.endswith(b"/") or is_directory(place))


def push_files(
    image: bytes,
    place: bytes,
    *,
    stores: Sequence[StorePlace],
    options: SendOptions = DEFAULT_SENDING,
    signature: bytes | None = None,
    network: NetworkOptions | None = None,
    progress: Progress = SILENT,
) -> FilesPushReport:
    """Push the image at *image*, whose objects are in *stores*, to *place*, where ``pull`` finds it by its name.

    There are then ``objects/``, ``NAME.sig`` if it is signed, and ``NAME``, each sent after what it needs. *signature*
    is the envelope's file if it is neither attached nor ``IMAGE.sig``.

    Raises InputError, ImageError, CheckFailed for an image, signature or object that is wrong, StoreError,
    NetworkError, UsageError, Unsupported.
    """
    name = os.fsdecode(os.path.basename(image))
    with ExitStack() as stack:
        outgoing = outgoing_image(image, signature)
        sizes = object_sizes(outgoing.image.tree())
        chain = StoreChain(stack.enter_context(reading(stores, options.waiting)))
        check_there(sizes, chain, image)
        target = stack.enter_context(open_to_fill(place, network or DEFAULT_NETWORK))
        beside = name + SIGNATURE_SUFFIX.decode()
        if outgoing.envelope is None:
            _refuse_stale(target, beside, name)
        base = place if is_remote(place) else local_path(place)
        sent = send(chain, sizes, base, OBJECTS, options=options, network=network, progress=progress)
        with naming(without_secrets(shown_path(place))):
            if outgoing.envelope is not None:
                target.put(beside, BytesBody(outgoing.envelope), replace=True)
            target.put(name, BytesBody(outgoing.data), replace=True)
    return FilesPushReport(
        image=shown_path(image),
        place=without_secrets(shown_path(place)),
        name=name,
        digest=outgoing.digest.hex(),
        format=outgoing.image.word(outgoing.algorithm),
        objects=len(sizes),
        bytes=sum(sizes.values()),
        objects_sent=sent.objects,
        bytes_sent=sent.size,
        signed=outgoing.envelope is not None,
    )


def _refuse_stale(target: Target, beside: str, name: str) -> None:
    """A signature of another image must not stand beside one that has none. Raises UsageError."""
    if target.size(beside) is not None:
        raise UsageError(
            f"{target.describe(beside)}: is the signature of what is {name} there now, and this image has none",
            hint="sign it, or remove that file",
        )
