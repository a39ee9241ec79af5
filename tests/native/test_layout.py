"""The header with the constants of the formats is the one that the Python modules give."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tools import native_layout


def test_the_header_is_current() -> None:
    assert native_layout.HEADER.read_text(encoding="ascii") == native_layout.text(), "make layout writes it"


def test_an_outdated_header_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "layout.h"
    monkeypatch.setattr(native_layout, "HEADER", header)
    assert native_layout.main(["--check"]) == 1
    assert native_layout.main([]) == 0
    assert native_layout.main(["--check"]) == 0
    header.write_text(header.read_text(encoding="ascii").replace("4096", "4095"), encoding="ascii")
    assert native_layout.main(["--check"]) == 1


def test_offsets_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    record = struct.Struct("<HxB3xQ4s2H")
    lines = list(native_layout._record("R", record, ("a", "b", "c", "d", "e", "f")))
    assert lines[0] == f"#define R_BYTES {record.size}"
    values = record.unpack(bytes(range(record.size)))
    for line, value in zip(lines[1:], values, strict=True):
        at, width = (int(number) for number in line.split(" ", 2)[2].split(", "))
        expected = bytes(range(at, at + width))
        assert value == (expected if isinstance(value, bytes) else int.from_bytes(expected, "little"))
    with pytest.raises(AssertionError, match="more names"):
        list(native_layout._record("R", record, "abcdefg"))


def test_no_source_defines_a_constant_of_a_format_by_hand() -> None:
    """Numbers of the formats that mean nothing else must come from the header."""
    from cfstools.formats.erofs import layout

    telling = {
        layout.COMPOSEFS_MAGIC,
        layout.EROFS_MAGIC,
        layout.XATTR_FILTER_SEED,
        layout.INLINE_MAX,
        layout.SYMLINK_MAX,
        layout.FIRST_INODE_OFFSET,
    }
    for path in native_layout.HEADER.parent.glob("*.[ch]"):
        text = path.read_text(encoding="ascii")
        if path != native_layout.HEADER:
            numbers = {int(number, 0) for number in re.findall(r"\b(0x[0-9a-fA-F]+|[1-9][0-9]*)", text)}
            assert not numbers & telling, path.name
            assert "trusted." not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL), path.name
