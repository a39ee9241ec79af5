from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from cfstools.formats.base import Finding, Severity
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.erofs import check, walk
from cfstools.formats.erofs.check import check_image
from cfstools.formats.erofs.reader import Image, Xattr
from cfstools.formats.erofs.walk import Step
from cfstools.formats.escape import show_path
from cfstools.tree import HardLink
from tests.formats.images import (
    SAMPLE,
    SAMPLE_SHA512,
    directory,
    dirent_offset,
    external,
    find,
    patch,
    regular,
    write_image,
)

SB = 1024
DIR, INLINE, EXT, BLOCK, FIFO, MANY = (
    find(SAMPLE, path) for path in (b"dir", b"inline", b"ext", b"block", b"fifo", b"many")
)
SHARED = Image(SAMPLE).shared_xattr(Image(SAMPLE).shared_ids(INLINE)[0])


def text(data: bytes) -> list[str]:
    return [str(finding) for finding in check_image(data)]


@pytest.mark.parametrize("data", [SAMPLE, SAMPLE_SHA512], ids=["sample", "sha512"])
def test_sound_images_have_no_findings(data: bytes) -> None:
    assert text(data) == []


def test_a_spilled_chunk_table_and_unreferenced_shared_xattrs_are_sound() -> None:
    values = {b"user.%03d" % number: b"v" for number in range(140)}
    entries = {b"a": regular(b"", xattrs=values), b"b": regular(b"", xattrs=values), b"c": external(2**53)}
    assert text(bytes(write_image(directory(dict(entries))))) == []


def at(offset: int, form: str, *values: object) -> Callable[[bytes], bytes]:
    return lambda data: patch(data, offset, form, *values)


