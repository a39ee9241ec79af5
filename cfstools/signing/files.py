"""Where the signatures of an image are: behind it in the same file, or in a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from cfstools.errors import SignatureInvalid
from cfstools.formats.registry import FORMATS, recognise
from cfstools.linux.contents import file_type, read_small
from cfstools.report import Report
from cfstools.signing import MAX_TRAILER, ImageDigests, SignatureReport, Verdict, Verifier, find_trailer, judge
from cfstools.signing.envelope import MAX_ENVELOPE
from cfstools.text import shown_path
from cfstools.values import Value

SIGNATURE_SUFFIX = b".sig"


class SignaturePlace(Enum):
    """Where an envelope is."""

    ATTACHED = "attached"
    BESIDE = "beside"


class PlacedSignature(Report):
    """What is known about the envelope at one place; ``path`` is that of the file that holds it."""

    place: SignaturePlace
    path: str
    report: SignatureReport


class SignedFile(Value):
    """The bytes of an image and the envelopes that came with it, in no way checked.

    ``broken`` says why what is behind the image is no whole trailer; then ``image`` is all of the file.
    """

    image: memoryview
    attached: bytes | None
    beside: bytes | None
    broken: str | None
    path: bytes
    beside_path: bytes

    @property
    def has_envelope(self) -> bool:
        """Whether there is anything to :meth:`judge`."""
        return not (self.broken is None and self.attached is None and self.beside is None)

    def judge(self, digests: ImageDigests, keys: Sequence[Verifier], *, threshold: int) -> list[PlacedSignature]:
        """Check the envelope at each place that has one."""
        found = []
        if self.broken is not None:
            damaged = SignatureReport(
                state=Verdict.MISMATCH, required=threshold if keys else 0, problems=(self.broken,)
            )
            found.append(self._placed(SignaturePlace.ATTACHED, damaged))
        for place, envelope in ((SignaturePlace.ATTACHED, self.attached), (SignaturePlace.BESIDE, self.beside)):
            if envelope is not None:
                found.append(self._placed(place, judge(envelope, digests, keys, threshold=threshold)))
        return found

    def _placed(self, place: SignaturePlace, report: SignatureReport) -> PlacedSignature:
        path = self.path if place is SignaturePlace.ATTACHED else self.beside_path
        return PlacedSignature(place=place, path=shown_path(path), report=report)


def envelope_path(image: bytes) -> bytes:
    """Where the envelope of *image* is when nothing else is said: ``IMAGE.sig``."""
    return image + SIGNATURE_SUFFIX


def read_envelope(path: bytes) -> bytes | None:
    """The bytes of the envelope file *path*, ``None`` if there is no such file. Raises InputError."""
    if not file_type(path, follow=False):
        return None
    return read_small(path, MAX_ENVELOPE + 1, regular=True)


def split_trailer(data: memoryview) -> tuple[memoryview, bytes | None]:
    """The image in the bytes of a file, and the envelope behind it. ``SignatureInvalid`` for a damaged trailer."""
    unit = (recognise(data) or FORMATS[0]).unit
    attached = find_trailer(bytes(data[max(0, len(data) - MAX_TRAILER) :]), len(data), unit=unit)
    if attached is None:
        return data, None
    return data[: attached.image_size], attached.envelope


def signed_file(path: bytes, data: memoryview, signature: bytes | None = None) -> SignedFile:
    """Find the envelopes of the image at *path*, whose bytes are *data*.

    *signature* is the envelope's file if it is not ``IMAGE.sig``; it must exist. Raises InputError.
    """
    image, attached, broken = data, None, None
    try:
        image, attached = split_trailer(data)
    except SignatureInvalid as error:
        broken = str(error)
    if signature is None:
        beside_path = envelope_path(path)
        beside = read_envelope(beside_path)
    else:
        beside_path = signature
        beside = read_small(signature, MAX_ENVELOPE + 1)
    return SignedFile(image=image, attached=attached, beside=beside, broken=broken, path=path, beside_path=beside_path)
