from __future__ import annotations

from enum import Enum

import pytest

from cfstools.errors import ImageError
from cfstools.formats.base import Region
from cfstools.formats.erofs.reader import Image
from cfstools.formats.erofs.regions import RegionKind, regions
from cfstools.tree import Directory
from tests.formats.images import (
    SAMPLE,
    SAMPLE_SHA512,
    directory,
    external,
    find,
    patch,
    regular,
    sample_tree,
    write_image,
)


def named(data: bytes, *, allow_tail: bool = False) -> list[Region]:
    """The regions, after checking that they cover everything once."""
    found = list(regions(data, allow_tail=allow_tail))
    position = 0
    for region in found:
        assert region.start == position < region.end
        position = region.end
    assert position == len(data)
    return found


def kinds(data: bytes) -> set[Enum]:
    return {region.kind for region in named(data)}


def test_a_sound_image_has_every_kind_and_nothing_unknown() -> None:
    assert kinds(SAMPLE) == set(RegionKind) - {RegionKind.UNKNOWN, RegionKind.APPENDED}
    assert RegionKind.UNKNOWN not in kinds(SAMPLE_SHA512)


def test_regions_are_named() -> None:
    found = named(SAMPLE)
    assert found[:3] == [
        Region(0, 32, RegionKind.HEADER, "composefs header", None),
        Region(32, 1024, RegionKind.PADDING, "zero", None),
        Region(1024, 1152, RegionKind.SUPERBLOCK, "superblock", None),
    ]
    inode = find(SAMPLE, b"inline")
    label = f"security.selinux of /inline, id {Image(SAMPLE).shared_ids(inode)[0]:#x}"
    start = inode.xattr_start
    assert [region for region in found if region.nid == inode.nid] == [
        Region(inode.offset, start, RegionKind.INODE, "extended inode of /inline", inode.nid),
        Region(start, start + 12, RegionKind.XATTR_HEADER, "name filter of /inline", inode.nid),
        Region(start + 12, start + 16, RegionKind.XATTR_REFERENCE, label, inode.nid),
        Region(start + 16, start + 28, RegionKind.XATTR, "user.x of /inline", inode.nid),
        Region(start + 28, start + 36, RegionKind.XATTR, "user.z of /inline", inode.nid),
        Region(start + 36, start + 41, RegionKind.CONTENT, "/inline", inode.nid),
    ]
    labels = {region.label for region in found}
    assert "1 hole of /ext" in labels
    assert "4 entries of /dir, . to sub" in labels
    assert any(label.startswith("195 entries of /many, . to entry-") for label in labels)
    assert "security.selinux, 27 bytes, 260 references" in labels
    symlinks = [region for region in found if region.kind is RegionKind.SYMLINK]
    assert [(region.label, region.end - region.start) for region in symlinks] == [("/symlink", 12), ("/long", 4095)]
    contents = [region for region in found if region.kind is RegionKind.CONTENT]
    assert sorted((region.label, region.end - region.start) for region in contents) == [
        ("/block", 3000),
        ("/dir/link", 6),
        ("/inline", 5),
        ("/two", 904),
        ("/two", 4096),
    ]


def test_shared_xattrs_without_references_are_named() -> None:
    values = {b"user.%03d" % number: b"v" for number in range(140)}
    data = bytes(write_image(directory({name: regular(b"", xattrs=values) for name in (b"a", b"b")})))
    shared = [region for region in named(data) if region.kind is RegionKind.SHARED_XATTR]
    assert [region.label.split(", ")[2] for region in shared] == ["0 references"] * 12 + ["2 references"] * 128
    assert RegionKind.UNKNOWN not in kinds(data)


def test_a_lost_chunk_table_is_found_again() -> None:
    data = bytes(write_image(directory({b"f": external(2**53)})))
    inode = find(data, b"f")
    (table,) = [region for region in named(data) if region.kind is RegionKind.CHUNKS]
    assert table.label == "holes of /f, which does not point here"
    assert (table.nid, table.end - table.start) == (inode.nid, 4096)
    # Without a file that lost its table such a block is unknown.
    assert RegionKind.UNKNOWN in kinds(data[: table.start] + b"\xff" * 4095 + b"\0" + data[table.end :])


