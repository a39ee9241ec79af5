"""Listings of names and objects."""

from __future__ import annotations

from hypothesis import given

from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import ls_text, print_dump
from cfstools.formats.escape import unescape
from cfstools.tree import Directory, External, HardLink, RegularFile
from cfstools.tree.objects import payload_sizes
from cfstools.tree.walk import iter_names
from tests.strategies import trees

# Each line of the dump has beside it what `composefs-info ls` prints for it.
LISTED = [
    (rb"/ 0 40755 1 0 0 0 0.0 - - -", None),
    (rb"/a 0 20600 1 0 0 259 0.0 - - -", b"/a\n"),
    (rb"/b\x20c 9 100644 1 0 0 0 0.0 x/y\x20=\\ - -", b"/b c\t@ x/y\\x20=\\\\\n"),
    (rb"/d 0 40755 1 0 0 0 0.0 - - -", b"/d/\t\n"),
    (rb"/d/f 0 10600 1 0 0 0 0.0 - - -", b"/d/f\n"),
    (rb"/d/l 1 120777 1 0 0 0 0.0 \x2d - -", b"/d/l\t-> -\n"),
    (rb"/d/\xff=\t 9 @100644 1 0 0 0 0.0 /b\x20c - -", b"/d/\\xff=\\t\n"),
    (rb"/e 0 100644 1 0 0 0 0.0 ignored - -", b"/e\n"),
    (rb"/i 5 100644 1 0 0 0 0.0 ignored hello -", b"/i\n"),
    (rb"/n 5 100644 1 0 0 0 0.0 - - -", b"/n\n"),
    (rb"/t 5 120777 1 0 0 0 0.0 a\x20b/\n - -", b"/t\t-> a\\x20b/\\n\n"),
    (rb"/u 1 @120777 1 0 0 0 0.0 /t - -", b"/u\n"),
    (rb"/v 9 100644 1 0 0 0 0.0 \x2d - -", b"/v\t@ -\n"),
    (rb"/w 9 100644 1 0 0 0 0.0 a - -", b"/w\t@ a\n"),
    (rb"/x 9 100644 1 0 0 0 0.0 \x2d - -", b"/x\t@ -\n"),
]
ROOT = parse_dump(b"\n".join(text for text, _ in LISTED))


def test_ls() -> None:
    assert b"".join(ls_text(ROOT)).splitlines(keepends=True) == [listed for _, listed in LISTED if listed is not None]


def test_objects_are_unescaped_unique_and_sorted() -> None:
    assert sorted(payload_sizes(ROOT, {})) == [b"-", b"a", b"x/y =\\"]


def test_the_first_name_is_the_one_described() -> None:
    inode = RegularFile(mode=0o100644, size=1, content=External(None, b"p"))
    root = Directory(mode=0o40755, entries={b"b": inode, b"a": HardLink(inode)})
    assert b"".join(ls_text(root)).splitlines(keepends=True) == [b"/a\t@ p\n", b"/b\n"]


@given(trees())
def test_ls_names_what_a_dump_names(root: Directory) -> None:
    listed = [
        unescape(text.rstrip(b"\n").split(b"\t")[0]) for text in b"".join(ls_text(root)).splitlines(keepends=True)
    ]
    dumped = [unescape(text.split(b" ")[0]) for text in print_dump(root)]
    is_directory = [text.split(b" ")[2].startswith(b"4") for text in print_dump(root)]
    assert listed == [path + b"/" * last for path, last in zip(dumped, is_directory, strict=True)][1:]


@given(trees())
def test_objects_are_those_of_all_inodes(root: Directory) -> None:
    files = [entry for _, _, entry in iter_names(root) if isinstance(entry, RegularFile)]
    payloads = {file.content.payload for file in files if isinstance(file.content, External)}
    assert sorted(payload_sizes(root, {})) == sorted(payload for payload in payloads if payload)
