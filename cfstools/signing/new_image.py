"""The signature of a new image: its place is checked before any work, it is made while the image is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from cfstools.errors import SignatureInvalid, UsageError, naming
from cfstools.formats.base import ImagePlan
from cfstools.output.files import OutputFile, output_file
from cfstools.signing.attach import make_trailer
from cfstools.signing.envelope import Signer, extend_envelope, parse_envelope, sign_envelope
from cfstools.signing.files import envelope_path, read_envelope
from cfstools.signing.statement import ImageDigests, make_statement
from cfstools.text import shown_path
from cfstools.values import Value
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Signing(Value):
    """With which keys a new image is signed, and where: beside it in *output* or ``IMAGE.sig``, or attached."""

    keys: Sequence[Signer]
    attach: bool = False
    output: bytes | None = None


class ImageSignature:
    """The signature of the new image *image* as *signing* says.

    Raises UsageError for what cannot be signed so, InputError, and SignatureInvalid for a file that is no envelope and
    so is not replaced.
    """

    def __init__(self, image: bytes | BinaryIO | None, signing: Signing) -> None:
        keys, attach, output = signing.keys, signing.attach, signing.output
        if not isinstance(image, bytes):
            raise UsageError("only an image that is written to a file can be signed")
        if not keys:
            raise UsageError("there is no key to sign with")
        if attach and output is not None:
            raise UsageError("an attached signature is in the image: it has no file of its own")
        self._image = image
        self._keys = keys
        self._path = None if attach else output or envelope_path(image)
        self._existing = None if self._path is None else _read_ours(self._path)
        self._sha256 = hashlib.sha256()

    @property
    def name(self) -> str:
        """The file the signature goes to."""
        return shown_path(self._path or self._image)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys."""
        return tuple(sorted({key.verifier.key_id for key in self._keys}))

    def update(self, data: Buffer) -> None:
        """Take the next bytes of the image."""
        self._sha256.update(data)

    def write(self, plan: ImagePlan, fsverity: ObjectId, file: OutputFile) -> None:
        """Sign the image that was written to *file* and has the digest *fsverity*."""
        digests = ImageDigests(size=plan.size, sha256=self._sha256.digest(), fsverity=fsverity.digest)
        statement = make_statement(os.path.basename(self._image), digests, plan.word)
        if self._path is None:
            file.write(make_trailer(plan.size, sign_envelope(statement, self._keys)))
            return
        file.sync()
        envelope = _renewed(self._existing, statement, self._keys)
        if envelope != self._existing:
            with output_file(self._path) as beside:
                beside.write(envelope)


def _read_ours(path: bytes) -> bytes | None:
    """The envelope at *path*, if there is one. Raises SignatureInvalid for anything else."""
    existing = read_envelope(path)
    if existing is not None:
        with naming(path):
            try:
                parse_envelope(existing)
            except SignatureInvalid as error:
                error.hint = "it may be somebody else's, so it is not replaced; delete it if it is not needed"
                raise
    return existing


def _renewed(existing: bytes | None, statement: bytes, keys: Sequence[Signer]) -> bytes:
    """The *existing* envelope if it is for the same image, with what is missing; else a new one."""
    try:
        return extend_envelope(existing, statement, keys)
    except SignatureInvalid:
        return sign_envelope(statement, keys)
