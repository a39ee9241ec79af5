"""Rules of the tar reader on archives made by hand (docs/oci.md, "Headers of tar archives")."""

from __future__ import annotations

import base64
import io
import tracemalloc

import pytest

from cfstools.errors import TarError, UsageError
from cfstools.formats.tar import Member, MemberType, TarReader, TarWarning
from cfstools.formats.tar.numbers import byte_sum, parse_number, parse_time
from cfstools.streams.limits import TarLimits
from tests.formats.tar.tarbytes import (
    END,
    GNU,
    USTAR,
    V7,
    binary,
    error,
    file,
    gnu_long,
    header,
    octal,
    one,
    padded,
    pax,
    raw_pax,
    read,
    record,
)

LONG = b"directory/" * 20 + b"file"


# Names


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (header(b"n" * 100), b"n" * 100),
        (header(b"file", prefix=b"some/prefix"), b"some/prefix/file"),
        (header(b"f" * 100, prefix=b"p" * 155), b"p" * 155 + b"/" + b"f" * 100),
        (header(b"file", prefix=b"p" * 131, tail=b"tar\0"), b"p" * 131 + b"/file"),
        (header(b"file", magic=GNU, prefix=octal(5, 12) + octal(6, 12)), b"file"),
        (header(b"file", magic=GNU, prefix=binary(5, 12) + octal(6, 12)), b"file"),
        (header(b"file", magic=GNU, prefix=b"old/go/prefix"), b"old/go/prefix/file"),
        (header(b"file", magic=V7, prefix=b"no/field"), b"file"),
        (header(b"file\0junk"), b"file"),
        (header(b"\xff\xfe\n caf\xc3\xa9"), b"\xff\xfe\n caf\xc3\xa9"),
        (header(b"./a//b/../c"), b"./a//b/../c"),
    ],
    ids=["100", "prefix", "255", "star", "gnu times", "gnu times 256", "gnu prefix", "v7", "nul", "bytes", "verbatim"],
)
def test_names_of_header_blocks(block: bytes, name: bytes) -> None:
    assert one(block).name == name


def test_star_archives_have_a_shorter_prefix() -> None:
    star = header(b"file", prefix=b"p" * 131 + octal(7, 12) + octal(8, 12), tail=b"tar\0")
    assert one(star).name == b"p" * 131 + b"/file"


@pytest.mark.parametrize("ending", [b"", b"\0", b"\0\0"])
def test_gnu_long_names_and_links(ending: bytes) -> None:
    data = gnu_long(b"K", LONG + b"-target" + ending) + gnu_long(b"L", LONG + ending)
    member = one(data + header(b"short", b"2", link=b"t", magic=GNU))
    assert (member.name, member.linkname, member.offset) == (LONG, LONG + b"-target", 0)


def test_pax_names_and_links() -> None:
    data = pax((b"path", LONG), (b"linkpath", b"to = here\nand there"), (b"comment", b"\0 any"))
    member = one(data + header(b"short", b"1", link=b"t"))
    assert (member.name, member.linkname) == (LONG, b"to = here\nand there")
    assert one(data + header(b"short", b"0", link=b"t")).linkname == b""


def test_a_long_name_and_a_record_may_agree() -> None:
    assert one(gnu_long(b"L", LONG) + pax((b"path", LONG)) + header()).name == LONG
    assert "disagree" in error(gnu_long(b"L", LONG) + pax((b"path", b"other")) + header())
    assert "disagree" in error(pax((b"linkpath", b"x")) + gnu_long(b"K", b"y") + header(kind=b"2", link=b"z"))


@pytest.mark.parametrize("key", ["path", "linkpath", "size", "uid", "gid", "mtime", "SCHILY.devminor"])
def test_records_without_a_value_are_errors(key: str) -> None:
    # Of path and size: nothing and zero for Python, the header's for Go; GNU tar refuses some.
    assert f"PAX record {key} is empty" in error(pax((key.encode(), b"")) + file(b"kept", b"abc"))
    assert one(pax((b"atime", b""), (b"comment", b"")) + header(b"kept")).name == b"kept"
    assert "a GNU long name is empty" in error(gnu_long(b"L", b"\0") + header(b"kept"))
    assert "a GNU long link is empty" in error(gnu_long(b"K", b"") + header(b"kept"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (header(b""), "offset 0x0/0 (member ): the name is empty"),
        (header(b"l", b"1"), "offset 0x0/0 (member l): the link target is empty"),
        (header(b"l", b"2"), "the link target has 0 bytes, allowed are 1 to 4095"),
        (pax((b"path", b"a\0b")) + header(), "PAX record path holds a NUL"),
        (pax((b"linkpath", b"a\0b")) + header(), "PAX record linkpath holds a NUL"),
        (pax((b"pa\0th", b"ab")) + header(), r"PAX record pa\x00th holds a NUL"),
        (gnu_long(b"L", b"visible\0hidden") + header(), "GNU long name holds a NUL"),
        (pax((b"path", b"a/" + b"b" * 256 + b"/c")) + header(), "component of the name is longer than 255"),
        (gnu_long(b"K", b"b" * 256) + header(kind=b"1"), "component of the link target is longer than 255"),
        (header(b"f" * 100, prefix=b"p" * 155).replace(b"/", b"p"), ""),
        (pax((b"path", b"a/" * 2049)) + header(), "the name has 4098 bytes, allowed are 4096"),
        (pax((b"linkpath", b"a/" * 2048)) + header(kind=b"2"), "the link target has 4096 bytes, allowed are 1 to 4095"),
        (pax((b"linkpath", b"a/" * 2049)) + header(kind=b"1"), "the link target has 4098 bytes, allowed are 4096"),
    ],
)
def test_names_that_cannot_be(data: bytes, what: str) -> None:
    if what:
        assert what in error(data)
    else:
        assert one(data).name.count(b"/") == 1


