"""The format's description agrees with the code: its constants and its worked examples."""

from __future__ import annotations

import re
from pathlib import Path

from cfstools.formats.composefs.overlay_xattrs import METACOPY_HEADERS
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.erofs import layout as fmt
from cfstools.store import INLINE_THRESHOLD
from cfstools.verity import Params, descriptor, digest_bytes
from tests.formats.images import write_image

PROJECT = Path(__file__).parent.parent.parent
TEXT = (PROJECT / "docs" / "image-format.md").read_text()


def test_constants_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", TEXT.split("## 1.")[0], re.MULTILINE))
    del table["constant"]
    numbers = {name: int(re.findall(r"0x[0-9a-fA-F]+|\d+", value)[0], 0) for name, value in table.items()}
    assert numbers.pop("composefs header magic") == fmt.COMPOSEFS_MAGIC
    assert numbers.pop("composefs header version") == fmt.COMPOSEFS_HEADER_VERSION
    assert numbers.pop("EROFS superblock magic") == fmt.EROFS_MAGIC
    assert table["superblock offset / size"] == f"{fmt.SUPERBLOCK_OFFSET} / {fmt.SUPERBLOCK.size}"
    assert numbers.pop("superblock offset / size") == fmt.SUPERBLOCK_OFFSET
    assert numbers.pop("first inode position") == fmt.FIRST_INODE_OFFSET
    assert numbers.pop("block bits") == fmt.BLOCK_BITS
    assert numbers.pop("maximum chunk bits") == fmt.CHUNK_BITS_MAX
    assert numbers.pop("maximum chunk entries per file") == fmt.CHUNK_ENTRIES_MAX
    assert numbers.pop("largest inline content") == fmt.INLINE_MAX
    assert numbers.pop("inline threshold of directory scans") == INLINE_THRESHOLD
    assert numbers.pop("longest file name") == fmt.NAME_MAX
    assert numbers.pop("longest symlink target or payload") == fmt.SYMLINK_MAX == fmt.PAYLOAD_MAX
    assert numbers.pop("longest xattr key") == fmt.XATTR_KEY_MAX
    assert numbers.pop("xattr space per inode from input") == fmt.XATTR_SPACE_MAX
    assert numbers.pop("xxh32 seed base") == fmt.XATTR_FILTER_SEED
    assert not numbers


def test_the_worked_example_is_what_is_written() -> None:
    section = TEXT[TEXT.index("### 11.2") : TEXT.index("### 11.3")]
    dump = section.split("```")[1].lstrip("\n")
    image = write_image(parse_dump(dump.encode()))
    assert digest_bytes(image).hex() in section
    for line in section.split("```")[3].splitlines():
        found = re.match(r"([0-9a-f]{4}): ((?:[0-9a-f]{2}(?: \| | |$))+)", line)
        if found:
            expected = bytes.fromhex(found[2].replace("|", " "))
            start = int(found[1], 16)
            assert image[start : start + len(expected)] == expected, line


def test_descriptors_and_metacopies_start_as_described() -> None:
    for algorithm, header in METACOPY_HEADERS.items():
        start = descriptor(bytes(algorithm.digest_size), 0, Params(algorithm=algorithm))[:4]
        assert start.hex(" ") in TEXT
        assert header.hex(" ") in TEXT
