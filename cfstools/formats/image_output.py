"""Writing a planned image: to a file that appears whole, to a stream, or only through the hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cfstools.output.files import OutputFile, Sink, output_file
from cfstools.verity import MerkleHasher, ObjectId, Params

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.formats.base import ImagePlan


class PlanSigner(Protocol):
    """Signs an image while it is written; ``cfstools.signing.new_image.ImageSignature`` is one."""

    def update(self, data: Buffer) -> None:
        """Take the next bytes of the image."""

    def write(self, plan: ImagePlan, fsverity: ObjectId, file: OutputFile) -> None:
        """Sign the image that was written to *file* and has the digest *fsverity*."""


def output_image(
    plan: ImagePlan, image: bytes | BinaryIO | None, params: Params, signer: PlanSigner | None = None
) -> bytes:
    """Write *plan* to *image* and return its fs-verity digest.

    *image* is a path, a stream, or ``None`` where only the digest is wanted; only a file can have a *signer*. A file
    appears whole. Its signature beside it appears just before, when the image is durable already: so whoever sees the
    new image sees its signature as well, and what an interruption leaves behind does not verify. Raises InputError.
    """
    hasher = MerkleHasher(params)
    if not isinstance(image, bytes):
        _emit(plan, [hasher.update], image)
        return hasher.digest()
    with output_file(image) as file:
        _emit(plan, [hasher.update] if signer is None else [hasher.update, signer.update], file)
        digest = hasher.digest()
        if signer is not None:
            signer.write(plan, ObjectId(params.algorithm, digest), file)
    return digest


def _emit(plan: ImagePlan, hashers: Sequence[Callable[[Buffer], None]], sink: Sink | None) -> None:
    for chunk in plan.chunks():
        for update in hashers:
            update(chunk)
        if sink is not None:
            sink.write(chunk)