def test_errors_name_the_member_in_one_printable_line() -> None:
    name = b"a\n\x1b[31m\xff"
    assert error(header(name, b"Z")) == (r"offset 0x0/0 (member a\n\x1b[31m\xff): unknown member type 'Z'")
    long = error(pax((b"path", b"x/" * 1000)) + header(kind=b"2"))
    assert len(long) < 400
    assert "…" in long


# Numbers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"00000012", 10),
        (b"12\0junk!", 10),
        (b"\x80\0\0\0\0\0\0\x05", 5),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfb", -5),
        (binary(-(1 << 63), 12), -(1 << 63)),
        (binary((1 << 63) - 1, 12), (1 << 63) - 1),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert parse_number(field) == value


@pytest.mark.parametrize(
    "field",
    [b"0000648\0", b"-000001\0", b"+000001\0", b"0o00001\0", b"1_00000\0", b"12 34  \0", b"abc\0\0\0\0\0",
     binary(1 << 63, 12), binary(-(1 << 63) - 1, 12)],
)  # fmt: skip
def test_what_is_not_a_number(field: bytes) -> None:
    with pytest.raises(ValueError):
        parse_number(field)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", (0, 0)),
        (b"5", (5, 0)),
        (b"5.", (5, 0)),
        (b"1700000000.000000001", (1700000000, 1)),
        (b"1.5", (1, 500_000_000)),
        (b"1.9999999999", (1, 999_999_999)),
        (b"-1", (-1, 0)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.25", (-1, 750_000_000)),
        (b"-0.0000000001", (0, 0)),
    ],
)
def test_times(text: bytes, value: tuple[int, int]) -> None:
    assert parse_time(text) == value


@pytest.mark.parametrize(
    "text", [b"", b".5", b"-", b"--1", b"1.-5", b"1e3", b"1_0", b" 1", b"1.2.3", b"9" * 30, b"9223372036854775808"]
)
def test_what_is_not_a_time(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "mtime"])
def test_a_damaged_field_is_named(field: str) -> None:
    width = 12 if field == "mtime" else 8
    assert f"the {field} field is not a number: 9x" in error(header(**{field: b"9x".ljust(width, b"\0")}))  # type: ignore[arg-type]


def test_damaged_and_negative_sizes() -> None:
    assert "the size field is not a number: 9" in error(header(size=b"9".ljust(12, b"\0")))
    assert "the mode or the size is negative" in error(header(size=binary(-1, 12)))
    assert "the mode or the size is negative" in error(header(mode=binary(-1, 8)))
    assert "the size is negative" in error(header(kind=b"x", size=binary(-1, 12)))
    assert "the size field is not a number" in error(header(kind=b"L", size=b"9".ljust(12, b"\0")))
    assert "PAX record size is not a valid number: -1" in error(pax((b"size", b"-1")) + header())


@pytest.mark.parametrize("key", [b"uid", b"gid"])
def test_owners_of_64_bits_are_refused(key: bytes) -> None:
    assert "owner" in error(pax((key, b"4294967296")) + header())
    member = one(pax((key, b"4294967295")) + header())
    assert 4294967295 in (member.uid, member.gid)
    assert "owner -1:0 is out of range" in error(header(uid=binary(-1, 8)))
    assert one(header(gid=binary(3_000_000, 8))).gid == 3_000_000


def test_modes_lose_their_type_bits() -> None:
    assert one(header(mode=b"0104755\0")).mode == 0o4755


def test_times_of_records_and_base_256() -> None:
    member = one(pax((b"mtime", b"1700000000.25"), (b"atime", b"nonsense"), (b"ctime", b"1")) + header())
    assert (member.mtime_sec, member.mtime_nsec) == (1700000000, 250_000_000)
    assert one(header(mtime=binary(1 << 40, 12))).mtime_sec == 1 << 40


@pytest.mark.parametrize("kind", [b"3", b"4"])
def test_devices(kind: bytes) -> None:
    member = one(header(b"dev", kind, major=octal(8, 8), minor=octal(1, 8)))
    assert (member.type, member.devmajor, member.devminor) == (MemberType(kind), 8, 1)
    member = one(pax((b"SCHILY.devmajor", b"259"), (b"SCHILY.devminor", b"70000")) + header(b"dev", kind))
    assert (member.devmajor, member.devminor) == (259, 70000)
    assert one(header(b"dev", kind, magic=V7, major=b"anything", minor=b"anything")).devmajor == 0
    assert "device number 4096:0 is out of range" in error(header(b"dev", kind, major=octal(4096, 8)))
    assert "the device number is damaged" in error(header(b"dev", kind, major=b"999\0\0\0\0\0"))
    assert one(header(b"no-device", b"0", major=b"999\0\0\0\0\0")).devmajor == 0


@pytest.mark.parametrize("name", [b"plain", b"caf\xc3\xa9 \xff\xff"])
def test_signed_and_unsigned_checksums_hold(name: bytes) -> None:
    for signed in (False, True):
        assert one(header(name, signed=signed)).name == name


