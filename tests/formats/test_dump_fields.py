"""Reading the fields of a dump line: each rule of section 6.2 on numbers, data and extended attributes."""

from __future__ import annotations

import pytest

from cfstools.errors import DumpError
from cfstools.formats.dump.parse import parse_dump
from cfstools.tree import Device, Directory, External, Fifo, HardLink, Inode, RegularFile, Socket, Symlink
from cfstools.verity import Algorithm
from tests.formats.dump_lines import ROOT, line, only, refusal, tree

HEX = b"0123456789abcdef" * 4
DIGEST = bytes.fromhex(HEX.decode())


class TestNumbers:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (b"0", 0),
            (b"7", 7),
            (b"007", 7),
            (b"+7", 7),
            (b"-0", 0),
            (b"\t\v\f\r 7".replace(b" ", b""), 7),
            (b"\t+007", 7),
            (b"-1", 2**64 - 1),
            (b"-18446744073709551615", 1),
            (b"-18446744073709551616", 2**64 - 1),
            (b"9999999999999999999", 9999999999999999999),
            (b"18446744073709551615", 2**64 - 1),
            (b"18446744073709551616", 2**64 - 1),
            (b"0" * 5000 + b"12", 12),
            (b"9" * 5000, 2**64 - 1),
        ],
    )
    def test_as_strtoull(self, field: bytes, value: int) -> None:
        fifo = only(Fifo, line(mode=b"10644", size=field, uid=field, gid=field, nlink=field))
        assert (fifo.size, fifo.uid, fifo.gid, fifo.nlink) == (value, *[value % 2**32] * 3)
        device = only(Device, line(mode=b"20644", rdev=field, mtime=b"0." + field))
        assert (device.rdev, device.mtime_nsec) == (value % 2**32, value % 2**32)

    @pytest.mark.parametrize(
        "field",
        [b"", b"x", b"1x", b"0x10", b"1_0", b"+", b"-", b"--1", b"+-1", b"1\t", b"\t", b"1-", b"\xc2\xb2", b"\\x31",
         b"1e3", b"0" * 100_000 + b"x", b"\t" * 100_000 + b"x"],
    )  # fmt: skip
    @pytest.mark.parametrize("name", ["size", "nlink", "uid", "gid", "rdev", "mtime"])
    def test_anything_else_is_refused(self, name: str, field: bytes) -> None:
        error = refusal(line(**{name: b"0." + field if name == "mtime" else field}))
        assert error.where == f"line 2, field {name.upper()}"
        assert "is not a number in base 10" in error.what
        assert len(error.what) < 300

    def test_the_first_bad_number_is_named(self) -> None:
        bad = dict.fromkeys(["size", "nlink", "uid", "gid", "rdev", "mtime"], b"?")
        for name in list(bad):
            assert refusal(line(**bad)).where == f"line 2, field {name.upper()}"
            del bad[name]

    @pytest.mark.parametrize(
        ("field", "sec", "nsec"),
        [
            (b"5.0", 5, 0),
            (b"1.5", 1, 5),
            (b"1.500000000", 1, 500_000_000),
            (b"0.9999999999", 0, 9999999999 % 2**32),
            (b"-1.0", -1, 0),
            (b"-9223372036854775808.1", -(2**63), 1),
            (b"9223372036854775808.0", -(2**63), 0),
            (b"18446744073709551616.0", -1, 0),
            (b"0.-1", 0, 2**32 - 1),
            (b"+1.+2", 1, 2),
        ],
    )
    def test_times(self, field: bytes, sec: int, nsec: int) -> None:
        made = only(RegularFile, line(mtime=field))
        assert (made.mtime_sec, made.mtime_nsec) == (sec, nsec)

    @pytest.mark.parametrize("field", [b"5", b".5", b"5.", b".", b"1.2.3", b"", b"1,5"])
    def test_bad_times(self, field: bytes) -> None:
        assert refusal(line(mtime=field)).where == "line 2, field MTIME"

    @pytest.mark.parametrize(
        ("uid", "gid", "rdev", "ids"),
        [
            (b"5", b"zz", b"259", (5, 0, 259)),
            (b"5", b"12zz", b"", (5, 0, 0)),
            (b"5", b"7", b"1x", (5, 7, 0)),
            (b"4294967296", b"zz", b"zz", (0, 0, 0)),
        ],
    )
    def test_beside_a_uid_bad_gid_and_rdev_are_zero(
        self, uid: bytes, gid: bytes, rdev: bytes, ids: tuple[int, int, int]
    ) -> None:
        made = line(mode=b"20644", uid=uid, gid=gid, rdev=rdev)
        device = only(Device, made)
        assert (device.uid, device.gid, device.rdev) == ids
        assert refusal(made, strict=True).where in {"line 2, field GID", "line 2, field RDEV"}

    def test_remembered_numbers_are_bounded(self) -> None:
        root = tree(*(line(path=b"/%d" % number, uid=b"%d" % number) for number in range(70_000)))
        assert all(not isinstance(e, HardLink) and e.uid == int(name) for name, e in root.entries.items())


