"""The golden corpus: sizes, digests and dump texts recorded from mkcomposefs and composefs-info 1.0.8."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pytest

from cfstools import verity
from cfstools.errors import FormatError
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import print_dump
from tests.formats.images import read_image, write_image
from tests.reference import Reference
from tests.requirements import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden"

# The only dump texts that may differ, each with the quirk of the reference's reader that is not copied.
QUIRKS = {"083-redirect-4-aligned-quirk.dump": "Q1: two stray bytes after a payload whose length is 3 modulo 4"}


class Row(NamedTuple):
    """One row of expected.tsv."""

    dump: str
    min_version: int
    max_version: int
    size: int
    sha256: str
    fsverity: str
    text_sha256: str

    def image(self) -> bytes:
        """Return the image we write of it."""
        tree = parse_dump((GOLDEN / "dumps" / self.dump).read_bytes())
        return bytes(write_image(tree, min_version=self.min_version, max_version=self.max_version))


def table(name: str) -> list[list[str]]:
    """Return the rows of a table, without its head."""
    return [line.split("\t") for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()[1:]]


def rows() -> list[Row]:
    """Return the rows of expected.tsv."""
    found = []
    for dump, options, size, *digests in table("expected.tsv"):
        low, high = (int(option.partition("=")[2]) for option in options.split(","))
        found.append(Row(dump, low, high, int(size), *digests))
    return found


ROWS = rows()
REJECTED = [row[0] for row in table("expected-reject.tsv")]


def test_the_corpus_is_whole() -> None:
    assert {row.dump for row in ROWS} == {path.name for path in (GOLDEN / "dumps").iterdir()}
    assert set(REJECTED) == {path.name for path in (GOLDEN / "reject").iterdir()}
    assert (len(ROWS), len(REJECTED)) == (101, 40)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.dump}-{row.min_version}-{row.max_version}")
def test_image_and_dump_are_those_of_the_reference(row: Row) -> None:
    image = row.image()
    assert (len(image), hashlib.sha256(image).hexdigest()) == (row.size, row.sha256)
    assert verity.digest_bytes(image).hex() == row.fsverity
    text = b"".join(print_dump(read_image(image)))
    assert (hashlib.sha256(text).hexdigest() == row.text_sha256) is (row.dump not in QUIRKS)


@pytest.mark.parametrize("name", REJECTED)
def test_what_the_reference_refuses_is_refused(name: str) -> None:
    data = (GOLDEN / "reject" / name).read_bytes()
    with pytest.raises(FormatError) as caught:
        write_image(parse_dump(data))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.reference
def test_fsck_erofs_accepts_every_image(reference: Reference, tmp_path: Path) -> None:
    images = []
    for row in ROWS:
        image = tmp_path / f"{row.dump}-{row.min_version}-{row.max_version}.cfs"
        image.write_bytes(row.image())
        images.append(image)
    assert reference.fsck_erofs(images) == []