@pytest.mark.parametrize("spelling", [b"%06o\0 ", b"%07o\0", b"%6o\0 ", b" %06o\0", b"%06o  "])
def test_checksums_may_be_spelt_in_several_ways(spelling: bytes) -> None:
    total = int(header()[148:154], 8)
    assert one(header(checksum=(spelling % total).ljust(8))).name == b"f"


@pytest.mark.parametrize("checksum", [b"000000\0 ", b"9999999\0", b"\0" * 8, b"-001234\0"])
def test_a_wrong_checksum_is_an_error(checksum: bytes) -> None:
    assert error(header(checksum=checksum)) == "offset 0x0/0: not a tar archive: the header's checksum does not hold"


@pytest.mark.parametrize("fill", [b"\0", b"\x7f", b"\x80", b"\xff"])
def test_the_fast_sum_is_exact(fill: bytes) -> None:
    block = fill * 512
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    assert byte_sum(block[:256], block[256:], block[148:156]) == total


# Extended headers


@pytest.mark.parametrize(
    "data",
    [
        b"no length\n",
        b"x path=a\n",
        b"9path=abc\n",
        b"99 path=a\n",
        b"11 path=abc",
        b"11 path=abcd",
        b"8 noval\n",
        b"5 =a\n",
        b"0 a=b\n",
        b"4 a=\n",
        b"10 path=ab\n\0\0",
        b"+9 path=a\n",
        b" 9 path=a\n",
        b"00000000000009 path=a\n",
        b"5 \n\n\n",
    ],
)
def test_damaged_records_are_errors(data: bytes) -> None:
    assert "a PAX record at byte" in error(raw_pax(data) + header())


def test_damaged_global_records_are_errors_too() -> None:
    assert "a PAX record at byte 0" in error(raw_pax(b"nonsense\n", b"g") + header())


def test_the_last_of_equal_records_holds() -> None:
    assert one(pax((b"path", b"first"), (b"path", b"second")) + header()).name == b"second"


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size", b"mtime", b"SCHILY.devmajor"])
@pytest.mark.parametrize("value", [b"x", b"0x10", b"1" * 30, b"\0", b"9" * 19 + b"9"])
def test_numbers_of_records_are_checked(key: bytes, value: bytes) -> None:
    assert f"PAX record {key.decode()} is not a valid number" in error(pax((key, value)) + header())


@pytest.mark.parametrize("kind", [b"x", b"L", b"K"])
def test_two_extended_headers_of_a_kind_are_an_error(kind: bytes) -> None:
    extension = pax((b"a", b"b")) if kind == b"x" else gnu_long(kind, b"name")
    assert "for one member" in error(extension + extension + header(b"f"))
    assert len(read(extension + header(b"f") + extension + header(b"g") + END)) == 2


@pytest.mark.parametrize("extension", [pax((b"a", b"b")), gnu_long(b"L", b"name")])
def test_an_extended_header_needs_its_member(extension: bytes) -> None:
    for data in (extension, extension + bytes(512), header() + extension):
        with pytest.raises(TarError, match="an extended header without a member"):
            read(data)
    assert "an extended header without a member" in error(extension)
    assert "between an extended header and its member" in error(extension + pax((b"a", b"b"), kind=b"g") + header())


def test_a_global_header_may_stand_alone_or_repeat() -> None:
    some = pax((b"comment", b"x"), (b"atime", b"5"), kind=b"g")
    assert read(some + END) == []
    data = header(b"a") + some + some + pax((b"path", b"c")) + header(b"b")
    assert [(member.name, member.offset) for member, _ in read(data + END)] == [(b"a", 0), (b"c", 512 + 4 * 512)]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_are_limited_and_whole(kind: bytes) -> None:
    assert "bytes, allowed are 1048576" in error(header(kind=kind, size=(1 << 20) + 1))
    assert "bytes, allowed are 1048576" in error(header(kind=kind, size=binary(1 << 60, 12)))
    with pytest.raises(TarError, match="the archive ends inside a "):
        read(header(kind=kind, size=600) + bytes(600))
    assert "allowed are 5" in error(header(kind=kind, size=6), limits=TarLimits(extension=5))


# Extended attributes


def test_attributes_of_all_writers() -> None:
    value = bytes(range(256))
    encoded = base64.b64encode(value).rstrip(b"=")
    member = one(
        pax(
            (b"SCHILY.xattr.user.a=b", b"only up to the first equals sign"),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.user.both", value),
            (b"LIBARCHIVE.xattr.user.both", encoded),
            (b"LIBARCHIVE.xattr.user.%20sp%61ce", encoded),
            (b"LIBARCHIVE.xattr.user.pad", b"YQ=="),
            (b"RHT.security.selinux", b"system_u:object_r:bin_t:s0"),
            (b"SCHILY.acl.access", b"user::rwx"),
        )
        + header()
    )
    assert member.xattrs == {
        b"user.a": b"b=only up to the first equals sign",
        b"user.empty": b"",
        b"user.both": value,
        b"user. space": value,
        b"user.pad": b"a",
        b"security.selinux": b"system_u:object_r:bin_t:s0\0",
    }


@pytest.mark.parametrize(
    "records",
    [
        ((b"RHT.security.selinux", b"b\0"), (b"SCHILY.xattr.security.selinux", b"a\0")),
        ((b"SCHILY.xattr.user.x", b"abc"), (b"LIBARCHIVE.xattr.user.x", b"AAAA")),
        ((b"LIBARCHIVE.xattr.user.%61", b"AAAA"), (b"LIBARCHIVE.xattr.user.a", b"AAAB")),
        ((b"SCHILY.xattr.user.a%3Db", b"1"), (b"LIBARCHIVE.xattr.user.a%3db", b"AAAA")),
    ],
)
def test_two_records_of_an_attribute_must_agree(records: tuple[tuple[bytes, bytes], ...]) -> None:
    assert "disagree" in error(pax(*records) + header())