class TestMode:
    @pytest.mark.parametrize(
        ("mode", "kind"),
        [
            (b"100644", RegularFile),
            (b"40755", Directory),
            (b"120777", Symlink),
            (b"20644", Device),
            (b"60644", Device),
            (b"10644", Fifo),
            (b"140644", Socket),
        ],
    )
    def test_types(self, mode: bytes, kind: type[Inode]) -> None:
        made = only(Inode, line(mode=mode, payload=b"x"))
        assert type(made) is kind
        assert made.mode == int(mode, 8)

    @pytest.mark.parametrize(
        "mode", [b"00100644", b"+100644", b"\t100644", b"200100644", b"77777100644", b"40000100644", b"-77777677134"]
    )
    def test_sixteen_bits_are_kept(self, mode: bytes) -> None:
        assert only(RegularFile, line(mode=mode)).mode == 0o100644

    @pytest.mark.parametrize("mode", [b"0", b"644", b"170644", b"30644", b"7" * 30, b"200000644"])
    def test_unknown_types(self, mode: bytes) -> None:
        error = refusal(line(mode=mode))
        assert error.where == "line 2, field MODE"
        assert "no type of file" in error.what

    @pytest.mark.parametrize("mode", [b"", b"100648", b"@", b"@@100644", b"100644x", b"0x1", b"u+rw", b" "])
    def test_bad_modes(self, mode: bytes) -> None:
        assert refusal(line(mode=mode)).where == "line 2, field MODE"


