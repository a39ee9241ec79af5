"""Whether a source is a container image; what reads one is loaded only if it may be one."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from cfstools.formats.base import HEAD
from cfstools.formats.registry import recognise
from cfstools.linux.lookup import file_type
from cfstools.sources.oci_request import Form, ImagePlace, is_layout, parse_reference

if TYPE_CHECKING:
    from cfstools.streams.limits import DecompressionLimits

_STDIN = b"-"


def find_image(
    path: bytes, *, from_file: bool = False, layered: bool = False, limits: DecompressionLimits | None = None
) -> ImagePlace | None:
    """Whether *path* is a container image, by prefix or else by what is there (*layered*: it must be layer tars).

    Raises UsageError for a malformed reference, InputError for what cannot be read, LimitExceeded.
    """
    if from_file:
        return None
    reference = parse_reference(path)
    if reference is not None:
        return ImagePlace(form=reference.form, path=reference.path, name=reference.name, digest=reference.digest)
    if path == _STDIN:
        return ImagePlace(form=None, path=path)
    place = _recognise(path, limits)
    if place is None and layered and file_type(path) != stat.S_IFDIR:
        return ImagePlace(form=Form.LAYERS, path=path)
    return place


def _recognise(path: bytes, limits: DecompressionLimits | None) -> ImagePlace | None:
    """What the path holds, as far as that is looked into before it is opened."""
    kind = file_type(path)
    if kind == stat.S_IFDIR:
        return ImagePlace(form=Form.OCI, path=path) if is_layout(path) else None
    if kind == stat.S_IFREG and _is_image(path):
        return None
    from cfstools.sources.oci_containers import holds_tar

    return ImagePlace(form=None, path=path) if holds_tar(path, limits) else None


def _is_image(path: bytes) -> bool:
    """Whether *path* is a file that begins as images of our own do."""
    try:
        with open(path, "rb", buffering=0) as file:
            return recognise(file.read(HEAD)) is not None
    except (OSError, ValueError):
        return False