def test_the_label_of_a_file_in_two_records() -> None:
    member = one(pax((b"RHT.security.selinux", b"a"), (b"SCHILY.xattr.security.selinux", b"a\0")) + header())
    assert member.xattrs == {b"security.selinux": b"a\0"}


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([(b"SCHILY.xattr.user.a%3Db%25%41%3d", b"v")], b"user.a=b%%41%3d"),  # GNU tar encodes only these two
        ([(b"SCHILY.xattr.user.a%3Db%20", b"v"), (b"LIBARCHIVE.xattr.user.a%3Db%20", b"dg")], b"user.a=b "),
        ([(b"SCHILY.xattr.user.a%3Db", b"v"), (b"LIBARCHIVE.xattr.user.a%253Db", b"dg")], b"user.a%3Db"),
    ],
    ids=["GNU tar", "libarchive 3.6", "libarchive that encodes one only"],
)
def test_attribute_names_are_decoded_as_their_writer_means_them(
    records: list[tuple[bytes, bytes]], name: bytes
) -> None:
    warnings: list[TarWarning] = []
    ((member, _),) = read(pax(*records) + header() + END, warnings=warnings)
    assert member.xattrs == {name: b"v"}
    assert len(warnings) == (name != b"user.a%3Db")


def test_two_attributes_cannot_become_one() -> None:
    records = [(b"SCHILY.xattr.user.a%3Db", b"v"), (b"SCHILY.xattr.user.a%253Db", b"w")]
    for ordered in (records, records[::-1]):
        assert one(pax(*ordered) + header()).xattrs == {b"user.a=b": b"v", b"user.a%3Db": b"w"}
    same = (b"LIBARCHIVE.xattr.user.%61%3Db", b"dg")
    assert one(pax(records[0], same) + header()).xattrs == {b"user.a=b": b"v"}


SPARSE = [(b"GNU.sparse.map", b"0,3"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.size", b"9")]
HARMLESS = ["comment", "atime", "ctime", "charset", "hdrcharset", "uname", "gname", "GNU.volume.label", "made.up"]
HARMLESS += ["SCHILY.release", "SCHILY.fflags", "SCHILY.dev", "MSWINDOWS.rawsd", "LIBARCHIVE.creationtime"]
GLOBALS = ["path", "linkpath", "size", "uid", "gid", "mtime", "SCHILY.xattr.user.a", "LIBARCHIVE.xattr.user.a"]
GLOBALS += ["RHT.security.selinux", "SCHILY.acl.access", "SCHILY.acl.default", "SCHILY.acl.ace", "SCHILY.realsize"]
GLOBALS += ["SCHILY.devmajor", "SCHILY.filetype", "SUN.holesdata", "GNU.sparse.major", "GNU.sparse.name"]
GLOBALS += ["GNU.sparse.size", "GNU.sparse.map", "GNU.volume.offset", "GNU.volume.size"]


@pytest.mark.parametrize("key", GLOBALS)
@pytest.mark.parametrize("value", [b"1", b""])
def test_global_records_that_change_members_are_errors(key: str, value: bytes) -> None:
    data = header(b"a") + pax((b"comment", b"x"), (key.encode(), value), kind=b"g") + header(b"b")
    assert f"offset 0x200/512: PAX record {key} in a global header" in error(data)


@pytest.mark.parametrize(
    "key",
    HARMLESS,
)
def test_global_records_that_change_nothing_are_accepted(key: str) -> None:
    assert one(pax((key.encode(), b"x"), kind=b"g") + header(b"b")).name == b"b"


@pytest.mark.parametrize(
    "records",
    [
        [(b"SUN.holesdata", b" 0 3")],
        [(b"SCHILY.filetype", b"sparse")],
        [(b"GNU.volume.offset", b"512"), (b"GNU.volume.size", b"3"), (b"GNU.volume.filename", b"f")],
        [(b"SCHILY.realsize", b"9")],
        [*SPARSE, (b"GNU.sparse.realsize", b"10")],
        [*SPARSE, (b"SCHILY.realsize", b"3")],
    ],
)
def test_sizes_that_only_some_readers_see_are_errors(records: list[tuple[bytes, bytes]]) -> None:
    assert "offset" in error(pax(*records) + file(b"f", b"abc"))
    assert one(pax((b"SCHILY.realsize", b"3"), (b"SCHILY.filetype", b"regular")) + file(b"f", b"abc")).size == 3


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (header(b"f", magic=V7, prefix=b"p"), "some tools see another name or size"),
        (header(b"f", magic=GNU, prefix=b"p"), "some tools see another name or size"),
        (header(b"f", prefix=b"p" * 140, tail=b"tar\0"), "some tools see another name or size"),
        (gnu_long(b"L", b"g") + header(b"f"), "some tools ignore it"),
        (header(b"f/"), "some tools make a directory of it"),
        (header(b"f/", b"1", link=b"t"), "some tools make a directory of it"),
        (pax((b"path", b"f/")) + header(b"f"), "some tools make a directory of it"),
        (pax((b"SCHILY.devmajor", b"9")) + header(b"f", b"3"), "some tools do not read it"),
        (pax((b"SCHILY.xattr.user.%3D", b"9")) + header(b"f", b"3"), "some tools do not decode it"),
    ],
)
def test_what_other_readers_see_differently_is_said(data: bytes, what: str) -> None:
    warnings: list[TarWarning] = []
    read(data + END, warnings=warnings)
    assert [warning.what.endswith(what) for warning in warnings] == [True]


