"""Options for sources that may be container images, and references to such images.

The modules that read container images are imported only when there is one.
"""

from __future__ import annotations

import os
import stat
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import OciError, UsageError
from cfstools.linux.contents import file_type
from cfstools.oci.mapping import KeptXattrs, OciMapping
from cfstools.store.place import is_remote
from cfstools.streams.limits import DecompressionLimits, TarLimits
from cfstools.text import shown_path
from cfstools.tree.layer_rules import DEFAULT_RULES, LayerRules
from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.oci.descriptor import Digest, Platform
    from cfstools.oci.registry.reference import RegistryOptions


REGISTRY = b"docker://"
"""What images in registries are written with."""


class OciOptions(Value):
    """How an image becomes a tree.

    *xattrs* left open is ``security.capability`` for the canonical mapping and all for the plain one. *rules* say
    what layers may do, the limits what they may ask for; *skip_unknown* passes over members of unknown type.
    """

    mapping: OciMapping = OciMapping.COMPOSEFS
    xattrs: KeptXattrs | None = None
    rules: LayerRules = DEFAULT_RULES
    tar_limits: TarLimits = TarLimits()
    decompression_limits: DecompressionLimits = DecompressionLimits()
    skip_unknown: bool = False

    @property
    def kept_xattrs(self) -> KeptXattrs:
        """Which extended attributes stay."""
        if self.xattrs is not None:
            return self.xattrs
        return KeptXattrs.CAPABILITY if self.mapping is OciMapping.COMPOSEFS else KeptXattrs.ALL


DEFAULT_OPTIONS = OciOptions()


class Form(Enum):
    """The forms of images; the value is the prefix that asks for it."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    LAYERS = "layers"


class Reference(NamedTuple):
    """A container image: its path, and its name or digest if one was given. Without *form* it is a tar archive."""

    form: Form | None
    path: bytes
    name: str | None = None
    digest: Digest | None = None


def parse_reference(text: bytes) -> Reference | None:
    """``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, each with ``:NAME`` or ``@DIGEST`` behind it.

    ``None`` when *text* has no such prefix. Paths may hold colons: the shortest part that exists is the path, the
    whole text first. Raises :class:`UsageError` for a digest that is none.
    """
    prefix, colon, rest = text.partition(b":")
    form = next((form for form in Form if form.value.encode() == prefix), None)
    if not colon:
        return None
    if form is None:
        _refuse_transport(text, os.fsdecode(prefix), os.fsdecode(rest))
        return None
    path, chosen = _split(rest) if form is not Form.LAYERS else (rest, b"")
    if not path:
        raise UsageError(f"'{shown_path(text)}' names no path")
    if chosen.startswith(b"@") and b":" in chosen:
        from cfstools.oci.descriptor import parse_digest

        try:
            return Reference(form=form, path=path, digest=parse_digest(os.fsdecode(chosen[1:]), "digest"))
        except OciError as error:
            raise UsageError(str(error)) from error
    name = os.fsdecode(chosen[1:] if chosen.startswith(b":") else chosen) or None
    return Reference(form=form, path=path, name=name)


_TRANSPORTS = "docker://IMAGE, oci:DIR, oci-archive:FILE, docker-archive:FILE and layers:FILE"
# What other tools call the places that images lie in, and how to get an image from there with them.
_COPYING = {
    "dir": "copy it into a layout: skopeo copy dir:{rest} oci:LAYOUT:NAME",
    "containers-storage": "copy it into a layout: skopeo copy containers-storage:{rest} oci:LAYOUT:NAME",
    "docker": "an image in a registry is read as docker://HOST/NAME",
    "docker-daemon": "save it: docker save {rest} -o FILE, and build docker-archive:FILE",
    "docker-image": "save it: docker save {rest} -o FILE, and build docker-archive:FILE",
    "podman": "save it: podman save {rest} -o FILE, and build docker-archive:FILE",
    "oci-layout": "a layout is read as oci:{rest}",
    "oci-dir": "a layout is read as oci:{rest}",
    "docker-tarball": "it is read as docker-archive:{rest}",
    "tarball": "a layer tar is read as layers:{rest}",
    "sif": "unpack its root file system and build that directory",
    "ostree": "check the commit out and build that directory: ostree checkout",
    "file": "write the path alone: {path}",
}
_REMOTE = ("oci+", "docker+", "ostree-", "http", "https", "registry", "atomic", "oras", "s3", "gs")


def _refuse_transport(text: bytes, prefix: str, rest: str) -> None:
    """Raise :class:`UsageError` for what other tools take for an image's place and nothing here is called."""
    advice = _COPYING.get(prefix.lower())
    remote = prefix.lower() in _REMOTE or prefix.lower().startswith(_REMOTE[:3]) or rest.startswith("//")
    known = prefix.lower() in {form.value for form in Form}
    if not (advice or remote or known) or file_type(text, follow=False):
        return
    if known:
        advice = f"write {prefix.lower()}: in small letters"
    elif advice is None:
        advice = "copy the image into a layout, as with `skopeo copy`, and build oci:LAYOUT"
    hint = advice.format(rest=shown_path(rest), path=shown_path("/" + rest.lstrip("/")))
    raise UsageError(f"{shown_path(prefix)}: is no kind of source here; there are {_TRANSPORTS}", hint=hint)


def _split(rest: bytes) -> tuple[bytes, bytes]:
    """Path, and the name with its ``:`` or ``@`` (empty: none)."""
    cuts = [at for at, byte in enumerate(rest) if byte in b":@" and at]
    if not cuts or file_type(rest, follow=False):
        return rest, b""
    cut = next((at for at in cuts if file_type(rest[:at], follow=False)), cuts[0])
    # In ":@1" the name is "@1", the image's number; in "@sha256:…" it is a digest.
    return rest[:cut], rest[cut:]


_CONTAINERS = (REGISTRY, *(f"{form.value}:".encode() for form in (Form.OCI, Form.OCI_ARCHIVE)))


def is_elsewhere(image: bytes) -> bool:
    """Whether *image* names a place with offers of images; any other name is the path of an image."""
    return image.startswith(_CONTAINERS) or is_remote(image)


def is_container(place: bytes) -> bool:
    """Whether images at *place* are container images: those of a registry, or of a layout or archive in files."""
    if place.startswith(REGISTRY):
        return True
    return not is_remote(place) and not place.startswith(b"file://") and parse_reference(place) is not None


def is_layout(path: bytes) -> bool:
    """Whether the directory *path* is an OCI layout."""
    # A tree that only happens to have one of these is still a tree.
    files = (os.path.join(path, name) for name in (b"oci-layout", b"index.json"))
    return all(file_type(file) == stat.S_IFREG for file in files)


class OciRequest(Value):
    """What is wanted of a source that is a container image: the platform, how it becomes a tree, and the paths of
    further *layers*, which go over the source as one more layer tar each.

    *scratch* is a directory for temporary files where there is no store; ``None`` is ``/var/tmp`` or ``/tmp``.
    *registries* say how one is spoken to; ``None`` is without credentials, and with the system's authorities alone.
    """

    platform: Platform | None = None
    options: OciOptions = DEFAULT_OPTIONS
    layers: tuple[bytes, ...] = ()
    scratch: bytes | None = None
    registries: RegistryOptions | None = None


DEFAULT_REQUEST = OciRequest()
