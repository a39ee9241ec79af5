from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import ImageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs import reader
from cfstools.formats.erofs.dirents import parse_dirents
from cfstools.formats.erofs.layout import DataLayout
from cfstools.formats.erofs.reader import Image
from cfstools.formats.erofs.superblock import check_head, declared_length
from cfstools.tree import Entry
from tests.formats.images import LABEL, SAMPLE, directory, dirent_offset, external, find, patch, regular, write_image

SB = 1024
Patch = Callable[[bytes], bytes]


def at(offset: int, form: str, *values: object) -> Patch:
    return lambda data: patch(data, offset, form, *values)


HEADS: list[tuple[str, Patch, str]] = [
    ("empty", lambda data: b"", "0 bytes are too few for an image"),
    ("short", lambda data: data[:4095], "4095 bytes are too few for an image, the smallest has 4096"),
    ("magic", at(0, "I", 1), "composefs header at offset 0x0: magic 0x00000001 is not 0xd078629a: not composefs"),
    ("version", at(4, "I", 2), "composefs header at offset 0x0: unknown header version 2"),
    ("flags", at(8, "I", 3), "composefs header at offset 0x0: unknown flags 0x3"),
    ("composefs", at(12, "I", 2), "composefs header at offset 0x0: unknown composefs version 2; 0 and 1 are known"),
    ("erofs", at(SB, "I", 7), "superblock at offset 0x400: magic 0x00000007 is not 0xe0f5e1e2: not EROFS"),
    ("bits", at(SB + 12, "B", 9), "superblock at offset 0x400: blocks of 2^9 bytes; composefs has 2^12"),
    ("incompat", at(SB + 80, "I", 4), "superblock at offset 0x400: unknown incompatible features 0x4"),
    ("extensions", at(SB + 13, "B", 1), "superblock at offset 0x400: superblock extensions or inodes in another"),
    ("meta", at(SB + 40, "I", 1), "superblock at offset 0x400: superblock extensions or inodes in another"),
    ("none", at(SB + 36, "I", 0), "superblock at offset 0x400: the image has no blocks"),
    ("xattrs", at(SB + 44, "I", 1 << 31), "superblock at offset 0x400: the shared xattrs start at block 2147483648"),
    ("truncated", lambda data: data[:-4096], "are there: truncated"),
    ("longer", lambda data: data + bytes(4096), f"the image has {len(SAMPLE)} bytes but {len(SAMPLE) + 4096} are"),
    ("root", at(SB + 14, "H", 65535), "inode 65535 at offset 0x1fffe0: there is no inode here"),
    ("low root", at(SB + 14, "H", 35), "inode 35 at offset 0x460: there is no inode here"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in HEADS], ids=[row[0] for row in HEADS])
