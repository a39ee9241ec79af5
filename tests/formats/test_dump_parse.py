"""Reading dump text: the golden corpus, lines, paths and hard links, and that only one error is ever raised."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfstools.errors import DumpError
from cfstools.formats.dump import parse
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import print_dump
from cfstools.tree import Directory, HardLink, RegularFile
from tests.formats.dump_lines import ROOT, line, only, refusal, tree
from tests.strategies import describe

GOLDEN = Path(__file__).parent.parent / "golden"
ACCEPTED = sorted((GOLDEN / "dumps").iterdir())
REFUSED = sorted((GOLDEN / "reject").iterdir())
HEX = b"0123456789abcdef" * 4


class TestGolden:
    @pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
    def test_accepted(self, path: Path) -> None:
        text = path.read_bytes()
        root = parse_dump(text)
        count = sum(1 for _ in print_dump(root))
        assert count == len(text.removesuffix(b"\n").split(b"\n"))

    @pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
    def test_refused(self, path: Path) -> None:
        text = path.read_bytes()
        with pytest.raises(DumpError) as caught:
            parse_dump(text)
        where = caught.value.where
        if not text:
            assert where is None
            return
        assert where is not None
        # Each has its one mistake in the last line but for three.
        last = {"r02": 1, "r03": 1, "r14": 2, "r39": 2}.get(path.stem[:3], text.count(b"\n"))
        assert where.startswith(f"line {last}")
        if path.stem != "r33-raw-nul":
            assert ", field " in where

    def test_all_are_there(self) -> None:
        assert len(ACCEPTED) == 86
        assert len(REFUSED) == 40


class TestShape:
    def test_final_newline_may_be_missing(self) -> None:
        assert describe(parse_dump(ROOT + line())) == describe(tree(line()))

    def test_strictly_the_final_newline_is_needed(self) -> None:
        with pytest.raises(DumpError, match=r"^line 2: the text does not end with a newline"):
            parse_dump(ROOT + line(), strict=True)

    def test_empty_text_is_refused(self) -> None:
        with pytest.raises(DumpError, match="the text is empty"):
            parse_dump(b"", strict=True)

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_blank_lines_are_refused(self, number: int) -> None:
        lines = [ROOT.strip(), line()]
        lines.insert(number - 1, b"")
        with pytest.raises(DumpError, match=rf"^line {number}, field PATH: the path is empty"):
            parse_dump(b"\n".join(lines) + b"\n")

    @pytest.mark.parametrize("made", [line(path=b"/a\0b"), line(xattrs=b"user.a=\0"), b"\0"])
    def test_raw_nul_is_refused(self, made: bytes) -> None:
        assert str(refusal(made)) == f"line 2: there is a NUL byte at position {made.index(0) + 1}"

    def test_other_raw_bytes_are_taken(self) -> None:
        root = tree(line(path=b"/\xff\t=\r"))
        assert list(root.entries) == [b"\xff\t=\r"]

    def test_carriage_return_belongs_to_the_last_field(self) -> None:
        assert only(RegularFile, line(xattrs=b"user.a=b\r")).xattrs == {b"user.a": b"b\r"}
        assert refusal(line(size=b"1", digest=HEX[:-1] + b"\r")).where == "line 2, field DIGEST"

    @pytest.mark.parametrize("count", [8, 9, 10, 11])
    def test_missing_trailing_fields_are_empty(self, count: int) -> None:
        made = b" ".join(line().split(b" ")[:count])
        assert only(RegularFile, made).content == b""

    @pytest.mark.parametrize("count", range(1, 8))
    def test_numbers_may_not_be_missing(self, count: int) -> None:
        made = b" ".join(line(uid=b"0").split(b" ")[:count])
        names = ["MODE" if count <= 2 else "SIZE", "MODE", "NLINK", "UID", "GID", "RDEV", "MTIME"]
        assert refusal(made).where == f"line 2, field {names[count - 1] if count > 1 else 'MODE'}"

    @pytest.mark.parametrize(
        "made", [line() + b" ", line(xattrs=b"user.a=b "), b" ".join(line().split(b" ")[:9]) + b" "]
    )
    def test_one_trailing_space_is_harmless(self, made: bytes) -> None:
        assert only(RegularFile, made).size == 0

    @pytest.mark.parametrize("made", [line() + b"  ", line(xattrs=b"user.a=b  ")])
    def test_two_are_not(self, made: bytes) -> None:
        assert refusal(made).where == "line 2, field xattrs"

    def test_two_spaces_within_a_line_make_an_empty_field(self) -> None:
        assert refusal(line().replace(b" 100644", b"  100644")).where == "line 2, field MODE"

    def test_lines_longer_than_a_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (GOLDEN / "dumps" / "084-random-120.dump").read_bytes()
        expected = describe(parse_dump(text))
        for size in (1, 7, 100, 4096):
            monkeypatch.setattr(parse, "_PIECE", size)
            assert describe(parse_dump(text)) == expected
            assert describe(parse_dump(text.removesuffix(b"\n"))) == expected

    def test_line_numbers_go_on_from_piece_to_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parse, "_PIECE", 64)
        lines = [line(path=b"/%d" % number) for number in range(50)]
        assert refusal(*lines, line(mode=b"9")).where == "line 52, field MODE"

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_is_taken(self, kind: Callable[[bytes], bytes]) -> None:
        assert describe(parse_dump(kind(ROOT + line()))) == describe(tree(line()))

    @pytest.mark.parametrize("text", [ROOT + line(), ROOT + b"bad"])
    def test_a_memory_map_can_be_closed_after(self, tmp_path: Path, text: bytes) -> None:
        path = tmp_path / "dump"
        path.write_bytes(text)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                parse_dump(mapped)
            except DumpError:
                assert b"bad" in text
            mapped.close()


class TestPath:
    @pytest.mark.parametrize("path", [b"/", b"\\x2f", b"/\\x00a"])
    def test_root(self, path: bytes) -> None:
        assert parse_dump(path + ROOT[1:]).mode == 0o40755

    @pytest.mark.parametrize("path", [b"a", b"//", b"/a", b".", b"\\x2f\\x2f"])
    def test_root_must_be_first(self, path: bytes) -> None:
        with pytest.raises(DumpError, match=r"^line 1, field PATH: the first line must describe the root"):
            parse_dump(path + ROOT[1:])

    @pytest.mark.parametrize("mode", [b"100644", b"120777", b"@40755", b"@100644"])
    def test_root_must_be_a_directory(self, mode: bytes) -> None:
        with pytest.raises(DumpError, match=r"^line 1, field MODE: the root must be a directory"):
            parse_dump(ROOT.replace(b"40755", mode))

    @pytest.mark.parametrize("path", [b"/", b"\\x2f", b"/\\x00"])
    def test_root_comes_once(self, path: bytes) -> None:
        assert "was described before" in refusal(path + ROOT[1:-1]).what

    @pytest.mark.parametrize("path", [b"/d/f", b"d/f", b"//d///f", b"\\x2fd\\x2ff", b"/\\x64/f", b"d//f\\x00/../x"])
    def test_ways_to_write_a_path(self, path: bytes) -> None:
        for _ in "once by a directory just met", "once by one met long ago":
            root = tree(line(path=b"/d", mode=b"40755"), line(path=path))
            directory = root.entries[b"d"]
            assert isinstance(directory, Directory)
            assert list(directory.entries) == [b"f"]

    def test_directories_written_oddly_are_found_plainly(self) -> None:
        root = tree(
            *(line(path=path, mode=b"40755") for path in (b"a", b"//a/b", b"\\x61//b/\\x5cx63", b"/a/b/\\\\x63/d"))
        )
        assert [*describe(root)] == [b"/", b"/a", b"/a/b", b"/a/b/\\x63", b"/a/b/\\x63/d"]

    @pytest.mark.parametrize(
        ("path", "complaint"),
        [
            (b"\\x00", "the path is empty"),
            (b"/.", "cannot be the name"),
            (b"/..", "cannot be the name"),
            (b".", "cannot be the name"),
            (b"/\\x2e", "cannot be the name"),
            (b"/x/f", "'/x' is not a directory"),
            (b"/./f", "'/.' is not a directory"),
            (b"/file/f", "'/file' is not a directory"),
            (b"/link/f", "'/link' is not a directory"),
            (b"/hard/f", "'/hard' is not a directory"),
            (b"//", "ends in a slash"),
            (b"/d/", "ends in a slash"),
            (b"/d\\x2f", "ends in a slash"),
            (b"/new/", "'/new' is not a directory"),
            (b"/" + b"n" * 256, "256 bytes long"),
            (b"/d/" + b"\\x6e" * 256, "256 bytes long"),
            (b"/d", "already"),
            (b"d", "already"),
            (b"/\\x64", "already"),
            (b"/hard", "already"),
            (b"/a\\q", "unknown escape"),
            (b"/a\\", "nothing follows"),
        ],
    )
    def test_bad_paths(self, path: bytes, complaint: str) -> None:
        error = refusal(
            line(path=b"/d", mode=b"40755"),
            line(path=b"/file"),
            line(path=b"/link", mode=b"120777", payload=b"d"),
            line(path=b"/hard", mode=b"@100644", payload=b"/file"),
            line(path=path),
        )
        assert error.where == "line 6, field PATH"
        assert complaint in error.what

    @pytest.mark.parametrize("path", [b"/", b"/x/f", b"/d", b"/.", b"/d/"])
    def test_a_bad_mode_is_named_before_a_bad_place(self, path: bytes) -> None:
        assert refusal(line(path=b"/d", mode=b"40755"), line(path=path, mode=b"9")).where == "line 3, field MODE"

    def test_longest_name(self) -> None:
        assert list(tree(line(path=b"/" + b"\\x6e" * 255)).entries) == [b"n" * 255]

    def test_depth_has_no_limit(self) -> None:
        root = tree(*(line(path=b"/d" * depth, mode=b"40755") for depth in range(1, 600)))
        assert len(list(print_dump(root))) == 600


def link(path: bytes, target: bytes) -> bytes:
    return line(path=path, mode=b"@100644", payload=target)


class TestHardLinks:
    @pytest.mark.parametrize("target", [b"/d/f", b"d/f", b"//d//f/", b"/d/f//", b"\\x2fd/\\x66", b"/d/f\\x00x"])
    def test_ways_to_write_the_target(self, target: bytes) -> None:
        root = tree(line(path=b"/d", mode=b"40755"), line(path=b"/d/f"), link(b"/h", target))
        entry = root.entries[b"h"]
        directory = root.entries[b"d"]
        assert isinstance(entry, HardLink)
        assert isinstance(directory, Directory)
        assert entry.inode is directory.entries[b"f"]

    def test_forward_and_through_other_links(self) -> None:
        root = tree(link(b"/a", b"/b"), link(b"/b", b"/c"), link(b"/c", b"/f"), line(), link(b"/g", b"/a"))
        inode = root.entries[b"f"]
        assert all(
            isinstance(entry, HardLink) and entry.inode is inode for n, entry in root.entries.items() if n != b"f"
        )

    def test_long_chains(self) -> None:
        root = tree(*(link(b"/%d" % number, b"/%d" % (number + 1)) for number in range(5000)), line(path=b"/5000"))
        inode = root.entries[b"5000"]
        assert all(isinstance(entry, HardLink) and entry.inode is inode for entry in list(root.entries.values())[:-1])

    def test_the_kind_of_the_target_counts(self) -> None:
        root = tree(line(mode=b"10600"), link(b"/h", b"/f"))
        assert describe(root)[b"/h"] == ("another name of", b"/f")

    @pytest.mark.parametrize(
        ("mode", "payload", "field", "complaint"),
        [
            (b"@40755", b"/f", "MODE", "a directory cannot be a hard link"),
            (b"@644", b"/f", "MODE", "no type of file"),
            (b"@100644", b"-", "PAYLOAD", "needs the path"),
            (b"@100644", b"\\q", "PAYLOAD", "unknown escape"),
            (b"@100644", b"\\x2d", "PAYLOAD", "'-', does not exist"),
            (b"@100644", b"/zz", "PAYLOAD", "'/zz', does not exist"),
            (b"@100644", b"/zz/f", "PAYLOAD", "does not exist"),
            (b"@100644", b"/f/x", "PAYLOAD", "does not exist"),
            (b"@100644", b"/./f", "PAYLOAD", "does not exist"),
            (b"@100644", b"", "PAYLOAD", "is a directory"),
            (b"@100644", b"/", "PAYLOAD", "is a directory"),
            (b"@100644", b"/d", "PAYLOAD", "'/d', is a directory"),
            (b"@100644", b"/h", "PAYLOAD", "leads back to itself"),
        ],
    )
    def test_refused(self, mode: bytes, payload: bytes, field: str, complaint: str) -> None:
        error = refusal(
            line(path=b"/d", mode=b"40755"),
            line(path=b"/h", mode=mode, payload=payload),
            line(path=b"/f"),
            line(path=b"/z"),
        )
        assert error.where == f"line 3, field {field}"
        assert complaint in error.what

    @pytest.mark.parametrize(
        "links",
        [
            [(b"/a", b"/b"), (b"/b", b"/a")],
            [(b"/a", b"/b"), (b"/b", b"/c"), (b"/c", b"/b")],
            [(b"/c", b"/b"), (b"/b", b"/c"), (b"/a", b"/b")],
            [(b"/a", b"/b"), (b"/b", b"/b")],
        ],
    )
    def test_cycles_end(self, links: list[tuple[bytes, bytes]]) -> None:
        error = refusal(line(), *(link(path, target) for path, target in links))
        assert error.where == "line 3, field PAYLOAD"
        assert "leads back to itself" in error.what

    def test_missing_fields(self) -> None:
        error = refusal(b"/h 0 @100644")
        assert "is a directory" in error.what


SNIPPETS = [
    b"/", b"/a", b"a", b"/d", b"/d/e", b"0", b"1", b"40755", b"100644", b"@100644", b"120777", b"20644", b"0.0", b"-",
    b"\\x2d", b"\\", b"\\n", b"\\x0", b"user.a=b", b"=", b"\0", b"\xff", b"+1", b"99999999999999999999", HEX, b"",
]  # fmt: skip


class TestAnything:
    @given(st.binary(max_size=300), st.booleans())
    def test_bytes(self, data: bytes, strict: bool) -> None:
        self.check(data, strict=strict)
        self.check(ROOT + data, strict=strict)

    @given(st.lists(st.lists(st.sampled_from(SNIPPETS), max_size=14), max_size=4), st.booleans())
    @example([[b"/a", b"0", b"@100644", b"", b"", b"", b"", b"", b"/a"]], True)
    def test_words(self, lines: list[list[bytes]], strict: bool) -> None:
        self.check(ROOT + b"\n".join(b" ".join(words) for words in lines), strict=strict)

    @given(st.sampled_from(ACCEPTED), st.data(), st.booleans())
    def test_damaged_dumps(self, path: Path, data: st.DataObject, strict: bool) -> None:
        text = bytearray(path.read_bytes()[:3000])
        for _ in range(data.draw(st.integers(1, 3))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b" \\-@/=.\0\n01789axu\xff\t"))
        self.check(bytes(text), strict=strict)

    def check(self, data: bytes, *, strict: bool) -> None:
        try:
            root = parse_dump(data, strict=strict)
        except DumpError as error:
            said = str(error)
        else:
            said = "line"
            assert describe(parse_dump(b"".join(print_dump(root)), strict=True)) == describe(root)
        assert said.startswith("line" if data else "the text is empty")
        assert "\n" not in said
