"""Single bytes of an image are named by what they are for."""

from __future__ import annotations

import pytest

from cfstools.formats.base import Region
from cfstools.formats.erofs.byte_roles import first_difference, role_of
from cfstools.formats.erofs.regions import RegionKind, regions
from tests.formats.images import SAMPLE, find, patch


def test_first_difference() -> None:
    data = bytes(200_000)
    for offset in (0, 65_535, 65_536, 199_999):
        changed = patch(data, offset, "B", 1)
        assert first_difference(memoryview(data), memoryview(changed)) == offset
    assert first_difference(memoryview(data), memoryview(data)) is None
    assert first_difference(memoryview(data), memoryview(data)[:-1]) == len(data) - 1
    assert first_difference(memoryview(b""), memoryview(data)) == 0


@pytest.mark.parametrize(
    ("offset", "kind", "text"),
    [
        (0, RegionKind.HEADER, "0x0 in the composefs header, field magic"),
        (13, RegionKind.HEADER, "0xd in the composefs header, field composefs_version"),
        (20, RegionKind.HEADER, "0x14 in the composefs header, field reserved"),
        (1024 + 14, RegionKind.SUPERBLOCK, "0x40e in the superblock, field root_nid"),
        (1024 + 48, RegionKind.SUPERBLOCK, "0x430 in the superblock, field uuid"),
        (1024 + 127, RegionKind.SUPERBLOCK, "0x47f in the superblock, field reserved"),
        (1152 + 4, RegionKind.INODE, "0x484 in inode 36, the compact inode of /, field mode"),
    ],
)
def test_fields_have_their_names(offset: int, kind: RegionKind, text: str) -> None:
    assert role_of(SAMPLE, offset) == (offset, kind, text)


def test_fields_of_extended_inodes() -> None:
    inode = find(SAMPLE, b"inline")
    place = role_of(SAMPLE, inode.offset + 32)
    assert place.text == f"{inode.offset + 32:#x} in inode {inode.nid}, the extended inode of /inline, field mtime_sec"


def test_every_byte_has_a_place() -> None:
    of_a_kind: dict[object, list[Region]] = {}
    for region in regions(SAMPLE):
        of_a_kind.setdefault(region.kind, []).append(region)
    # To name a byte is to look through what lies before it: of hundreds of a kind, some do.
    for region in [one for alike in of_a_kind.values() for one in (*alike[:: len(alike) // 20 + 1], alike[-1])]:
        for offset in (region.start, region.end - 1):
            place = role_of(SAMPLE, offset)
            assert place.kind is region.kind
            assert place.text.startswith(f"{offset:#x} in ")


def test_without_a_region_the_offset_has_to_do() -> None:
    assert role_of(SAMPLE, len(SAMPLE)) == (len(SAMPLE), None, f"{len(SAMPLE):#x}")
    assert role_of(b"no image", 3) == (3, None, "0x3")
