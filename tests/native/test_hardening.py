"""The extension that was built has the protections that compiler and linker offer: read out of the ELF file itself."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from cfstools import native

pytestmark = pytest.mark.usefixtures("native_in_use")

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
DT_STRTAB, DT_STRSZ, DT_TEXTREL, DT_BIND_NOW, DT_FLAGS, DT_FLAGS_1 = 5, 10, 22, 24, 30, 0x6FFFFFFB
DF_TEXTREL, DF_BIND_NOW, DF_1_NOW = 0x4, 0x8, 0x1
PF_X, PF_W = 1, 2


class Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    size: int


class Library:
    """The segments, the dynamic section and the dynamic strings of a 64-bit little-endian library."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"\x7fELF\x02\x01"
        (start,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        self.segments = []
        for number in range(count):
            kind, flags, offset, address, _, stored = struct.unpack_from("<IIQQQQ", data, start + number * size)
            self.segments.append(Segment(kind, flags, offset, address, stored))
        (dynamic,) = self.of_kind(PT_DYNAMIC)
        pairs = struct.iter_unpack("<QQ", data[dynamic.offset : dynamic.offset + dynamic.size])
        self.dynamic = dict(pairs)
        at = self._offset(self.dynamic[DT_STRTAB])
        self.strings = set(data[at : at + self.dynamic[DT_STRSZ]].split(b"\0"))

    def of_kind(self, kind: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.kind == kind]

    def _offset(self, address: int) -> int:
        (segment,) = [one for one in self.of_kind(PT_LOAD) if 0 <= address - one.address < one.size]
        return address - segment.address + segment.offset


@pytest.fixture(scope="module")
def library() -> Library:
    if native.IMPLEMENTATION != "native":
        native.use("native")
    spec = importlib.util.find_spec("cfstools.native._native")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        pytest.skip("not a 64-bit little-endian library")
    if any(string.startswith(b"__asan") for string in Library(data).strings):
        pytest.skip("built with sanitizers instead")
    return Library(data)


def test_relocations_are_done_at_load_and_read_only_afterwards(library: Library) -> None:
    assert library.of_kind(PT_GNU_RELRO)
    now = library.dynamic.get(DT_FLAGS, 0) & DF_BIND_NOW or library.dynamic.get(DT_FLAGS_1, 0) & DF_1_NOW
    assert now or DT_BIND_NOW in library.dynamic
    assert DT_TEXTREL not in library.dynamic
    assert not library.dynamic.get(DT_FLAGS, 0) & DF_TEXTREL


def test_nothing_is_both_writable_and_executable(library: Library) -> None:
    assert [segment for segment in library.of_kind(PT_LOAD) if segment.flags & PF_W and segment.flags & PF_X] == []
    (stack,) = library.of_kind(PT_GNU_STACK)
    assert not stack.flags & PF_X


def test_overruns_are_found_when_they_happen(library: Library) -> None:
    assert b"__stack_chk_fail" in library.strings
    # What _FORTIFY_SOURCE puts in the place of snprintf(); musl has no such functions.
    if b"libc.so.6" in library.strings:
        assert {string for string in library.strings if string.endswith(b"_chk")}
