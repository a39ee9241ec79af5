"""Writing the image of a build, with its signature if one is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from cfstools.api.envelopes import envelope_path, read_envelope
from cfstools.api.output import OutputFile, Sink, output_file
from cfstools.api.sign import SignedImage, extended
from cfstools.errors import SignatureInvalid, UsageError, naming, shown_path
from cfstools.formats.composefs import ImagePlan, format_word
from cfstools.signing import ImageDigests, Signer, make_trailer, parse_envelope, sign_envelope
from cfstools.verity import MerkleHasher, Params

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, kw_only=True)
class Signing:
    """With which keys a new image is signed, and where: beside it in *output* or ``IMAGE.sig``, or attached."""

    keys: Sequence[Signer]
    attach: bool = False
    output: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where a signature goes, found out before any work: beside the image unless ``path`` is ``None``."""

    keys: Sequence[Signer]
    path: bytes | None
    existing: bytes | None


class ImageOutput:
    """Where an image goes: the path of a file, a stream, or nowhere, when only its digest is wanted.

    What cannot be signed is refused here, before any work. Raises UsageError, InputError and, for an ``IMAGE.sig``
    that is not ours to replace, SignatureInvalid.
    """

    def __init__(self, image: bytes | BinaryIO | None, signing: Signing | None = None) -> None:
        self._image = image
        self._target = None if signing is None else _target(image, signing)

    def write(self, plan: ImagePlan, params: Params) -> bytes:
        """Write the image and return its fs-verity digest.

        A file appears whole. Its signature beside it appears just before, when the image is durable already: so
        whoever sees the new image sees its signature as well, and what an interruption leaves behind does not verify.
        """
        hasher = MerkleHasher(params)
        if not isinstance(self._image, bytes):
            _emit(plan, hasher, self._image)
        elif self._target is None:
            with output_file(self._image) as file:
                _emit(plan, hasher, file)
        else:
            with output_file(self._image) as file:
                plain = _Sha256Sink(file)
                _emit(plan, hasher, plain)
                signed = SignedImage(
                    digests=ImageDigests(size=plan.size, sha256=plain.digest(), fsverity=hasher.digest()),
                    format=format_word(plan.header.composefs_version, params.algorithm),
                    algorithm=params.algorithm,
                )
                _write_signature(self._target, signed.statement(self._image), plan.size, file)
        return hasher.digest()

    @property
    def signature(self) -> str | None:
        """The file the signature goes to, ``None`` without one."""
        if self._target is None or not isinstance(self._image, bytes):
            return None
        return shown_path(self._target.path or self._image)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys the image is signed with."""
        return () if self._target is None else tuple(sorted({key.verifier.key_id for key in self._target.keys}))


class _Sha256Sink:
    """Hands bytes on and takes their SHA-256."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()

    def write(self, data: Buffer) -> None:
        self._hash.update(data)
        self._sink.write(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _target(image: bytes | BinaryIO | None, signing: Signing) -> _Target:
    if not isinstance(image, bytes):
        raise UsageError("only an image that is written to a file can be signed")
    if not signing.keys:
        raise UsageError("there is no key to sign with")
    if signing.attach:
        if signing.output is not None:
            raise UsageError("an attached signature is in the image: it has no file of its own")
        return _Target(keys=signing.keys, path=None, existing=None)
    path = signing.output or envelope_path(image)
    existing = read_envelope(path)
    if existing is not None:
        with naming(path):
            try:
                parse_envelope(existing)
            except SignatureInvalid as error:
                error.hint = "it may be somebody else's, so it is not replaced; delete it if it is not needed"
                raise
    return _Target(keys=signing.keys, path=path, existing=existing)


def _write_signature(target: _Target, statement: bytes, image_size: int, file: OutputFile) -> None:
    if target.path is None:
        file.write(make_trailer(image_size, sign_envelope(statement, target.keys)))
        return
    file.sync()
    envelope = _renewed(target.existing, statement, target.keys)
    if envelope != target.existing:
        with output_file(target.path) as beside:
            beside.write(envelope)


def _renewed(existing: bytes | None, statement: bytes, keys: Sequence[Signer]) -> bytes:
    """The *existing* envelope if it is for the same image, with what is missing; else a new one."""
    try:
        return extended(existing, statement, keys)
    except SignatureInvalid:
        return sign_envelope(statement, keys)


def _emit(plan: ImagePlan, hasher: MerkleHasher, sink: Sink | None) -> None:
    for chunk in plan.chunks():
        hasher.update(chunk)
        if sink is not None:
            sink.write(chunk)
