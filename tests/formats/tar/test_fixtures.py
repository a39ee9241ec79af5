"""Each archive with a trap and what becomes of it: docs/oci.md, "Headers of tar archives"."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest

from cfstools.errors import TarError
from cfstools.formats.tar import Member, MemberType, TarReader, TarWarning

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tar-edge"

BINARY_VALUE = bytes(range(256))
STAMP = 1795450853


class Outcome(NamedTuple):
    members: list[tuple[Member, bytes]]
    warnings: list[TarWarning]
    error: TarError | None
    left: int


def read_all(data: bytes, *, skip_unknown: bool = False) -> Outcome:
    source = io.BytesIO(data)
    members: list[tuple[Member, bytes]] = []
    warnings: list[TarWarning] = []
    reader = TarReader(source.read, skip_unknown=skip_unknown, on_warning=warnings.append)
    error = None
    try:
        members.extend((member, b"".join(reader.iter_content(member))) for member in reader)
    except TarError as raised:
        error = raised
    return Outcome(members, warnings, error, len(data) - source.tell())


def fixture(name: str, *, skip_unknown: bool = False) -> Outcome:
    return read_all((FIXTURES / f"{name}.tar").read_bytes(), skip_unknown=skip_unknown)


def names(outcome: Outcome) -> list[bytes]:
    return [member.name for member, _ in outcome.members]


def contents(outcome: Outcome) -> dict[bytes, bytes]:
    return {member.name: data for member, data in outcome.members}


def test_a_lone_zero_block_before_members_is_an_error() -> None:
    outcome = fixture("onezero")
    assert names(outcome) == [b"a"]
    assert str(outcome.error) == "offset 0x400/1024: a single zero block is followed by more members"


def test_members_behind_two_zero_blocks_are_read_and_ignored_with_a_warning() -> None:
    outcome = fixture("twozero")
    assert names(outcome) == [b"a"]
    assert outcome.error is None
    assert outcome.warnings == [("offset 0x400/1024", "data after the end of the archive is ignored")]
    assert outcome.left == 0


def test_missing_end_blocks_are_a_warning() -> None:
    outcome = fixture("noeof")
    assert contents(outcome) == {b"a": b"A"}
    assert outcome.error is None
    assert outcome.warnings == [("offset 0x400/1024", "the archive ends without end blocks")]


def test_a_cut_header_is_an_error() -> None:
    outcome = fixture("trunchdr")
    assert names(outcome) == [b"a"]
    assert str(outcome.error) == "offset 0x400/1024: the archive ends inside a header, after 300 of 512 bytes"


def test_cut_contents_are_an_error() -> None:
    outcome = fixture("trunc")
    assert (
        str(outcome.error)
        == "offset 0x0/0 (member a): the archive ends inside the padding of the contents, 324 bytes are missing"
    )


def test_the_size_of_a_pax_record_wins() -> None:
    outcome = fixture("paxsize")
    assert [(member.name, member.size) for member, _ in outcome.members] == [(b"p", 512), (b"b", 2)]
    assert contents(outcome)[b"p"].startswith(b"inner\0")
    assert outcome.error is None


def test_global_records_that_would_change_members_are_refused() -> None:
    outcome = fixture("global")
    assert outcome.members == []
    assert str(outcome.error) == (
        "offset 0x0/0: PAX record mtime in a global header: some readers apply it to all members, some to none"
    )


def test_a_binary_attribute_keeps_its_bytes() -> None:
    ((member, data),) = fixture("binxattr").members
    assert member.xattrs == {b"user.b": BINARY_VALUE}
    assert (data, member.offset) == (b"1", 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hlsize", [(b"t", MemberType.FILE), (b"h", MemberType.HARDLINK), (b"b", MemberType.FILE)]),
        ("dirsize", [(b"d/", MemberType.DIR), (b"b", MemberType.FILE)]),
    ],
)
def test_the_type_decides_whether_contents_follow(name: str, expected: list[tuple[bytes, MemberType]]) -> None:
    outcome = fixture(name)
    assert [(member.name, member.type) for member, _ in outcome.members] == expected
    assert contents(outcome)[b"b"] == b"BB"
    assert all(member.size == len(data) for member, data in outcome.members)
    assert outcome.error is None
    assert [warning.what.partition(" states")[1] for warning in outcome.warnings] == [" states"]


def test_the_oldest_type_flag_is_a_directory_if_the_name_ends_in_a_slash() -> None:
    ((member, _),) = fixture("v7").members
    assert (member.name, member.type) == (b"d/", MemberType.DIR)


def test_a_contiguous_file_is_a_file() -> None:
    ((member, data),) = fixture("conttype").members
    assert (member.type, data) == (MemberType.FILE, b"CC")


def test_an_unknown_type_is_an_error() -> None:
    outcome = fixture("unknown")
    assert outcome.members == []
    assert str(outcome.error) == "offset 0x0/0 (member u): unknown member type 'Q'"


def test_an_unknown_type_can_be_skipped() -> None:
    outcome = fixture("unknown", skip_unknown=True)
    assert names(outcome) == [b"after"]
    assert outcome.error is None
    assert outcome.warnings == [("offset 0x0/0 (member u)", "unknown member type 'Q': skipped")]


@pytest.mark.parametrize(("name", "expected"), [("negmtime", (-2, 500_000_000)), ("negmtime_gnu", (-5, 0))])
def test_times_before_1970_count_down(name: str, expected: tuple[int, int]) -> None:
    ((member, _),) = fixture(name).members
    assert (member.mtime_sec, member.mtime_nsec) == expected


def test_duplicates_are_both_given() -> None:
    outcome = fixture("dup")
    assert [(member.name, data) for member, data in outcome.members] == [(b"d/f", b"hi\n"), (b"d/f", b"two\n")]


@pytest.mark.parametrize("name", ["sp_gnu", "sp_pax00", "sp_pax01", "sp_pax"])
def test_sparse_files_of_all_versions_are_expanded(name: str) -> None:
    outcome = fixture(name)
    assert outcome.error is None
    assert names(outcome) == [b"d/", b"d/sp", b"d/f"]
    member, data = outcome.members[1]
    assert member.sparse is not None
    assert member.sparse.extents[0] == (499712, 4096)
    assert len(data) == member.size == 1048576
    start, end = 499712, 499712 + 4096
    assert not any(data[:start])
    assert any(data[start:end])
    assert not any(data[end:])
    assert outcome.members[2][1] == b"hi\n"
    assert member.mtime_sec == STAMP


def test_every_fixture_is_named_here() -> None:
    text = Path(__file__).read_text()
    assert not [path.stem for path in FIXTURES.glob("*.tar") if f'"{path.stem}"' not in text]
