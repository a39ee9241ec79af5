"""Verb ``sign``: signatures of an image beside it or behind it, and the one the kernel checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfstools.errors import ImageError, InputError, Phrase, Remedy, SignatureInvalid, UsageError, naming, os_error
from cfstools.formats.base import Finding, errors_of
from cfstools.formats.registry import open_image
from cfstools.linux.contents import read_small
from cfstools.output.files import delete_file, output_file
from cfstools.report import Report
from cfstools.signing import (
    ImageDigests,
    Signer,
    extend_envelope,
    make_statement,
    make_trailer,
    parse_envelope,
)
from cfstools.signing.files import SignaturePlace, envelope_path, read_envelope, split_trailer
from cfstools.sources.image_file import read_image_file
from cfstools.text import shown_path
from cfstools.values import Value
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from cfstools.signing.keys import PrivateKey

KERNEL_SUFFIX = b".p7s"
MAX_CERTIFICATE_FILE = 1 << 16


class SignReport(Report):
    """What was signed, and where the signatures are.

    ``place`` is ``attached``, ``beside`` or ``kernel`` (a PKCS#7 of its own), ``signature`` the file that holds it.
    ``changed`` is false if all signatures were there already and nothing was written.
    """

    image: str
    format: str
    digest: str
    sha256: str
    size: int
    place: str
    signature: str
    key_ids: tuple[str, ...]
    changed: bool


class RemoveReport(Report):
    """The files that signatures were taken out of; an envelope file is gone itself."""

    image: str
    removed: tuple[str, ...]


class SignedImage(Value):
    """What a signature says about an image: its digests, and its format as one word."""

    digests: ImageDigests
    format: str
    algorithm: Algorithm

    def statement(self, path: bytes) -> bytes:
        """The statement to be signed, for an image that lies at *path*."""
        return make_statement(os.path.basename(path), self.digests, self.format)


def sign(
    image: bytes,
    keys: Sequence[Signer],
    *,
    attach: bool = False,
    output: bytes | None = None,
    algorithm: Algorithm | None = None,
) -> SignReport:
    """Add a signature of each of *keys* to the envelope of *image*; those there already are kept.

    The envelope is ``IMAGE.sig``, or *output*, or with *attach* it is behind the image, which is then written anew
    and renamed. *algorithm* is that of the fs-verity digest; without it that of the image's objects. If nothing is
    missing, nothing is written. Only a valid image is signed. Raises InputError, ImageError, UsageError, and
    SignatureInvalid for an envelope of another image.
    """
    if attach and output is not None:
        raise UsageError("an attached signature is in the image: it has no file of its own")
    _refuse_image(image, output)
    data = read_image_file(image)
    with naming(image):
        body, attached = split_trailer(data)
        signed = examine(body, algorithm)
    if attach:
        place, path, existing = SignaturePlace.ATTACHED, image, attached
    else:
        place, path = SignaturePlace.BESIDE, output or envelope_path(image)
        existing = read_envelope(path)
    with naming(path):
        envelope = extend_envelope(existing, signed.statement(image), keys)
    if envelope != existing:
        if attach:
            _rewrite(image, body, make_trailer(len(body), envelope))
        else:
            with output_file(path) as sink:
                sink.write(envelope)
    return _report(image, signed, place.value, path, keys, changed=envelope != existing)


def sign_for_kernel(
    image: bytes,
    key: PrivateKey,
    certificate: bytes,
    *,
    output: bytes | None = None,
    algorithm: Algorithm | None = None,
) -> SignReport:
    """Write the PKCS#7 that ``fsverity enable`` takes as the signature of *image* to *output*, or else ``IMAGE.p7s``.

    *certificate* is the path of the key's certificate in PEM. Raises InputError, ImageError, KeyUnusable, and
    UsageError for an image with a signature attached: the kernel's digest is that of the whole file.
    """
    from cfstools.signing.keys import sign_kernel

    _refuse_image(image, output)
    data = read_image_file(image)
    with naming(image):
        body, attached = split_trailer(data)
        if attached is not None:
            hint = Phrase("take it off with {}, and keep signatures beside the image", Remedy.REMOVE_SIGNATURES)
            raise UsageError("the kernel would also measure the signature attached to the image", hint=hint)
        signed = examine(body, algorithm)
    digest = signed.digests.fsverity
    assert digest is not None
    with naming(certificate):
        signature = sign_kernel(digest, signed.algorithm.number, key, read_small(certificate, MAX_CERTIFICATE_FILE + 1))
    path = output or image + KERNEL_SUFFIX
    with output_file(path) as sink:
        sink.write(signature)
    return _report(image, signed, "kernel", path, [key], changed=True)


def remove_signatures(image: bytes, *, output: bytes | None = None) -> RemoveReport:
    """Remove the envelope attached to *image*, and delete ``IMAGE.sig`` or *output*. Neither has to exist.

    A file that is no envelope is not deleted. Raises InputError, and SignatureInvalid for a damaged trailer.
    """
    data = read_image_file(image)
    removed = []
    with naming(image):
        body, attached = split_trailer(data)
    path = output or envelope_path(image)
    beside = read_envelope(path)
    if beside is not None:
        try:
            parse_envelope(beside)
        except SignatureInvalid as error:
            hint = "it may be somebody else's; delete it yourself if it is not needed"
            raise InputError(f"is not deleted: {error}", subject=shown_path(path), hint=hint) from None
    if attached is not None:
        _rewrite(image, body)
        removed.append(shown_path(image))
    if beside is not None:
        delete_file(path)
        removed.append(shown_path(path))
    return RemoveReport(image=shown_path(image), removed=tuple(removed))


def _refuse_image(image: bytes, output: bytes | None) -> None:
    """Raise UsageError if the signature would replace the image, under whatever name."""
    if output is None:
        return
    try:
        same = os.path.samefile(image, output)
    except (FileNotFoundError, NotADirectoryError):  # which is said when it is opened
        return
    except OSError as error:
        raise os_error(error, "cannot look at", subject=shown_path(error.filename or output)) from error
    if same:
        hint = Phrase("{} puts the signature into the image", Remedy.ATTACH)
        raise UsageError("is the image itself: the signature would replace it", subject=shown_path(output), hint=hint)


def examine(body: memoryview, algorithm: Algorithm | None = None) -> SignedImage:
    """Check the bytes of an image strictly and take its digests. Raises ImageError for one that is not valid."""
    try:
        image = open_image(body)
    except ImageError as error:
        raise _not_signed(error) from None
    if wrong := errors_of(image):
        raise _not_signed(wrong[0], len(wrong) - 1)
    image.tree()  # until then its algorithm is not known
    algorithm = algorithm or image.algorithm or Algorithm.SHA256
    return SignedImage(digests=ImageDigests.of(body, algorithm), format=image.word(algorithm), algorithm=algorithm)


def _not_signed(first: Finding | ImageError, others: int = 0) -> ImageError:
    more = f" (and {others} more problems)" if others else ""
    hint = Phrase("{} lists everything that is wrong", Remedy.VERIFY)
    return ImageError(f"{first.what}{more}: not signed", where=first.where, hint=hint)


def _rewrite(path: bytes, *parts: memoryview | bytes) -> None:
    """Replace the file at *path* by one with these bytes and the same permissions."""
    try:
        # Without set-ID bits: the new file may have another owner than the old one.
        mode = os.stat(path).st_mode & 0o777
    except OSError as error:
        raise os_error(error, "cannot write", subject=shown_path(path)) from error
    with output_file(path, mode=mode) as sink:
        for part in parts:
            sink.write(part)


def _report(
    image: bytes, signed: SignedImage, place: str, path: bytes, keys: Sequence[Signer], *, changed: bool
) -> SignReport:
    digests = signed.digests
    assert digests.fsverity is not None
    assert digests.sha256 is not None
    return SignReport(
        image=shown_path(image),
        format=signed.format,
        digest=digests.fsverity.hex(),
        sha256=digests.sha256.hex(),
        size=digests.size,
        place=place,
        signature=shown_path(path),
        key_ids=tuple(sorted({key.verifier.key_id for key in keys})),
        changed=changed,
    )
