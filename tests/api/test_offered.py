"""Images of other places as files for mounts: judged before, and nothing but what was judged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.api.offered import Judged, judge_offer, unnamed_image
from cfstools.errors import CheckFailed, InputError, SignatureInvalid
from cfstools.signing import Verifier
from cfstools.sources.elsewhere import Elsewhere
from cfstools.sources.oci_request import is_elsewhere
from cfstools.verity import ObjectId
from tests.api.places import Made, make
from tests.descriptors import descriptors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@contextmanager
def offered_image(
    place: bytes,
    elsewhere: Elsewhere,
    *,
    keys: Sequence[Verifier] = (),
    digest: ObjectId | None = None,
    scratch: bytes,
) -> Iterator[tuple[int, Judged]]:
    """The image at *place* as mounts get it: what holds, in a file."""
    with elsewhere.offer(place) as offer:
        judged = judge_offer(offer, keys=keys, digest=digest)
        fd = unnamed_image(offer.data, scratch)
    try:
        yield fd, judged
    finally:
        os.close(fd)


def test_the_image_is_a_file_that_only_reads(made: Made, tmp_path: Path) -> None:
    before = descriptors()
    with (
        Elsewhere() as elsewhere,
        offered_image(made.image, elsewhere, keys=[made.key], scratch=bytes(tmp_path)) as (fd, judged),
    ):
        data = Path(os.fsdecode(made.image)).read_bytes()
        assert os.pread(fd, len(data) + 1, 0) == data
        assert judged.report.verified_by
        with pytest.raises(OSError):
            os.write(fd, b"x")
        assert os.fstat(fd).st_nlink == 0
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == []
    assert descriptors() <= before


def test_nothing_is_given_of_what_does_not_hold(made: Made, tmp_path: Path) -> None:
    stranger = make(tmp_path / "stranger")
    before = descriptors()
    with Elsewhere() as elsewhere:
        with (
            pytest.raises(SignatureInvalid),
            offered_image(made.image, elsewhere, keys=[stranger.key], scratch=bytes(tmp_path)),
        ):
            pytest.fail("given")
        with (
            pytest.raises(CheckFailed),
            offered_image(made.image, elsewhere, digest=ObjectId.parse("ab" * 32), scratch=bytes(tmp_path)),
        ):
            pytest.fail("given")
        with (
            pytest.raises(InputError, match="cannot keep the image in"),
            offered_image(made.image, elsewhere, scratch=bytes(tmp_path / "not there")),
        ):
            pytest.fail("given")
    assert descriptors() <= before


@pytest.mark.parametrize(
    ("image", "elsewhere"),
    [
        (b"image.cfs", False),
        (b"./docker://x/y", False),
        (b"docker://host/name:1", True),
        (b"oci:layout:app", True),
        (b"https://host/image.cfs", True),
        (b"s3://bucket/image.cfs", True),
        (b"images:2024.cfs", False),
        (b"ocidir", False),
    ],
)
def test_which_names_are_elsewhere(image: bytes, elsewhere: bool) -> None:
    assert is_elsewhere(image) is elsewhere