def test_bytes_that_belong_to_nothing_are_flagged() -> None:
    inode = find(SAMPLE, b"dir")
    found = named(patch(SAMPLE, inode.end, "H", 0x101))
    (region,) = [region for region in found if region.kind is RegionKind.UNKNOWN]
    size = -inode.end % 32
    assert region == Region(inode.end, inode.end + size, RegionKind.UNKNOWN, f"2 of {size} bytes are not zero", None)


@pytest.mark.parametrize(
    ("junk", "kind"),
    [
        (b"\x01\x63\0\0n", RegionKind.UNKNOWN),
        (b"\x01\x01\xff\xffn", RegionKind.UNKNOWN),
        (b"\x01\x01\x01\0nv", RegionKind.SHARED_XATTR),
    ],
)
def test_junk_behind_the_shared_xattrs_is_named_for_what_it_is(junk: bytes, kind: RegionKind) -> None:
    end = max(region.end for region in named(SAMPLE) if region.kind is RegionKind.SHARED_XATTR)
    data = SAMPLE[:end] + junk + SAMPLE[end + len(junk) :]
    assert next(region.kind for region in named(data) if region.start == end) is kind


def test_overlaps_are_refused() -> None:
    block, two = find(SAMPLE, b"block"), find(SAMPLE, b"two")
    with pytest.raises(ImageError, match=r"offset 0x.*: the data of inode \d+ .* starts inside of the data of inode"):
        list(regions(patch(SAMPLE, block.offset + 16, "I", two.union)))
    with pytest.raises(ImageError, match=r"the data of inode \d+ .* starts inside of inode \d+ at offset"):
        list(regions(patch(SAMPLE, block.offset + 16, "I", block.offset // 4096)))


def test_a_shared_xattr_over_an_inode_is_an_overlap() -> None:
    # The id of "inline" is moved to an xattr entry inside of another inode.
    inode, other = find(SAMPLE, b"inline"), find(SAMPLE, b"dir")
    data = patch(SAMPLE, 1024 + 44, "I", 0)
    data = patch(data, inode.xattr_start + 12, "I", (other.xattr_start + 12) // 4)
    with pytest.raises(ImageError, match="shared xattr"):
        list(regions(data))


def test_xattrs_must_be_readable() -> None:
    inode = find(SAMPLE, b"inline")
    with pytest.raises(ImageError, match=r"xattr area at .* \(/inline\): unknown xattr name prefix 9"):
        list(regions(patch(SAMPLE, inode.xattr_start + 17, "B", 9)))


def test_the_filler_behind_the_last_inode_ends_with_its_slot() -> None:
    data = bytes(write_image(directory({b"zz": regular(b"abc")})))
    end = find(data, b"zz").end
    slot = end + 32 & -32
    fillers = [(region.start, region.end) for region in named(data) if region.kind is RegionKind.PADDING]
    assert fillers[1:3] == [(end, slot), (slot, slot + 4096 & -4096)]


def test_what_is_appended_is_one_region() -> None:
    found = named(SAMPLE + b"signature", allow_tail=True)
    size = len(SAMPLE)
    assert found[-1] == Region(size, size + 9, RegionKind.APPENDED, "behind the image", None)


def test_the_smallest_image_is_covered() -> None:
    assert kinds(bytes(write_image(Directory(mode=0o40755)))) == {
        RegionKind.HEADER,
        RegionKind.SUPERBLOCK,
        RegionKind.INODE,
        RegionKind.XATTR_HEADER,
        RegionKind.XATTR,
        RegionKind.DIRENTS,
        RegionKind.PADDING,
    }


def test_the_image_ends_with_its_last_region() -> None:
    # Nothing in data blocks: the last region is the filler behind the shared table.
    tree = sample_tree()
    tree.entries = {b"%02x" % number: regular(b"") for number in range(16)}
    assert named(bytes(write_image(tree)))[-1].end == len(write_image(tree))