CHANGES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("header", at(20, "B", 1), "composefs header at offset 0x0: reserved bytes are not zero"),
    ("between", at(40, "B", 1), "offset 0x20: bytes up to 0x400 belong to nothing and are not zero"),
    ("checksum", at(SB + 4, "I", 1), "superblock at offset 0x400: fields that composefs does not use are not zero"),
    ("uuid", at(SB + 48, "B", 1), "superblock at offset 0x400: fields that composefs does not use are not zero"),
    ("volume", at(SB + 79, "B", 1), "superblock at offset 0x400: fields that composefs does not use are not zero"),
    ("rest", at(SB + 127, "B", 1), "superblock at offset 0x400: fields that composefs does not use are not zero"),
    ("compat", at(SB + 8, "I", 7), "superblock at offset 0x400: compatible features 0x7; composefs has 0x6"),
    ("count", at(SB + 16, "Q", 9), "superblock at offset 0x400: the superblock counts 9 inodes, the tree has"),
    ("build time", at(SB + 24, "q", 6), f"{INLINE.where} (/inline): the mtime is before the build time"),
    ("compact", at(FIFO.offset + 28, "I", 1), f"{FIFO.where} (/fifo): reserved bytes of the inode are not zero"),
    ("extended", at(INLINE.offset + 60, "I", 1), f"{INLINE.where} (/inline): reserved bytes of the inode are not"),
    ("filter", at(INLINE.xattr_start, "I", 7), f"{INLINE.where} (/inline): the xattr name filter is 0x00000007, the"),
    ("area", at(INLINE.xattr_start + 5, "B", 1), f"{INLINE.where} (/inline): reserved bytes of the xattr area are"),
    ("entry", at(INLINE.xattr_start + 26, "B", 1), f"{INLINE.where}: the padding of the xattr at"),
    ("shared", at(SHARED.end - 1, "B", 1), f"shared xattrs: the padding of the xattr at {SHARED.start:#x} is not"),
    ("slot", at(DIR.end, "B", 1), f"offset {DIR.end:#x}: bytes up to {DIR.end + 32 & -32:#x} belong to nothing"),
    ("table end", at(SHARED.end, "H", 0x6301), f"offset {SHARED.end:#x}: bytes up to"),
    ("block", at(BLOCK.data_start + 3000, "B", 1), f"offset {BLOCK.data_start + 3000:#x}: bytes up to"),
    ("dirent", at(dirent_offset(SAMPLE, b"dir", b"sub") + 11, "B", 1), f"{DIR.where} (/dir): reserved bytes of"),
    ("names", at(MANY.data_start + 4095, "B", 1), f"{MANY.where} (/many): the padding of directory entries at"),
    ("nlink", at(DIR.offset + 6, "H", 9), f"{DIR.where} (/dir): link count 9 of a directory with 1 subdirectories"),
    ("hard link", at(dirent_offset(SAMPLE, b"dir", b"sub") + 10, "B", 1), "the directory entry says file type 1"),
    ("broken xattr", at(INLINE.xattr_start + 17, "B", 9), f"{INLINE.where}, xattr area at"),
    ("symlink", at(find(SAMPLE, b"symlink").tail_start, "B", 0), "(/symlink): the symlink target has a NUL byte"),
    ("magic", at(0, "I", 0), "composefs header at offset 0x0: magic"),
    ("dirents", at(DIR.tail_start + 8, "H", 0), "(/dir): the first name is at 0"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_every_change_is_found(change: Callable[[bytes], bytes], message: str) -> None:
    findings = check_image(change(SAMPLE))
    assert any(message in str(finding) for finding in findings), [str(finding) for finding in findings]
    assert all(finding.severity is Severity.ERROR for finding in findings)


def test_all_problems_are_listed() -> None:
    data = patch(SAMPLE, DIR.offset + 28, "I", 1)
    data = patch(data, dirent_offset(SAMPLE, b"", b"fifo") + 10, "B", 1)
    data = patch(data, MANY.tail_start + 8, "H", 0)
    data = patch(data, INLINE.xattr_start + 5, "B", 1)
    places = [line.split(": ")[0].split("(")[1] for line in text(data)]
    assert places == ["/dir)", "/fifo)", "/inline)", "/many)"]


def test_link_counts_of_files_are_warnings() -> None:
    data = patch(SAMPLE, FIFO.offset + 6, "H", 3)
    message = f"{FIFO.where} (/fifo): link count 3, but the number of names is 1"
    assert [(str(finding), finding.severity) for finding in check_image(data)] == [(message, Severity.WARNING)]


def test_link_counts_are_compared_with_all_names() -> None:
    shared = find(SAMPLE, b"shared")
    for count in (1, 3):
        (line,) = text(patch(SAMPLE, shared.offset + 6, "H", count))
        assert line.endswith(f": link count {count}, but the number of names is 2")


def test_overlaps_are_found() -> None:
    other = find(SAMPLE, b"two")
    data = patch(SAMPLE, BLOCK.offset + 16, "I", other.union)
    assert any("starts inside of the data of inode" in line for line in text(data))


def test_more_rules_can_be_given() -> None:
    def rules(step: Step, xattrs: Sequence[Xattr]) -> Iterator[str]:
        if step.name == b"inline":
            yield f"has {len(xattrs)} xattrs"

    (finding,) = check_image(SAMPLE, rules=rules)
    assert str(finding) == f"{INLINE.where} (/inline): has 3 xattrs"
    assert str(finding.error) == str(finding)
    assert finding.to_dict() == {
        "schema": 1,
        "severity": "error",
        "what": "has 3 xattrs",
        "where": f"{INLINE.where} (/inline)",
    }


def test_the_check_gives_up_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FINDINGS", 2)
    assert text(SAMPLE) == []
    findings = check_image(SAMPLE, rules=lambda step, xattrs: ["wrong"])
    assert len(findings) == 3
    assert findings[-1] == Finding(severity=Severity.ERROR, what="more than 2 problems, stopped here", where=None)
    assert str(findings[-1]) == "more than 2 problems, stopped here"


def test_a_tail_behind_the_image_needs_permission() -> None:
    assert text(SAMPLE + b"x") != []
    assert check_image(SAMPLE + b"x", allow_tail=True) == []


def test_too_many_warnings_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FINDINGS", 2)
    lines = [f"/f{number} 0 100644 9 0 0 0 0.0 - - -\n" for number in range(5)]
    image = write_image(parse_dump("".join(["/ 4096 40755 2 0 0 0 0.0 - - -\n", *lines]).encode()))
    findings = check_image(image)
    assert [finding.severity for finding in findings] == [Severity.WARNING] * 2


def chain(levels: int, nlink: int = 1) -> bytes:
    """An image of directories inside each other, each with a file of two names and a link count of *nlink*."""
    shared = regular(b"", nlink=nlink)
    root = directory({b"d" * 200: shared})
    for _ in range(levels):
        root = directory({b"d" * 200: root, b"f": HardLink(shared)})
    return bytes(write_image(root))


def test_paths_of_a_deep_tree_are_only_made_for_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    data = chain(5000, 5001)
    made: list[str] = []

    def counted(names: Iterator[bytes]) -> str:
        made.append(show_path(names))
        return made[-1]

    monkeypatch.setattr(check, "show_path", counted)
    monkeypatch.setattr(walk, "show_path", counted)
    assert text(data) == []
    assert made == []
    (line,) = text(patch(data, find(data, b"d" * 200).offset + 6, "H", 9))
    assert line.endswith(" (/" + "d" * 200 + "): link count 9 of a directory with 1 subdirectories")
    assert len(made) == 1


def test_links_of_a_deep_tree_are_found_once() -> None:
    (line,) = text(chain(100, 7))
    assert line.endswith(": link count 7, but the number of names is 101")
    assert "(.../" in line


def test_no_more_link_counts_of_directories_are_kept_than_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FINDINGS", 2)
    root = directory({b"%d" % number: directory() for number in range(6)})
    data = bytes(write_image(root))
    for number in range(6):
        data = patch(data, Image(data).inode(find(data, b"%d" % number).nid).offset + 6, "H", 9)
    lines = text(data)
    assert lines[:1] == [f"{find(data, b'0').where} (/0): link count 9 of a directory with 0 subdirectories"]
    assert lines[2:] == ["more than 2 problems, stopped here"]
