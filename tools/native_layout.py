"""Writes ``cfstools/native/layout.h``, what C needs of the formats (``make layout``).

Every constant and every record of an on-disk format is defined in Python; the header repeats them as macros. A name
keeps its Python spelling behind a prefix that says where it comes from:

=========  ==========================================================
prefix     source
=========  ==========================================================
FMT_       ``formats/erofs/layout.py`` and limits of its reader
KEY_       ``formats/composefs/overlay_xattrs.py``: keys of extended attributes
DUMP_      ``formats/dump/fields.py``: the fields of a line
VERITY_    ``verity``: the fs-verity descriptor
KNOWN_     ``native/_known.py``: records of the digest cache
=========  ==========================================================

A record gives its size (``FMT_DIRENT_BYTES``) and for each field offset and width (``FMT_DIRENT_NID``), which the
functions of ``little_endian.h`` take as two arguments.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path

from cfstools.formats.composefs import overlay_xattrs as overlay
from cfstools.formats.dump import fields
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.reader import XATTR_BYTES_MAX
from cfstools.native import KNOWN_RECORD
from cfstools.verity import Algorithm
from cfstools.verity.merkle import DESCRIPTOR

HEADER = Path(__file__).resolve().parent.parent / "cfstools" / "native" / "layout.h"

_RECORDS: Sequence[tuple[str, struct.Struct, Sequence[str]]] = (
    ("FMT_COMPOSEFS_HEADER", fmt.COMPOSEFS_HEADER, fmt.ComposefsHeader._fields),
    ("FMT_SUPERBLOCK", fmt.SUPERBLOCK, fmt.Superblock._fields),
    ("FMT_COMPACT_INODE", fmt.COMPACT_INODE, fmt.CompactInode._fields),
    ("FMT_EXTENDED_INODE", fmt.EXTENDED_INODE, fmt.ExtendedInode._fields),
    ("FMT_DIRENT", fmt.DIRENT, ("nid", "name_offset", "file_type")),
    ("FMT_XATTR_HEADER", fmt.XATTR_HEADER, ("filter", "shared_count")),
    ("FMT_XATTR_ENTRY", fmt.XATTR_ENTRY, ("name_size", "index", "value_size")),
    (
        "VERITY_DESCRIPTOR",
        DESCRIPTOR,
        ("version", "algorithm", "log_block_size", "salt_size", "data_size", "root_hash", "salt"),
    ),
    ("KNOWN_RECORD", KNOWN_RECORD, ("inode", "size", "mtime", "ctime", "seen", "bare")),
)

_KEYS = {
    "OVERLAY": overlay.OVERLAY,
    "ESCAPED": overlay.ESCAPED,
    "METACOPY": overlay.METACOPY_KEY,
    "REDIRECT": overlay.REDIRECT_KEY,
    "OPAQUE": overlay.OPAQUE_KEY,
    "SELINUX": overlay.SELINUX_KEY,
    "WHITEOUT": overlay.WHITEOUT_MARKS[0][0],
    "USER_WHITEOUT": overlay.WHITEOUT_MARKS[1][0],
    "WHITEOUTS": overlay.PARENT_MARKS[0][0],
    "USER_WHITEOUTS": overlay.PARENT_MARKS[1][0],
}


def text() -> str:
    """The header that the Python modules give."""
    lines = [
        "/* Made by tools/native_layout.py from the Python modules; `make layout` writes it anew. */",
        "#ifndef CFSTOOLS_LAYOUT_H",
        "#define CFSTOOLS_LAYOUT_H",
        *_section("formats/erofs/layout.py", _constants()),
        *_section("formats/erofs/reader.py", [_define("FMT_XATTR_BYTES_MAX", XATTR_BYTES_MAX)]),
        *_section(
            "formats/composefs/overlay_xattrs.py", [_define(f"KEY_{name}", _string(_KEYS[name])) for name in _KEYS]
        ),
        *_section("formats/dump/fields.py", _dump_fields()),
        *_section("verity/algorithm.py", [_define("VERITY_DIGEST_MAX", max(one.digest_size for one in Algorithm))]),
    ]
    for name, record, names in _RECORDS:
        lines += ["", *_record(name, record, names)]
    return "\n".join([*lines, "", "#endif", ""])


def _section(source: str, lines: Iterator[str] | list[str]) -> list[str]:
    return ["", f"/* {source} */", *lines]


def _define(name: str, value: int | str) -> str:
    return f"#define {name} {_number(value) if isinstance(value, int) else value}"


def _number(value: int) -> str:
    return f"{value:#x}U" if value > 0x7FFFFFFF else str(value)


def _string(data: bytes) -> str:
    return f'"{data.decode("ascii")}"'


def _constants() -> Iterator[str]:
    """All numbers and enums of layout.py, and its tables as initialisers."""
    for name, value in vars(fmt).items():
        if isinstance(value, int) and name.isupper():
            yield _define(f"FMT_{name}", value)
        elif isinstance(value, type) and issubclass(value, IntEnum) and value is not IntEnum:
            prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
            yield from (_define(f"FMT_{prefix}_{member.name}", member.value) for member in value)
    types = [fmt.FILE_TYPE_OF_MODE.get(kind, 0) for kind in range(16)]
    yield _define("FMT_FILE_TYPE_OF_MODE", _braces(str(int(kind)) for kind in types))
    prefixes = [fmt.XATTR_PREFIXES[index] for index in fmt.XattrIndex]
    assert list(fmt.XattrIndex) == list(range(len(prefixes)))
    yield _define("FMT_XATTR_PREFIX", _braces(f"LITERAL({_string(prefix)})" for prefix in prefixes))
    yield _define("FMT_XATTR_PREFIX_MAX", max(map(len, prefixes)))
    yield _define("FMT_METACOPY_HEADERS", _braces(_braces(map(str, one)) for one in overlay.METACOPY_HEADERS.values()))
    (filling,) = set(fmt.CHUNK_HOLE)
    yield _define("FMT_CHUNK_HOLE_SIZE", len(fmt.CHUNK_HOLE))
    yield _define("FMT_CHUNK_HOLE_BYTE", f"{filling:#x}")


def _braces(parts: Iterator[str]) -> str:
    return f"{{{', '.join(parts)}}}"


def _dump_fields() -> Iterator[str]:
    for number, name in enumerate(fields.NAMES):
        yield _define(f"DUMP_{name.upper()}", number)


def _record(name: str, record: struct.Struct, names: Sequence[str]) -> Iterator[str]:
    """The size of a record, and offset and width of each field."""
    yield _define(f"{name}_BYTES", record.size)
    order, left, at = record.format[0], list(names), 0
    for item in re.findall(r"\d*[a-zA-Z]", record.format[1:]):
        end = at + struct.calcsize(order + item)
        count = 0 if item.endswith("x") else 1 if item.endswith("s") else int(item[:-1] or 1)
        for number in range(count):
            width = (end - at) // count
            yield _define(f"{name}_{left.pop(0).upper()}", f"{at + number * width}, {width}")
        at = end
    assert not left, f"{name} has more names than fields"


def main(arguments: list[str]) -> int:
    """Write the header; with ``--check`` only say whether it is out of date."""
    if arguments != ["--check"]:
        HEADER.write_text(text(), encoding="ascii")
        return 0
    if HEADER.exists() and HEADER.read_text(encoding="ascii") == text():
        return 0
    print(f"{HEADER.name} is not what the modules say: `make layout` writes it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