def test_heads_are_checked(change: Patch, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        Image(change(SAMPLE))
    assert message in str(caught.value)


def test_the_root_must_be_a_directory() -> None:
    nid = find(SAMPLE, b"inline").nid
    with pytest.raises(ImageError, match=f"inode {nid} at offset {nid * 32:#x}: the root is not a directory"):
        Image(patch(SAMPLE, SB + 14, "H", nid))


def test_a_tail_behind_the_image_needs_permission() -> None:
    image = Image(SAMPLE + b"signature", allow_tail=True)
    assert image.length == len(SAMPLE)
    assert len(image.data) == len(SAMPLE) + 9
    # What is behind the image is not part of it: nothing may reach into it.
    inode = find(SAMPLE, b"block")
    moved = patch(SAMPLE + bytes(4096), inode.offset + 16, "I", len(SAMPLE) // 4096)
    with pytest.raises(ImageError, match="are outside of the data of the image"):
        Image(moved, allow_tail=True).inode(inode.nid)


def test_an_image_is_read_from_a_memory_map(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(SAMPLE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        image = Image(mapped)
        assert image.file_data(find(SAMPLE, b"inline")) == b"hello"
        image.data.release()


def test_records_are_read() -> None:
    image = Image(SAMPLE)
    assert image.header.composefs_version == 1
    assert image.root_nid == image.root.nid == 36
    assert image.root.where == "inode 36 at offset 0x480"
    assert (image.root.mode, image.root.nlink, image.root.ino) == (0o040755, 5, 0)
    inline = find(SAMPLE, b"inline")
    assert (inline.compact, inline.layout, inline.size, inline.mtime_sec) == (False, DataLayout.INLINE, 5, 5)
    label = (b"security.selinux", b"system_u:object_r:usr_t:s0\0", True)
    assert image.xattrs(inline) == [(b"user.x", b"yyyyy", False), (b"user.z", b"", False), label]
    assert image.file_data(find(SAMPLE, b"two")) == b"2" * 5000
    assert image.file_data(find(SAMPLE, b"block")) == b"b" * 3000
    assert image.file_data(find(SAMPLE, b"ext")) == b""
    assert image.symlink_target(find(SAMPLE, b"symlink")) == b"/usr/bin/env"
    assert image.symlink_target(find(SAMPLE, b"long")) == b"t" * 4095
    assert find(SAMPLE, b"null").union == 0x103
    assert [name for name, _, _ in image.dirents(find(SAMPLE, b"dir"))] == [b".", b"..", b"link", b"sub"]
    assert len(list(image.dirents(find(SAMPLE, b"many")))) == 202
    assert find(SAMPLE, b"many").data_size == 4096
    assert find(SAMPLE, b"many").tail_size > 0
    assert find(SAMPLE, b"00").is_masking
    assert image.xattrs(find(SAMPLE, b"fifo")) == []
    assert image.shared_ids(find(SAMPLE, b"fifo")) == ()


def inode_patch(path: bytes, offset: int, form: str, *values: object) -> Patch:
    return lambda data: patch(data, find(data, path).offset + offset, form, *values)


INODES: list[tuple[str, bytes, Patch, str]] = [
    ("layout", b"fifo", inode_patch(b"fifo", 0, "H", 2), "unknown data layout or format bits of the inode"),
    ("format bits", b"fifo", inode_patch(b"fifo", 0, "H", 0x8000), "unknown data layout or format bits"),
    ("mode", b"fifo", inode_patch(b"fifo", 4, "H", 0o170644), "mode 170644 has no known file type"),
    ("no type", b"fifo", inode_patch(b"fifo", 4, "H", 0o644), "mode 644 has no known file type"),
    ("xattrs", b"fifo", inode_patch(b"fifo", 2, "H", 65535), "the xattr area ends at"),
    ("fifo size", b"fifo", inode_patch(b"fifo", 8, "I", 1), "mode 10600 cannot have data, but size 1"),
    ("fifo tail", b"fifo", inode_patch(b"fifo", 0, "H", 4), "mode 10600 cannot have data, but size 0 or a tail"),
    ("chunked symlink", b"symlink", inode_patch(b"symlink", 0, "H", 8), "chunk layout with mode 120777"),
    ("symlink size", b"symlink", inode_patch(b"symlink", 8, "I", 4096), "a symlink target of 4096 bytes inside"),
    ("no target", b"symlink", inode_patch(b"symlink", 8, "I", 0), "the symlink has no target"),
    ("file size", b"block", inode_patch(b"block", 8, "I", 5001), "file contents of 5001 bytes inside the image; at"),
    ("no tail", b"inline", inode_patch(b"inline", 8, "Q", 4096), "the inline layout needs a tail, but size 4096"),
    ("empty inline", b"inline", inode_patch(b"inline", 8, "Q", 0), "the inline layout needs a tail, but size 0"),
    ("huge tail", b"symlink", inode_patch(b"symlink", 8, "I", 4095), "the tail of 4095 bytes at"),
    ("crossing", b"inline", inode_patch(b"inline", 8, "Q", 4095), "crosses a block boundary"),
    ("directory size", b"dir", inode_patch(b"dir", 8, "I", 1 << 31), "directory of 2147483648 bytes in an image of"),
    ("block 0", b"block", inode_patch(b"block", 16, "I", 0), "data blocks 0 to 0 are outside of the data"),
    ("far block", b"block", inode_patch(b"block", 16, "I", 2**32 - 1), "data blocks 4294967295 to 4294967295 are"),
    ("chunk format", b"ext", inode_patch(b"ext", 16, "I", 0x20), "unknown chunk format 0x20"),
    ("chunk bits", b"ext", inode_patch(b"ext", 16, "I", 0x10005), "unknown chunk format 0x10005"),
    ("no chunks", b"ext", inode_patch(b"ext", 8, "I", 0), "external file of 0 bytes in 0 chunks; 1 to 1024 chunks"),
    ("many chunks", b"ext", inode_patch(b"ext", 8, "I4xI", 2**32 - 1, 0), "external file of 4294967295 bytes"),
]


@pytest.mark.parametrize(("path", "change", "message"), [row[1:] for row in INODES], ids=[row[0] for row in INODES])
def test_inodes_are_checked(path: bytes, change: Patch, message: str) -> None:
    inode = find(SAMPLE, path)
    with pytest.raises(ImageError) as caught:
        Image(change(SAMPLE)).inode(inode.nid)
    assert message in str(caught.value)
    assert caught.value.where == f"inode {inode.nid} at offset {inode.offset:#x}"


@pytest.mark.parametrize("nid", [0, 35, len(SAMPLE) // 32, 2**64 - 1])
def test_inodes_outside_of_the_image_are_refused(nid: int) -> None:
    with pytest.raises(ImageError, match="there is no inode here"):
        Image(SAMPLE).inode(nid)


def test_an_extended_inode_must_fit() -> None:
    with pytest.raises(ImageError, match="the extended inode does not fit into the image"):
        Image(patch(SAMPLE, len(SAMPLE) - 32, "H", 1)).inode(len(SAMPLE) // 32 - 1)


def test_a_tail_behind_the_last_byte_is_refused() -> None:
    end = len(SAMPLE)
    changed = patch(SAMPLE, end - 32, "HHHHI", 4, 0, 0o100644, 1, 4)
    with pytest.raises(ImageError, match=r"the tail of 4 bytes at .* is outside of the image"):
        Image(changed).inode(end // 32 - 1)


def test_chunk_tables_hold_nothing_but_holes() -> None:
    inode = find(SAMPLE, b"ext")
    with pytest.raises(ImageError, match=f"the chunk table at {inode.tail_start:#x} points into the image"):
        Image(patch(SAMPLE, inode.tail_start, "I", 1)).inode(inode.nid)


def test_a_chunk_table_may_not_cross_a_block() -> None:
    data = bytes(write_image(directory({b"ext": external(1000 << 12)})))
    inode = find(data, b"ext")
    with pytest.raises(ImageError, match=r"the chunk table of 4000 bytes at .* crosses a block boundary"):
        Image(patch(data, inode.offset + 16, "I", 0)).inode(inode.nid)


def test_a_spilled_chunk_table_is_accepted() -> None:
    data = bytes(write_image(directory({b"ext": external(2**53)})))
    inode = find(data, b"ext")
    assert inode.is_chunked
    assert inode.is_spilled
    assert inode.tail_size == 0
    assert not find(SAMPLE, b"ext").is_spilled


def test_a_symlink_target_has_no_nul() -> None:
    inode = find(SAMPLE, b"symlink")
    image = Image(patch(SAMPLE, inode.tail_start + 3, "B", 0))
    with pytest.raises(ImageError, match=f"{inode.where}: the symlink target has a NUL byte"):
        image.symlink_target(inode)


def area_patch(offset: int, form: str, *values: object) -> Patch:
    return lambda data: patch(data, find(data, b"inline").xattr_start + offset, form, *values)


# The area of "inline": header 12, one shared id, "user.x" (4 + 1 + 5 + 2 padding), "user.z" (4 + 1 + 3 padding).
AREAS: list[tuple[str, Patch, str]] = [
    ("many shared", area_patch(4, "B", 200), "200 shared xattrs do not fit into an area of 36 bytes"),
    ("value", area_patch(18, "H", 9999), "an xattr of 10004 bytes ends outside of its area"),
    ("name", area_patch(28, "B", 9), "an xattr of 13 bytes ends outside of its area"),
    ("prefix", area_patch(17, "B", 7), "unknown xattr name prefix 7"),
    ("no name", area_patch(16, "BB", 0, 0), "an xattr has no name"),
    ("NUL", area_patch(20, "B", 0), r"the xattr name user.\x00 has a NUL byte"),
    ("twice", area_patch(32, "B", ord("x")), "an xattr is there twice"),
    ("far id", area_patch(12, "I", 2**32 - 1), "it is outside of the image"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in AREAS], ids=[row[0] for row in AREAS])
def test_xattr_areas_are_checked(change: Patch, message: str) -> None:
    nid = find(SAMPLE, b"inline").nid
    image = Image(change(SAMPLE))
    with pytest.raises(ImageError) as caught:
        image.xattrs(image.inode(nid))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"inode {nid} at offset {nid * 32:#x}, xattr area at ")


def test_shared_xattrs_are_checked_where_they_are() -> None:
    image = Image(SAMPLE)
    inode = find(SAMPLE, b"inline")
    start = image.shared_xattr(image.shared_ids(inode)[0]).start
    broken = Image(patch(SAMPLE, start + 1, "B", 99))
    with pytest.raises(ImageError, match=f"shared xattr at {start:#x}: unknown xattr name prefix 99"):
        broken.xattrs(inode)


def test_the_header_of_an_xattr_must_fit() -> None:
    image = Image(SAMPLE)
    with pytest.raises(ImageError, match="the header of an xattr is cut off"):
        image.xattr_entry_at(len(SAMPLE) - 2, len(SAMPLE))


def test_the_last_entry_may_be_empty() -> None:
    data = bytes(write_image(directory({b"f": regular(b"", xattrs={b"user.": b""})})))
    assert Image(data).xattrs(find(data, b"f")) == [(b"user.", b"", False)]


def test_shared_xattrs_of_one_inode_are_limited() -> None:
    entries: dict[bytes, Entry] = {}
    for group in range(4):
        # The first group has tiny values and three times as many references as the others.
        count, size = (66, 4) if not group else (22, 1400)
        values = {b"user.%d" % number: bytes([group + 1]) * size for number in range(count)}
        entries[b"a%d" % group] = regular(b"", xattrs=values)
        entries[b"b%d" % group] = regular(b"", xattrs=values)
    data = bytes(write_image(directory(entries)))
    image = Image(data)
    large = [identifier for group in range(1, 4) for identifier in image.shared_ids(find(data, b"a%d" % group))]
    data = patch(data, find(data, b"a0").xattr_start + 12, "66I", *large)
    with pytest.raises(ImageError, match=r"the xattrs of one inode have .* bytes; at most 65536 are allowed"):
        Image(data).xattrs(find(data, b"a0"))


def test_shared_xattrs_cannot_be_larger_than_the_image() -> None:
    keys = [b"user.%03d" % number for number in range(120)]
    values = {key: bytes(200) for key in keys}
    files = {b"f%d" % number: regular(b"", xattrs=values) for number in range(2)}
    data = bytes(write_image(directory(dict(files))))
    image = Image(data)
    starts = [image.shared_xattr(identifier).start for identifier in image.shared_ids(find(data, b"f0"))]
    for start in starts[:-1]:
        data = patch(data, start + 2, "H", min(len(data) - start - 16, 20000))
    image = Image(data)
    with pytest.raises(ImageError, match="shared xattrs overlap"):
        image.xattrs(find(data, b"f0"))


def test_areas_of_references_are_decoded_once() -> None:
    data = bytes(write_image(directory({name: regular(b"", xattrs=LABEL) for name in (b"a", b"b")})))
    image = Image(data)
    assert image.xattrs(find(data, b"a")) is image.xattrs(find(data, b"b"))


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CACHED_KEYS_MAX", 0)
    monkeypatch.setattr(reader, "_CACHED_AREAS_MAX", 0)
    data = bytes(write_image(directory({name: regular(b"", xattrs=LABEL) for name in (b"a", b"b")})))
    image = Image(data)
    first, second = (image.xattrs(find(data, name)) for name in (b"a", b"b"))
    assert first == second
    assert first is not second


def block_of(*names: bytes) -> bytes:
    offset = 12 * len(names)
    dirents = b""
    for number, name in enumerate(names):
        dirents += fmt.DIRENT.pack(number, offset, 1)
        offset += len(name)
    return dirents + b"".join(names)


def test_directory_blocks_are_read() -> None:
    entries = [(b"a", 0, 1), (b"bc", 1, 1)]
    assert parse_dirents(block_of(b"a", b"bc")) == (entries, 27)
    assert parse_dirents(block_of(b"a", b"bc") + bytes(9)) == (entries, 27)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"", "directory block of 0 bytes"),
        (bytes(11), "directory block of 11 bytes"),
        (bytes(12), "the first name is at 0, in a block of 12 bytes"),
        (fmt.DIRENT.pack(1, 13, 1) + b"ab", "the first name is at 13, in a block of 14 bytes"),
        (fmt.DIRENT.pack(1, 24, 1) + b"ab", "the first name is at 24, in a block of 14 bytes"),
        (fmt.DIRENT.pack(1, 12, 1), "name offsets do not rise inside of the block, or a name is empty"),
        (fmt.DIRENT.pack(1, 12, 1) + b"\0a", "or a name is empty"),
        (fmt.DIRENT.pack(1, 24, 1) + fmt.DIRENT.pack(1, 24, 1) + b"ab", "name offsets do not rise"),
        (fmt.DIRENT.pack(1, 24, 1) + fmt.DIRENT.pack(1, 99, 1) + b"ab", "name offsets do not rise"),
        (block_of(b"a\0", b"b"), r"a\x00 cannot be a file name"),
        (block_of(b"a", b"b/c"), "b/c cannot be a file name"),
        (block_of(b"a", b"b" * 256), "bbb cannot be a file name"),
        (block_of(b"b", b"a"), "name a is not in order"),
        (block_of(b"a", b"a"), "name a is not in order"),
    ],
)
def test_directory_blocks_are_checked(block: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_dirents(block)
    assert message in str(caught.value)


def test_the_order_of_names_holds_across_blocks() -> None:
    inode = find(SAMPLE, b"many")
    first = SAMPLE.index(b"entry-", inode.tail_start)
    image = Image(patch(SAMPLE, first, "5s", b"aaaaa"))
    with pytest.raises(ImageError, match=r"directory entries at 0x.*: name aaaaa-... is not in order after entry-"):
        list(image.dirents(inode))


def test_a_directory_without_inline_tail_ends_with_its_size() -> None:
    inode = find(SAMPLE, b"")
    data = patch(SAMPLE, inode.offset + 8, "I", 4000)
    image = Image(data)
    assert list(image.directory_blocks(image.root)) == [(inode.data_start, 4000)]


def test_dirent_offsets_in_the_helper_agree_with_the_reader() -> None:
    offset = dirent_offset(SAMPLE, b"dir", b"sub")
    assert fmt.DIRENT.unpack_from(SAMPLE, offset)[0] == find(SAMPLE, b"dir/sub").nid


def test_a_head_that_is_too_short() -> None:
    with pytest.raises(ImageError, match="4095 bytes are too few for an image"):
        check_head(bytes(4095), 4095)
    assert declared_length(bytes(4095)) is None


def test_a_head_tells_the_length_of_its_image() -> None:
    check_head(SAMPLE[:4096], len(SAMPLE))
    assert declared_length(SAMPLE[:4096]) == len(SAMPLE)
    with pytest.raises(ImageError, match="truncated"):
        check_head(SAMPLE[:4096], len(SAMPLE) - 1)