def test_usual_names_and_numbers_are_no_reason_for_warnings() -> None:
    warnings: list[TarWarning] = []
    blocks = [
        header(b"f", prefix=b"p"),
        header(b"g", prefix=b"p" * 100, tail=b"tar\0"),
        header(b"h", magic=GNU, prefix=octal(5, 12) + octal(6, 12)),
        header(b"d/", b"5"),
        header(b"o/", b"\0"),
        pax((b"SCHILY.devmajor", b"1")) + header(b"f", b"3", major=octal(1, 8)),
    ]
    read(b"".join(blocks) + END, warnings=warnings)
    assert warnings == []


@pytest.mark.parametrize(
    ("records", "what"),
    [
        ((b"SCHILY.xattr.", b"x"), "name has 0 bytes, allowed are 1 to 255"),
        ((b"SCHILY.xattr.user." + b"n" * 251, b"x"), "name has 256 bytes"),
        ((b"SCHILY.xattr.user.big", bytes(65537)), "user.big has 65537 bytes, allowed are 65536"),
        ((b"LIBARCHIVE.xattr.user.x", b"not base64!"), "LIBARCHIVE.xattr.user.x is not base64"),
        ((b"LIBARCHIVE.xattr.user.x", b"AAAAA"), "is not base64"),
        ((b"LIBARCHIVE.xattr.user.%00x", b"AAAA"), r"name user.\x00x holds a NUL"),
    ],
)
def test_attributes_that_cannot_be(records: tuple[bytes, bytes], what: str) -> None:
    assert what in error(pax(records) + header())


def test_members_without_attributes_share_an_empty_mapping() -> None:
    members = [member for member, _ in read(header(b"a") + pax((b"uid", b"1")) + header(b"b") + END)]
    assert members[0].xattrs is members[1].xattrs
    assert not members[0].xattrs


# Types and contents


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("how", ["header", "record"])
def test_members_that_are_no_files_have_no_contents(kind: bytes, how: str) -> None:
    special = (
        header(b"s", kind, 700, link=b"t")
        if how == "header"
        else pax((b"size", b"700")) + header(b"s", kind, link=b"t")
    )
    warnings: list[TarWarning] = []
    members = read(special + file(b"after", b"data") + END, warnings=warnings)
    assert [(member.type, data) for member, data in members] == [(MemberType(kind), b""), (MemberType.FILE, b"data")]
    assert members[0][0].size == 0
    assert "states a size of 700" in warnings[0].what


def test_old_directories_have_no_contents_either() -> None:
    members = read(header(b"d/", b"\0", 512, magic=V7) + file(b"d/f", b"x") + END)
    assert [member.type for member, _ in members] == [MemberType.DIR, MemberType.FILE]
    assert one(pax((b"path", b"now/a/dir/")) + header(b"f", b"\0")).type is MemberType.DIR
    assert one(header(b"a/b/", b"0")).type is MemberType.FILE


@pytest.mark.parametrize(("kind", "meaning"), [(b"V", "GNU volume label"), (b"X", "Solaris"), (b"\xff", r"'\xff'")])
def test_unknown_types(kind: bytes, meaning: str) -> None:
    assert meaning in error(header(b"v", kind))
    data = (
        pax((b"size", b"513"))
        + header(b"v", kind, 0)
        + bytes(1024)
        + header(b"v", kind, 4)
        + padded(b"data")
        + file(b"f", b"x")
    )
    warnings: list[TarWarning] = []
    members = read(data + END, skip_unknown=True, warnings=warnings)
    assert [(member.name, content) for member, content in members] == [(b"f", b"x")]
    assert [warning.what.endswith(": skipped") for warning in warnings] == [True, True]


def test_a_record_of_size_may_be_smaller_than_the_header() -> None:
    data = pax((b"size", b"3")) + header(b"f", size=2000) + padded(b"abc") + header(b"g")
    assert [(member.name, content) for member, content in read(data + END)] == [(b"f", b"abc"), (b"g", b"")]


def test_contents_are_skipped_when_nobody_reads_them() -> None:
    data = file(b"a", bytes(700_000)) + file(b"b", b"B" * 513) + header(b"c") + END
    source = io.BytesIO(data)
    reader = TarReader(source.read)
    assert [member.name for member in reader] == [b"a", b"b", b"c"]
    assert source.read() == b""
    assert reader.offset == len(data)


def test_contents_can_be_left_half_way() -> None:
    reader = TarReader(io.BytesIO(file(b"a", b"A" * 700_000) + file(b"b", b"B") + END).read)
    member = next(reader)
    chunk = next(iter(reader.iter_content(member)))
    assert bytes(chunk) == b"A" * len(chunk)
    member = next(reader)
    assert reader.read_content(member) == b"B"


def test_contents_are_read_once_and_in_their_turn() -> None:
    reader = TarReader(io.BytesIO(file(b"a", b"A") + file(b"b", b"B") + END).read)
    first = next(reader)
    assert reader.read_content(first) == b"A"
    for again in (reader.iter_content, reader.read_content):
        with pytest.raises(UsageError, match="read once"):
            again(first)
    second = next(reader)
    with pytest.raises(UsageError):
        reader.iter_content(first)
    assert list(reader.iter_content(second)) == [b"B"]


