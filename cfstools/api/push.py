"""Verb ``push``: an image with its objects into a registry or a layout, where only what is missing is sent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

from cfstools.api.store_push import check_there
from cfstools.errors import CfsError, InputError, NotFound, SignatureInvalid, naming
from cfstools.formats.base import errors_of
from cfstools.formats.registry import open_image
from cfstools.linux.contents import read_small
from cfstools.oci.content import Content
from cfstools.oci.descriptor import Platform
from cfstools.oci.pushed.layer import LayerForm
from cfstools.oci.pushed.publish import (
    Base,
    Means,
    Outgoing,
    Published,
    PublishOptions,
    publish,
)
from cfstools.oci.pushed.referrers import Artifact, bundle_artifact, envelope_artifact, envelopes
from cfstools.oci.pushed.source import PushedImage, object_places
from cfstools.oci.registry.reference import RegistryOptions
from cfstools.oci.sink import BlobSink
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.signing import ImageDigests, Signer, judge, parse_envelope, sign_envelope
from cfstools.signing.files import signed_file
from cfstools.signing.statement import PREDICATE_TYPE, make_statement, parse_statement
from cfstools.sources.elsewhere import Elsewhere
from cfstools.sources.image_file import opened_image, read_image
from cfstools.sources.oci_containers import temporaries
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace, open_stores
from cfstools.streams.limits import MAX_JSON
from cfstools.text import shown_path
from cfstools.transport.base import BytesBody
from cfstools.tree.model import External, RegularFile
from cfstools.tree.objects import object_sizes
from cfstools.values import Value
from cfstools.verity import Algorithm, object_path
from cfstools.view.nodes import View

AUTO = b"auto"
"""As a base: the image that has the name now, if it was pushed by mkcfs."""


class PushOptions(Value):
    """How an image is pushed.

    ``config`` is the path of an image config, or of its ``config`` member, to take the command, the environment and
    the like from. ``base`` is a place with an image whose layers may serve again, ``AUTO``, or ``None`` for a whole
    layer. ``keys`` sign a statement that also names the manifest, for tools that know nothing else.
    """

    form: LayerForm = LayerForm()
    platform: Platform = Platform(os="linux", architecture="amd64")
    config: bytes | None = None
    base: bytes | None = AUTO
    keys: Sequence[Signer] = ()
    mount_from: str | None = None
    chunk: int | None = None
    scratch: bytes | None = None


class PushReport(Report):
    """What was pushed. Sizes are in bytes.

    ``manifest`` is its digest, ``digest`` the fs-verity digest of the image. ``layer_size`` is that of the new data
    layer, 0 where none was needed; ``delta`` says that it goes over the layers of a base, ``no_delta`` why it does not
    although there was one. ``bytes_sent`` counts what was not there yet, of ``size`` in all. ``signatures`` are the
    digests of the artifacts that refer to the image.
    """

    image: str
    place: str
    manifest: str
    digest: str
    format: str
    layers: int
    delta: bool
    no_delta: str | None
    layer_size: int
    bytes_sent: int
    size: int
    signatures: tuple[str, ...]
    warnings: tuple[str, ...]


def push(
    image: bytes,
    place: bytes,
    *,
    stores: Sequence[StorePlace],
    options: PushOptions | None = None,
    signature: bytes | None = None,
    registries: RegistryOptions | None = None,
    warn: Callable[[str], None] = lambda _text: None,
    progress: Progress = SILENT,
) -> PushReport:
    """Push the image at *image*, whose objects are in *stores*, to *place*: ``docker://HOST/NAME`` or ``oci:DIR:NAME``.

    Its signature goes with it: the one attached, in *signature*, or in ``IMAGE.sig``. Every object is compared with its
    digest on the way. Nothing appears under the name before all of it is there. *registries* say how one is spoken to;
    *warn* is told what is odd there.

    Raises UsageError, InputError, ImageError, CheckFailed for an image or object that is wrong, OciError for what a
    layer cannot hold, NetworkError.
    """
    options = options or PushOptions()
    with ExitStack() as stack:
        elsewhere = stack.enter_context(Elsewhere(registries, scratch=options.scratch, warn=warn))
        outgoing = outgoing_image(image, signature)
        chain = StoreChain(stack.enter_context(open_stores(stores)))
        view = View(outgoing.image.tree(), chain)
        check_there(object_sizes(view.root), chain, image)
        config = None if options.config is None else read_small(options.config, MAX_JSON + 1)
        publishing = PublishOptions(form=options.form, platform=options.platform, config=config)
        means = Means(lambda file: _contents(view, file), temporaries(options.scratch), progress)
        base, note = _base(elsewhere, place, options, stack)
        sink = stack.enter_context(elsewhere.sink(place, mount_from=options.mount_from, chunk=options.chunk))
        with naming(place):
            published = publish(outgoing, sink, publishing, means, base=base)
            signatures = list(_attach(sink, outgoing, published, place, options.keys))
    if note is not None:
        published = published._replace(fallback=note)
    return _report(image, place, outgoing, published, signatures)


def outgoing_image(path: bytes, signature: bytes | None) -> Outgoing:
    """The image at *path*, checked, with its signature. Raises InputError, ImageError, SignatureInvalid."""
    with opened_image(path, devices=True) as fd:
        found = read_image(fd)
    file = signed_file(path, found.data, signature)
    with naming(path):
        if file.broken is not None:
            raise SignatureInvalid(file.broken)
        opened = open_image(file.image)
        if wrong := errors_of(opened):
            raise InputError(f"is not pushed: {wrong[0]}")
        opened.tree()  # until then its algorithm is not known
        envelope = file.attached if file.attached is not None else file.beside
        algorithm = opened.algorithm or Algorithm.SHA256
        data = bytes(file.image)
        if envelope is not None:
            _check_signature(envelope, data, algorithm)
    return Outgoing(data=data, image=opened, algorithm=algorithm, envelope=envelope)


def _check_signature(envelope: bytes, data: bytes, algorithm: Algorithm) -> None:
    """Refuse an envelope that is for another image: whoever pulls it would be told so much later."""
    difference = parse_statement(parse_envelope(envelope).payload).difference(ImageDigests.of(data, algorithm))
    if difference is not None:
        raise SignatureInvalid(f"the signature does not fit: {difference}")


def _contents(view: View, file: RegularFile) -> Iterator[bytes]:
    with closing(view.open(file, _label(file))) as found:
        yield from found.pieces()


def _label(file: RegularFile) -> bytes:
    """What messages call a file whose names nobody looked for: its object."""
    content = file.content
    return object_path(content.digest) if isinstance(content, External) and content.digest is not None else b"file"


def _base(elsewhere: Elsewhere, place: bytes, options: PushOptions, stack: ExitStack) -> tuple[Base | None, str | None]:
    """The image to build on, if there is one; else why the one that was found does not serve."""
    if options.base is None:
        return None, None
    wanted = place if options.base == AUTO else options.base
    try:
        is_here = wanted == place
        content, pushed = stack.enter_context(elsewhere.pushed(wanted, options.platform, mirrors=not is_here))
        if (doubt := _check_base(content, pushed, options.keys)) is not None:
            return None, doubt
        root = open_image(pushed.data).tree()
        places = object_places(pushed, object_sizes(root))
        # A registry took the manifest of this place only after its layers; those of another have to be copied.
        return Base(pushed=pushed, places=places, root=root, content=None if is_here else content), None
    except NotFound:
        if options.base != AUTO:
            raise
        return None, None
    except CfsError as error:
        if options.base != AUTO:
            raise
        return None, f"the image there is no base: {error}"


def _check_base(content: Content, base: PushedImage, keys: Sequence[Signer]) -> str | None:
    """Why layers of *base* must not be signed with *keys*, if they must not.

    Who signs a manifest signs its layers, for tools that unpack these. Whether they hold what the image of the base
    says is only known of a manifest that one of the keys has signed before.
    """
    if not keys:
        return None
    verifiers = [key.verifier for key in keys]
    digests = ImageDigests.of(base.data)
    for envelope in envelopes(content, base.manifest):
        report = judge(envelope, digests, verifiers)
        if report.statement is not None and bytes.fromhex(base.manifest.digest.encoded) in report.statement.further:
            return None
    return "the image there was not signed with one of the keys, so its layers are not signed either"


def _attach(
    sink: BlobSink, outgoing: Outgoing, published: Published, place: bytes, keys: Sequence[Signer]
) -> Iterator[str]:
    """Attach the signatures, and yield the digest of each artifact."""
    artifacts: list[Artifact] = []
    if outgoing.envelope is not None:
        artifacts.append(envelope_artifact(outgoing.envelope, published.manifest, PREDICATE_TYPE))
    if keys:
        digests = ImageDigests.of(outgoing.data, outgoing.algorithm)
        further = {os.fsdecode(place): bytes.fromhex(published.manifest.digest.encoded)}
        word = outgoing.image.word(outgoing.algorithm)
        statement = make_statement(os.path.basename(place), digests, word, further=further)
        artifacts += [
            bundle_artifact(sign_envelope(statement, [key]), published.manifest, PREDICATE_TYPE) for key in keys
        ]
    for artifact in artifacts:
        for descriptor, data in artifact.blobs:
            sink.put(descriptor, BytesBody(data), lambda _: None)
        sink.attach(artifact.manifest, artifact.data, published.manifest)
        yield str(artifact.manifest.digest)


def _report(
    image: bytes, place: bytes, outgoing: Outgoing, published: Published, signatures: Sequence[str]
) -> PushReport:
    return PushReport(
        image=shown_path(image),
        place=shown_path(place),
        manifest=str(published.manifest.digest),
        digest=outgoing.digest.hex(),
        format=outgoing.image.word(outgoing.algorithm),
        layers=published.layers,
        delta=published.delta,
        no_delta=published.fallback,
        layer_size=published.layer_bytes,
        bytes_sent=published.sent,
        size=published.size,
        signatures=tuple(signatures),
        warnings=published.notes,
    )