class TestData:
    def test_an_external_file(self) -> None:
        made = only(RegularFile, line(size=b"9", payload=b"ab/c\\x20d", digest=HEX))
        assert isinstance(made.content, External)
        assert (made.size, made.content.payload, made.content.digest) == (9, b"ab/c d", DIGEST)

    @pytest.mark.parametrize("payload", [b"-", b"", b"\\x00abc"])
    def test_without_payload_and_digest(self, payload: bytes) -> None:
        made = only(RegularFile, line(size=b"9", payload=payload))
        assert isinstance(made.content, External)
        assert (made.content.payload, made.content.digest) == (None, None)

    @pytest.mark.parametrize(
        ("payload", "value"), [(b"\\x2d", b"-"), (b"a\\x00b", b"a"), (b"p" * 4095, b"p" * 4095), (b"--", b"--")]
    )
    def test_payloads(self, payload: bytes, value: bytes) -> None:
        made = only(RegularFile, line(size=b"9", payload=payload))
        assert isinstance(made.content, External)
        assert made.content.payload == value

    @pytest.mark.parametrize("mode", [b"100644", b"40755", b"120777", b"10644"])
    def test_payload_is_bounded_for_every_kind(self, mode: bytes) -> None:
        assert refusal(line(mode=mode, payload=b"p" * 4096)).where == "line 2, field PAYLOAD"

    @pytest.mark.parametrize("size", [1, 2**32, 2**43 + 1, 2**53])
    def test_external_sizes(self, size: int) -> None:
        assert only(RegularFile, line(size=b"%d" % size)).size == size

    @pytest.mark.parametrize("size", [2**53 + 1, 2**64 - 2**43, 2**64 - 2**43 + 1, 2**64 - 1])
    def test_enormous_external_sizes(self, size: int) -> None:
        assert refusal(line(size=b"%d" % size)).where == "line 2, field SIZE"
        assert only(Fifo, line(mode=b"10644", size=b"%d" % size)).size == size

    @pytest.mark.parametrize("digest", [HEX, HEX.upper(), HEX + b"00", HEX + b"zz", b"\\x30" + HEX[1:], HEX + b"\\x00"])
    def test_digests(self, digest: bytes) -> None:
        made = only(RegularFile, line(size=b"9", digest=digest))
        assert isinstance(made.content, External)
        assert made.content.digest == DIGEST

    @pytest.mark.parametrize(
        "digest", [b"", HEX[:-1], HEX[:-2], b"z" * 64, b"\xff" * 64, HEX[:32] + b"\\x00" + HEX, b"\\x2d"]
    )
    def test_bad_digests_matter_for_external_files_only(self, digest: bytes) -> None:
        error = refusal(line(size=b"9", digest=digest))
        assert error.where == "line 2, field DIGEST"
        assert "does not begin with 64 hexadecimal digits" in error.what
        assert only(RegularFile, line(size=b"1", content=b"x", digest=digest)).content == b"x"
        assert only(RegularFile, line(digest=digest)).content == b""
        assert only(Symlink, line(mode=b"120777", payload=b"t", digest=digest)).target == b"t"

    @pytest.mark.parametrize("mode", [b"100644", b"40755", b"20644"])
    def test_digest_must_be_readable_for_every_kind(self, mode: bytes) -> None:
        assert refusal(line(mode=mode, digest=b"\\q")).where == "line 2, field DIGEST"

    def test_long_digests(self) -> None:
        text = ROOT + line(size=b"9", digest=HEX * 2)
        made = parse_dump(text, algorithm=Algorithm.SHA512).entries[b"f"]
        assert isinstance(made, RegularFile)
        assert isinstance(made.content, External)
        assert made.content.digest == DIGEST * 2
        with pytest.raises(DumpError, match="128 hexadecimal digits"):
            parse_dump(ROOT + line(size=b"9", digest=HEX), algorithm=Algorithm.SHA512)

    @pytest.mark.parametrize(
        ("content", "value"),
        [(b"x", b"x"), (b"\\x2d", b"-"), (b"\\x00\\n\\\\", b"\0\n\\"), (b"c" * 5000, b"c" * 5000), (b"\xff", b"\xff")],
    )
    def test_inline_content(self, content: bytes, value: bytes) -> None:
        made = only(RegularFile, line(size=b"%d" % len(value), content=content, digest=HEX, payload=b"ignored"))
        assert (made.size, made.content) == (len(value), value)

    @pytest.mark.parametrize("content", [b"", b"-"])
    def test_an_empty_file_has_no_payload(self, content: bytes) -> None:
        assert only(RegularFile, line(content=content, payload=b"ab/cd", digest=HEX)).content == b""

    @pytest.mark.parametrize("mode", [b"100644", b"40755", b"120777", b"20644", b"140644"])
    @pytest.mark.parametrize(("size", "content"), [(b"4", b"abc"), (b"0", b"a"), (b"1", b""), (b"4", b"\\x61")])
    def test_content_has_to_be_as_long_as_size_says(self, mode: bytes, size: bytes, content: bytes) -> None:
        assert refusal(line(mode=mode, size=size, content=content, payload=b"t")).where == "line 2, field CONTENT"

    @pytest.mark.parametrize("mode", [b"100644", b"40755", b"20644", b"140644"])
    def test_content_is_bounded(self, mode: bytes) -> None:
        error = refusal(line(mode=mode, size=b"5001", content=b"c" * 5001))
        assert "at most 5000" in error.what

    def test_content_of_a_symlink_is_not_used(self) -> None:
        made = line(mode=b"120777", size=b"5001", content=b"c" * 5001, payload=b"t")
        assert only(Symlink, made).target == b"t"

    @pytest.mark.parametrize("payload", [b"-", b"", b"\\x00x"])
    def test_a_symlink_needs_a_target(self, payload: bytes) -> None:
        error = refusal(line(mode=b"120777", payload=payload))
        assert error.where == "line 2, field PAYLOAD"
        assert "needs a target" in error.what

    @pytest.mark.parametrize(
        ("payload", "target"), [(b"\\x2d", b"-"), (b"t" * 4095, b"t" * 4095), (b"a\\x20b", b"a b")]
    )
    def test_symlink_targets(self, payload: bytes, target: bytes) -> None:
        assert only(Symlink, line(mode=b"120777", size=b"99", payload=payload)).target == target

    def test_device_numbers(self) -> None:
        assert only(Device, line(mode=b"20644", rdev=b"4294967296")).is_whiteout
        assert only(Device, line(mode=b"60644", rdev=b"1793")).rdev == 1793
        assert only(Fifo, line(mode=b"10644", rdev=b"7", size=b"5")).size == 5
        assert only(Socket, line(mode=b"140644", rdev=b"7", size=b"5")).size == 5


