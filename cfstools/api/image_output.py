"""Writing the image of a build, with its signature if one is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from cfstools.output.files import Sink, output_file
from cfstools.verity import MerkleHasher, Params

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.api.image_signing import Target
    from cfstools.formats.base import ImagePlan
    from cfstools.signing import Signer


class Signing(NamedTuple):
    """With which keys a new image is signed, and where: beside it in *output* or ``IMAGE.sig``, or attached."""

    keys: Sequence[Signer]
    attach: bool = False
    output: bytes | None = None


class ImageOutput:
    """Where an image goes: the path of a file, a stream, or nowhere, when only its digest is wanted.

    What cannot be signed is refused here, before any work. Raises UsageError, InputError and, for an ``IMAGE.sig``
    that is not ours to replace, SignatureInvalid.
    """

    def __init__(self, image: bytes | BinaryIO | None, signing: Signing | None = None) -> None:
        self._image = image
        self._target: Target | None = None
        if signing is not None:
            from cfstools.api.image_signing import Target

            self._target = Target(image, signing.keys, attach=signing.attach, output=signing.output)

    def write(self, plan: ImagePlan, params: Params) -> bytes:
        """Write the image and return its fs-verity digest.

        A file appears whole. Its signature beside it appears just before, when the image is durable already: so
        whoever sees the new image sees its signature as well, and what an interruption leaves behind does not verify.
        """
        hasher = MerkleHasher(params)
        if not isinstance(self._image, bytes):
            _emit(plan, [hasher.update], self._image)
            return hasher.digest()
        with output_file(self._image) as file:
            if self._target is None:
                _emit(plan, [hasher.update], file)
            else:
                _emit(plan, [hasher.update, self._target.update], file)
                self._target.write(plan, hasher.digest(), file)
        return hasher.digest()

    @property
    def signature(self) -> str | None:
        """The file the signature goes to, ``None`` without one."""
        return None if self._target is None else self._target.name

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys the image is signed with."""
        return () if self._target is None else self._target.key_ids


def _emit(plan: ImagePlan, hashers: Sequence[Callable[[Buffer], None]], sink: Sink | None) -> None:
    for chunk in plan.chunks():
        for update in hashers:
            update(chunk)
        if sink is not None:
            sink.write(chunk)
