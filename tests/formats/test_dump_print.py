"""Printing dumps: the reference's own texts, first names of hard links, sizes of directories, round trips."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given

from cfstools.errors import TreeError
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import directory_data_size, dump_text, print_dump
from cfstools.tree import Blob, Directory, External, HardLink, Located, Piece, RegularFile, Stamp, Symlink, Unread
from cfstools.verity import Algorithm
from tests.strategies import describe, trees

# What `composefs-info dump` prints for the image of this tree; the root's size is that of its image.
ODD = rb"""/ 4096 40755 3 0 0 0 0.0 - - -
/! 0 20600 1 0 0 259 0.0 - - -
/-a 1 100644 1 0 0 0 0.0 - \x2d -
/a 9 100755 7 1 2 0 -3.500 ab/c\x20d - %b security.selinux=z\x00 user.x\x3d=y\x3d
/b 1 120777 1 0 0 0 0.0 \x2d - -
/d 92 40711 3 0 0 0 0.0 - - -
/d/a 9 @100755 7 1 2 0 -3.500 /a - %b security.selinux=z\x00 user.x\x3d=y\x3d
/d/e\n 40 40755 2 0 0 0 0.0 - - -
/d/e\n/p 0 10600 1 0 0 0 0.0 - - -
/d/space\x20space\t 5 100644 1 0 0 0 0.0 - a\x20b=\x00 -
/d/\xff\\ 0 @10600 1 0 0 0 0.0 /d/e\n/p - -
/empty 0 100644 1 0 0 0 0.0 - - -
/unknown 9 100644 1 0 0 0 0.0 - - -
""" % (b"0123456789abcdef" * 4, b"0123456789abcdef" * 4)


def test_a_dump_of_everything() -> None:
    root = parse_dump(ODD, strict=True)
    assert b"".join(print_dump(root)) == ODD
    assert all(text.endswith(b"\n") and text.count(b"\n") == 1 for text in print_dump(root))


@given(trees())
def test_what_is_printed_is_read_back(root: Directory) -> None:
    text = b"".join(print_dump(root))
    again = parse_dump(text, strict=True)
    assert describe(again) == describe(root)
    assert b"".join(print_dump(again)) == text


@given(trees(algorithm=Algorithm.SHA512))
def test_long_digests(root: Directory) -> None:
    text = b"".join(print_dump(root))
    assert describe(parse_dump(text, algorithm=Algorithm.SHA512)) == describe(root)


def test_lines_come_depth_first_in_byte_order() -> None:
    lines = [b"/z", b"/a", b"/a/z", b"/a/b", b"/a-", b"/a/b/c", b"/-"]
    text = b"".join(b"%b 0 40755 1 0 0 0 0.0 - - -\n" % path for path in [b"/", *lines])
    paths = [printed.split(b" ")[0] for printed in print_dump(parse_dump(text))]
    assert paths == [b"/", b"/-", b"/a", b"/a/b", b"/a/b/c", b"/a/z", b"/a-", b"/z"]


def test_the_first_name_is_described_even_if_it_is_a_link() -> None:
    inode = Symlink(mode=0o120777, target=b"t", nlink=5)
    root = Directory(mode=0o40755, entries={b"z": inode, b"m": HardLink(inode), b"a b": HardLink(inode)})
    assert [printed.split(b" ", 1) for printed in print_dump(root)][1:] == [
        [b"/a\\x20b", b"1 120777 5 0 0 0 0.0 t - -\n"],
        [b"/m", b"1 @120777 5 0 0 0 0.0 /a\\x20b - -\n"],
        [b"/z", b"1 @120777 5 0 0 0 0.0 /a\\x20b - -\n"],
    ]
    again = parse_dump(b"".join(print_dump(root)))
    assert describe(again, primaries=True)[b"/a b"][-1] == "primary"
    assert describe(again, primaries=True)[b"/z"][-1] == "link"
    assert describe(root, primaries=True)[b"/z"][-1] == "primary"


def test_xattrs_keep_their_order() -> None:
    inode = RegularFile(mode=0o100644, size=0, content=b"", xattrs={b"z": b"1", b"a": b"2", b"=": b"="})
    *_, text = print_dump(Directory(mode=0o40755, entries={b"f": inode}))
    assert text == b"/f 0 100644 1 0 0 0 0.0 - - - z=1 a=2 \\x3d=\\x3d\n"


def test_many_different_xattrs() -> None:
    root = Directory(mode=0o40755)
    for number in range(3000):
        xattrs = {b"user.n": b"%d" % number}
        root.entries[b"%04d" % number] = RegularFile(mode=0o100644, size=0, content=b"", xattrs=xattrs)
    for number, text in enumerate(print_dump(root), -1):
        assert number < 0 or text.endswith(b" user.n=%d\n" % number)


def test_contents_not_read_cannot_be_printed() -> None:
    unread = Unread(b"f", Stamp(1, 2, 3, 4, 5))
    root = Directory(mode=0o40755, entries={b"a b": RegularFile(mode=0o100644, size=3, content=unread)})
    with pytest.raises(TreeError, match=r"^/a.x20b: the contents were not read yet"):
        list(print_dump(root))


def test_located_contents_cannot_be_printed() -> None:
    """Native code asks Python for the line, and both ways say what and where."""
    located = Located([Piece(3, Blob(1, 512, None, b"blobs/tar"), 9)])
    root = Directory(mode=0o40755, entries={b"a b": RegularFile(mode=0o100644, size=3, content=located)})
    for text in (print_dump, dump_text):
        with pytest.raises(TreeError, match=r"^/a.x20b: the contents lie in pieces of blobs/tar, which a dump text"):
            list(text(root))


@pytest.mark.parametrize("payload", [None, b""])
def test_no_payload_is_a_dash(payload: bytes | None) -> None:
    content = External(None, payload)
    root = Directory(mode=0o40755, entries={b"f": RegularFile(mode=0o100644, size=3, content=content)})
    assert list(print_dump(root))[1] == b"/f 3 100644 1 0 0 0 0.0 - - -\n"


class TestDirectorySizes:
    def directory(self, *names: bytes) -> Directory:
        return Directory(
            mode=stat.S_IFDIR | 0o755, entries={name: Directory(mode=stat.S_IFDIR | 0o755) for name in names}
        )

    def test_small(self) -> None:
        assert directory_data_size(self.directory()) == 27
        assert directory_data_size(self.directory(b"abc")) == 27 + 15

    def test_the_root_has_hiding_names(self) -> None:
        assert directory_data_size(self.directory(), is_root=True) == 4096
        assert directory_data_size(self.directory(b"00", b"ff"), is_root=True) == 4096
        # 3611 bytes with the 256 names; 485 more fill the block, and what comes then begins another.
        filling = self.directory(b"x" * 255, b"y" * (485 - 267 - 12))
        assert directory_data_size(filling, is_root=True) == 4096
        assert directory_data_size(self.directory(*filling.entries, b"z"), is_root=True) == 4096 + 13

    def test_they_are_printed(self) -> None:
        root = self.directory(b"a", b"b")
        child = root.entries[b"a"]
        assert isinstance(child, Directory)
        child.entries[b"x" * 100] = RegularFile(mode=0o100644, size=0, content=b"")
        sizes = [int(text.split(b" ")[1]) for text in print_dump(root)]
        assert sizes == [4096, 27 + 112, 0, 27]

    def test_known_sizes_may_be_given(self) -> None:
        root = self.directory(b"a")
        sizes = [text.split(b" ")[1] for text in print_dump(root, directory_sizes=lambda d: 5 if d is root else 6)]
        assert sizes == [b"5", b"6"]

    def test_links_to_directories_are_counted(self) -> None:
        root = self.directory(b"a", b"b")
        root.entries[b"c"] = RegularFile(mode=0o100644, size=0, content=b"")
        assert next(print_dump(root)).split(b" ")[3] == b"4"