class TestStrict:
    @pytest.mark.parametrize("mode", [b"100644", b"40755", b"120777", b"10644", b"140644"])
    @pytest.mark.parametrize("rdev", [b"1", b"4294967296", b"-1"])
    def test_only_devices_have_a_device_number(self, mode: bytes, rdev: bytes) -> None:
        made = line(mode=mode, rdev=rdev, payload=b"t", size=b"1")
        assert len(tree(made).entries) == 1
        assert refusal(made, strict=True).where == "line 2, field RDEV"
        assert len(tree(line(mode=b"20644", rdev=rdev), strict=True).entries) == 1

    def test_symlink_size(self) -> None:
        assert only(Symlink, line(mode=b"120777", size=b"2", payload=b"tt"), strict=True).target == b"tt"
        assert refusal(line(mode=b"120777", size=b"1", payload=b"tt"), strict=True).where == "line 2, field SIZE"

    def test_symlink_content(self) -> None:
        made = line(mode=b"120777", size=b"2", payload=b"tt", content=b"xx")
        assert refusal(made, strict=True).where == "line 2, field CONTENT"

    def test_hard_links_are_as_free_as_ever(self) -> None:
        link = b"/g x @100644 x x x x x /f x\\q \\"
        assert len(tree(line(), link, strict=True).entries) == 2


class TestXattrs:
    @pytest.mark.parametrize(
        ("text", "pairs"),
        [
            (b"", []),
            (b"user.a=b", [(b"user.a", b"b")]),
            (b"user.a=", [(b"user.a", b"")]),
            (b"user.a=b=c", [(b"user.a", b"b=c")]),
            (b"user.a\\x3d=\\x3d", [(b"user.a=", b"=")]),
            (b"a\\x20b=c\\x20d", [(b"a b", b"c d")]),
            (b"a\\x00b=c\\x00d", [(b"a", b"c\0d")]),
            (b"-=-", [(b"-", b"-")]),
            (b"b=1 a=2", [(b"b", b"1"), (b"a", b"2")]),
            (b"a=1 b=2 a=3", [(b"b", b"2"), (b"a", b"3")]),
            (b"k" * 255 + b"=v", [(b"k" * 255, b"v")]),
            (b"user.a=" + b"v" * 32742, [(b"user.a", b"v" * 32742)]),
        ],
    )
    def test_accepted(self, text: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
        for mode in b"100644", b"40755", b"120777", b"20644":
            assert list(only(Inode, line(mode=mode, payload=b"t", xattrs=text)).xattrs.items()) == pairs

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            (b"user.a", "is not KEY=VALUE"),
            (b" a=b", "is not KEY=VALUE"),
            (b"a=b  c=d", "is not KEY=VALUE"),
            (b"user.a\\x3db", "is not KEY=VALUE"),
            (b"=v", "0 bytes long"),
            (b"\\x00a=v", "0 bytes long"),
            (b"k" * 256 + b"=v", "256 bytes long"),
            (b"user.a=\\", "nothing follows"),
            (b"user\\.a=b", "unknown escape"),
            (b"user.a=" + b"v" * 32743, "no room"),
            (b" ".join(b"user.%d=%b" % (number, b"v" * 4000) for number in range(9)), "no room"),
        ],
    )
    def test_refused(self, text: bytes, complaint: str) -> None:
        error = refusal(line(xattrs=text))
        assert error.where == "line 2, field xattrs"
        assert complaint in error.what

    def test_length_of_their_text(self) -> None:
        text = b"a=1 " * 16383
        assert only(RegularFile, line(xattrs=text + b"a=5")).xattrs == {b"a": b"5"}
        assert "65536 bytes" in refusal(line(xattrs=text + b"a=55")).what
        # The trailing space counts as well.
        assert "65536 bytes" in refusal(line(xattrs=text + b"a=5 ")).what

    def test_equal_texts_share_one_mapping(self) -> None:
        root = tree(line(path=b"/a", xattrs=b"user.a=b"), line(path=b"/b", xattrs=b"user.a=b"))
        a, b = root.entries.values()
        assert isinstance(a, RegularFile)
        assert isinstance(b, RegularFile)
        assert a.xattrs is b.xattrs