def test_reading_at_once_is_limited_and_crosses_buffers() -> None:
    data = file(b"a", b"A" * 300_000) + file(b"b", b"B" * 300_000) + END
    reader = TarReader(io.BytesIO(data).read)
    assert reader.read_content(next(reader)) == b"A" * 300_000
    with pytest.raises(TarError, match="contents have 300000 bytes, allowed are 299999"):
        reader.read_content(next(reader), 299_999)


def test_chunks_are_bounded() -> None:
    reader = TarReader(io.BytesIO(file(b"a", bytes(5 << 20)) + END).read)
    sizes = [len(chunk) for chunk in reader.iter_content(next(reader))]
    assert sum(sizes) == 5 << 20
    assert max(sizes) <= 1 << 18
    assert min(sizes) > 0


def test_memory_does_not_grow_with_the_file() -> None:
    block = bytes(1 << 16)
    pieces = iter([header(b"big", size=64 << 20)] + [block] * 1024 + [END])
    reader = TarReader(lambda count: next(pieces, b""))
    tracemalloc.start()
    try:
        total = sum(len(chunk) for member in reader for chunk in reader.iter_content(member))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 1 << 20


# The end


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("left", [0, 1, 511, 512, 699])
def test_cut_contents_are_an_error_however_they_are_read(left: int, drained: bool) -> None:
    reader = TarReader(io.BytesIO(header(b"f", size=700) + bytes(left)).read)
    member = next(reader)
    with pytest.raises(TarError, match=r"offset 0x0/0 \(member f\): the archive ends inside the contents") as raised:
        b"".join(reader.iter_content(member)) if drained else next(reader)
    with pytest.raises(TarError) as again:
        next(reader)
    assert again.value is raised.value
    with pytest.raises(TarError):
        reader.iter_content(member)


@pytest.mark.parametrize("left", [701, 1023])
def test_cut_padding_is_an_error(left: int) -> None:
    with pytest.raises(TarError, match="ends inside the padding of the contents"):
        read(header(b"f", size=700) + bytes(left))


def test_an_end_right_behind_the_contents_is_a_warning() -> None:
    warnings: list[TarWarning] = []
    [member] = read(header(b"f", size=700) + bytes(700), warnings=warnings)
    assert member[0].size == 700
    assert [str(warning.what) for warning in warnings] == ["the archive ends without end blocks"]


def test_an_empty_stream_is_no_archive() -> None:
    with pytest.raises(TarError, match="offset 0x0/0: the archive is empty"):
        read(b"")
    assert read(bytes(1024)) == []


@pytest.mark.parametrize("data", [header(), header(b"f", size=700) + bytes(700)], ids=["header", "contents"])
def test_end_blocks_can_be_required(data: bytes) -> None:
    reader = TarReader(io.BytesIO(data).read, require_end=True)
    assert next(reader).mode
    with pytest.raises(TarError, match="ends without end blocks, it may be truncated") as caught:
        next(reader)
    assert "1024 zero bytes" in (caught.value.hint or "")
    assert len(list(TarReader(io.BytesIO(header() + bytes(1024)).read, require_end=True))) == 1


def test_one_zero_block_at_the_very_end_is_a_warning() -> None:
    warnings: list[TarWarning] = []
    assert len(read(header() + bytes(512), warnings=warnings)) == 1
    assert [warning.what for warning in warnings] == ["the archive ends with one zero block instead of two"]
    with pytest.raises(TarError, match="inside its end blocks"):
        read(header() + bytes(512) + bytes(100))


@pytest.mark.parametrize("size", [0, 1, 512, 10_000, 600_000])
def test_zeros_behind_the_end_are_no_warning_and_anything_else_is(size: int) -> None:
    warnings: list[TarWarning] = []
    read(header() + END + bytes(size), warnings=warnings)
    assert warnings == []
    read(header() + END + bytes(size) + b"x", warnings=warnings)
    assert [warning.what for warning in warnings] == ["data after the end of the archive is ignored"]


def test_the_end_stays_the_end() -> None:
    reader = TarReader(io.BytesIO(header() + END).read)
    assert len(list(reader)) == 1
    assert list(reader) == []


def test_members_are_limited() -> None:
    assert "the archive has more than 2 members" in error(header() * 3, limits=TarLimits(members=2))
    assert len(read(header() * 2 + END, limits=TarLimits(members=2))) == 2


# Sparse files


