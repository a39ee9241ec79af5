"""A sample of flipped bits; ``python -m tests.flips --cases 100000`` takes longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flips.__main__ import FINDINGS, flip
from tests.flips.cases import Tally, damaged, golden_images, try_case
from tests.flips.mounting import try_mounts


def test_cases_are_changed_and_can_be_repeated() -> None:
    made = [damaged(1, number) for number in range(50)]
    assert made == [damaged(1, number) for number in range(50)]
    assert sum(image in golden_images() for image in made) < 5
    assert {len(image) for image in made} <= {len(image) for image in golden_images()}


def test_whole_images_are_taken(tmp_path: Path) -> None:
    """Otherwise nothing would be tried behind the first check."""
    tally = Tally()
    (tmp_path / "store").mkdir()
    for image in golden_images()[::10]:
        try_case(tmp_path / "image", tmp_path / "store", image, tally)
    assert tally.taken["inspect"] == tally.taken["dump"] == tally.cases


def test_flipped_bits(tmp_path: Path) -> None:
    tally = Tally()
    assert flip(1, range(200), tmp_path, tally) == []
    assert tally.cases == 200
    assert 0 < tally.taken["dump"] < 200


def test_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for path in sorted(FINDINGS.glob("*")):
        try_case(tmp_path / "image", tmp_path / "store", path.read_bytes(), Tally())


@pytest.mark.kernel
def test_flipped_bits_in_mounts(tmp_path: Path) -> None:
    done = try_mounts(1, 20, 1, tmp_path)
    assert done.tried == 20
    assert 0 < done.mounted <= 20