def old_sparse(
    entries: list[tuple[int, int]], real: int, data: bytes, *, blocks: int | None = None, **fields: bytes
) -> bytes:
    """An old GNU sparse file: four entries in the header, 21 in each block that follows."""
    pairs = [octal(offset, 12) + octal(length, 12) for offset, length in entries]
    first, rest = b"".join(pairs[:4]), pairs[4:]
    count = -(-len(rest) // 21) if blocks is None else blocks
    area = bytes(41) + first.ljust(96, b"\0") + bytes([count > 0]) + octal(real, 12)
    magic = fields.get("magic", GNU)
    block = header(b"sparse", b"S", len(data), magic=magic, prefix=area)
    block = block[:345] + area + block[345 + len(area) :]
    total = sum(block[:148]) + 256 + sum(block[156:])
    block = block[:148] + b"%06o\0 " % total + block[156:]
    for number in range(count):
        chunk = b"".join(rest[number * 21 : number * 21 + 21])
        block += chunk.ljust(504, b"\0") + bytes([number + 1 < count]) + bytes(7)
    return block + padded(data)


def test_old_sparse_files_with_extension_blocks() -> None:
    entries = [(number * 1000, 10) for number in range(60)] + [(100_000, 0)]
    data = bytes(range(1, 11)) * 60
    ((member, content), (after, _)) = read(old_sparse(entries, 100_000, data) + header(b"after") + END)
    expected = bytearray(100_000)
    for offset, _ in entries[:60]:
        expected[offset : offset + 10] = bytes(range(1, 11))
    assert content == bytes(expected)
    assert (member.type, member.size, after.name) == (MemberType.FILE, 100_000, b"after")
    assert member.sparse is not None
    assert len(member.sparse.extents) == 61


def pax_sparse(
    version: tuple[bytes, bytes] | None, data: bytes, *records: tuple[bytes, bytes], kind: bytes = b"0"
) -> bytes:
    """A sparse file of a PAX version; the number of regions is counted unless it is among *records*."""
    some: tuple[tuple[bytes, bytes], ...] = ()
    if version:
        some = ((b"GNU.sparse.major", version[0]), (b"GNU.sparse.minor", version[1]))
    keys = [key for key, _ in records]
    if b"GNU.sparse.numblocks" not in keys:
        text = dict(records).get(b"GNU.sparse.map")
        count = len(text.split(b",")) // 2 if text is not None else keys.count(b"GNU.sparse.offset")
        some += ((b"GNU.sparse.numblocks", b"%d" % count),)
    return pax(*some, *records) + header(b"GNUSparseFile.0/f", kind, len(data), link=b"t") + padded(data)


SIZE = (b"GNU.sparse.size", b"20")
REAL = (b"GNU.sparse.realsize", b"20")
MAP = (b"GNU.sparse.map", b"2,3,10,1")
NAME = (b"GNU.sparse.name", b"real/name")
EXPANDED = b"\0\0abc\0\0\0\0\0d" + bytes(9)


def data_map(text: bytes, data: bytes = b"abcd") -> bytes:
    return padded(text) + data


@pytest.mark.parametrize(
    "archive",
    [
        pax_sparse(None, b"abcd", SIZE, MAP, NAME),
        pax_sparse((b"0", b"1"), b"abcd", SIZE, MAP, NAME, (b"GNU.sparse.numblocks", b"2")),
        pax_sparse(
            (b"0", b"0"), b"abcd", SIZE, NAME,
            (b"GNU.sparse.offset", b"2"), (b"GNU.sparse.numbytes", b"3"),
            (b"GNU.sparse.offset", b"10"), (b"GNU.sparse.numbytes", b"1"),
        ),
        pax_sparse((b"1", b"0"), data_map(b"2\n2\n3\n10\n1\n"), REAL, NAME),
    ],
    ids=["0.1 without version", "0.1", "0.0", "1.0"],
)  # fmt: skip
def test_pax_sparse_files(archive: bytes) -> None:
    ((member, content), (after, _)) = read(archive + header(b"after") + END)
    assert (member.name, member.size, content) == (b"real/name", 20, EXPANDED)
    assert member.sparse == (((2, 3), (10, 1)), 20)
    assert after.name == b"after"
    reader = TarReader(io.BytesIO(archive + header(b"after") + END).read)
    assert reader.read_content(next(reader)) == EXPANDED
    reader = TarReader(io.BytesIO(archive + header(b"after") + END).read)
    assert [member.name for member in reader] == [b"real/name", b"after"]


def test_sparse_files_without_data() -> None:
    assert read(pax_sparse(None, b"", SIZE, (b"GNU.sparse.map", b"")) + END)[0][1] == bytes(20)
    assert read(pax_sparse((b"1", b"0"), data_map(b"0\n", b""), REAL) + END)[0][1] == bytes(20)
    assert read(old_sparse([], 20, b"") + END)[0][1] == bytes(20)
    assert read(pax_sparse(None, b"", (b"GNU.sparse.size", b"0"), (b"GNU.sparse.map", b"0,0")) + END)[0][1] == b""


def test_a_large_map_before_the_data_is_read_in_linear_time() -> None:
    count = 50_000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (number * 2) for number in range(count))
    archive = pax_sparse((b"1", b"0"), data_map(text, b"x" * count), (b"GNU.sparse.realsize", b"%d" % (2 * count)))
    ((_, content),) = read(archive + END)
    assert content == b"x\0" * count


@pytest.mark.parametrize(
    ("archive", "what"),
    [
        (pax_sparse((b"2", b"0"), b"abcd", REAL), "unknown version of the GNU sparse format"),
        (pax_sparse((b"1", b""), b"abcd", REAL), "unknown version"),
        (pax((b"GNU.sparse.name", b"n")) + header(), "without a version or a map"),
        (pax(SIZE, MAP) + file(b"f", b"abcd"), "is damaged"),
        (pax_sparse(None, b"abcd", REAL), "covers 0 bytes"),
        (pax_sparse(None, b"abcd", MAP), "without the file's size"),
        (pax_sparse(None, b"abcd", MAP, (b"GNU.sparse.size", b"x")), "number of the sparse map is damaged"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.map", b"2,3,10")), "number of entries"),
        (pax_sparse(None, b"abcd", SIZE, MAP, (b"GNU.sparse.numblocks", b"3")), "number of entries"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.map", b"2,x,10,1")), "is damaged"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.map", b"10,1,2,3")), "not in order or leaves the file"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.map", b"2,3,18,3")), "not in order or leaves the file"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.map", b"2,3,4,1")), "not in order or leaves the file"),
        (pax_sparse(None, b"abc", SIZE, MAP), "covers 4 bytes, the archive holds 3"),
        (pax_sparse(None, b"abcde", SIZE, MAP), "covers 4 bytes, the archive holds 5"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.numbytes", b"3")), "do not come in pairs"),
        (pax_sparse(None, b"", SIZE, (b"GNU.sparse.offset", b"3"), (b"GNU.sparse.offset", b"4")), "in pairs"),
        (pax_sparse(None, b"abcd", SIZE, (b"GNU.sparse.offset", b"3")), "number of entries"),
        (
            pax_sparse(None, b"abcd", SIZE, MAP, (b"GNU.sparse.offset", b"2"), (b"GNU.sparse.numbytes", b"3")),
            "two sparse maps",
        ),
        (pax_sparse((b"1", b"0"), data_map(b"2\n2\n3\n10\n1\n")), "without the file's size"),
        (pax_sparse((b"1", b"0"), b"2\n2\n3\n", REAL), "truncated or damaged"),
        (pax_sparse((b"1", b"0"), b"", REAL), "truncated or damaged"),
        (pax_sparse((b"1", b"0"), b"1" * 2000, REAL), "truncated or damaged"),
        (pax_sparse((b"1", b"0"), data_map(b"-1\n"), REAL), "number of the sparse map is damaged"),
        (pax_sparse((b"1", b"0"), data_map(b"999999\n"), REAL), "999999 regions, allowed are 262144"),
        (pax_sparse(None, b"abcd", SIZE, MAP, kind=b"1"), "the hardlink is marked as a sparse file"),
        (pax_sparse(None, b"abcd", SIZE, MAP, kind=b"S"), "sparse in two formats"),
        (pax_sparse(None, b"abcd", SIZE, MAP, (b"GNU.sparse.name", b"a\0b")), "holds a NUL"),
        (pax_sparse(None, b"abcd", SIZE, MAP, (b"GNU.sparse.name", b"n" * 300)), "longer than 255"),
        (pax_sparse(None, b"", (b"GNU.sparse.size", b"%d" % (1 << 62)), (b"GNU.sparse.map", b"")), "bytes of holes"),
        (old_sparse([(0, 4)], 20, b"abcd", magic=USTAR), "without GNU magic"),
        (old_sparse([(0, 4)], 20, b"abcde"), "covers 4 bytes, the archive holds 5"),
        (old_sparse([(0, 4), (2, 1)], 20, b"abcde"), "not in order"),
        (old_sparse([(at, 1) for at in range(30)], 30, bytes(30)).replace(octal(29, 12), b"9" * 12), "is damaged"),
    ],
)  # fmt: skip
def test_damaged_sparse_maps_are_errors(archive: bytes, what: str) -> None:
    assert what in error(archive)


def test_sparse_maps_are_limited_and_whole() -> None:
    many = [(number, 1) for number in range(30)]
    assert "30 regions, allowed are 29" not in error(header(b""))
    assert "regions, allowed are 20" in error(old_sparse(many, 30, bytes(30)), limits=TarLimits(sparse_extents=20))
    with pytest.raises(TarError, match="the archive ends inside a sparse map"):
        read(old_sparse(many, 30, b"")[:700])
    two = pax_sparse(None, b"", SIZE, (b"GNU.sparse.map", b"")) * 2
    assert "sparse files have more than 39 bytes of holes" in error(two, limits=TarLimits(holes=39))
    assert len(read(two + END, limits=TarLimits(holes=40))) == 2


def test_an_endless_chain_of_sparse_blocks_ends() -> None:
    block = bytes(504) + b"\1" + bytes(7)
    data = old_sparse([(0, 1)] * 5, 20, b"")[:1024]
    with pytest.raises(TarError):
        read(data + block * 2000 + END)


# Contents that nobody asks for


class Seekable:
    """A source that can be entered anywhere and counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = self.taken = 0

    def read(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        self.at += len(part)
        self.taken += len(part)
        return part

    def skip(self, count: int) -> bool:
        if self.at + count > len(self.data):
            return False
        self.at += count
        return True


def test_contents_that_nobody_asks_for_are_skipped() -> None:
    large = bytes(range(256)) * 8192
    data = file(b"a", large) + file(b"b", b"small") + file(b"c", large) + file(b"d", b"last") + END
    source = Seekable(data)
    reader = TarReader(source.read, skip=source.skip)
    found = [
        (member.name, reader.offset, reader.read_content(member) if member.size < 100 else b"") for member in reader
    ]
    plain = TarReader(io.BytesIO(data).read)
    assert found == [
        (member.name, plain.offset, plain.read_content(member) if member.size < 100 else b"") for member in plain
    ]
    assert source.taken < len(data) - 2 * len(large) + 4 * (1 << 18)


def test_contents_are_read_in_part_and_the_rest_skipped() -> None:
    large = bytes(range(256)) * 8192
    source = Seekable(file(b"a", large) + file(b"b", b"small") + END)
    reader = TarReader(source.read, skip=source.skip)
    first = next(reader)
    assert next(reader.iter_content(first)) == large[: (1 << 18) - 512]
    assert reader.read_content(next(reader)) == b"small"


def test_a_cut_archive_is_told_although_contents_are_skipped() -> None:
    source = Seekable(file(b"a", bytes(1 << 20))[:-512])
    reader = TarReader(source.read, skip=source.skip)
    next(reader)
    with pytest.raises(TarError, match="the archive ends inside the contents, 512 bytes are missing"):
        next(reader)


def test_members_have_slots_only() -> None:
    assert not hasattr(one(header()), "__dict__")
    assert isinstance(one(header()), Member)
    assert record(b"path", b"x" * 90).startswith(b"99 path=")
