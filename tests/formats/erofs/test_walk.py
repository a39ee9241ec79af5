from __future__ import annotations

from collections.abc import Callable

import pytest

from cfstools.errors import ImageError
from cfstools.formats.erofs.reader import Image
from cfstools.formats.erofs.walk import Step, Walk
from cfstools.formats.escape import show_path
from cfstools.tree import HardLink
from tests.formats.images import SAMPLE, directory, dirent_offset, find, patch, regular, write_image


def test_names_come_depth_first_in_byte_order() -> None:
    walk = Walk(Image(SAMPLE))
    paths = []
    for step in walk:
        paths.append(walk.path())
        assert step.depth == (0 if paths[-1] == "/" else paths[-1].count("/"))
    assert paths[0] == "/"
    assert paths[1:3] == ["/00", "/01"]
    tail = [path for path in paths if path.startswith(("/dir", "/ext", "/white"))]
    assert tail == ["/dir", "/dir/link", "/dir/sub", "/ext", "/ext2", "/white", "/white/gone"]
    assert len(paths) == len(set(paths)) == 1 + 256 + 15 + 2 + 200 + 1


def test_only_the_first_name_of_an_inode_is_first() -> None:
    steps = {step.name: step for step in Walk(Image(SAMPLE))}
    assert steps[b"link"].first
    assert not steps[b"shared"].first
    assert steps[b"link"].inode == steps[b"shared"].inode


def test_filters_choose_children_of_the_root() -> None:
    steps = list(Walk(Image(SAMPLE), filters=[b"dir", b"nothing", b"sub"]))
    assert [(step.depth, step.name) for step in steps] == [(0, b""), (1, b"dir"), (2, b"link"), (2, b"sub")]


def swap(path: bytes, name: bytes, target: bytes) -> Callable[[bytes], bytes]:
    """Let the entry *name* of the directory *path* be the inode *target*."""
    return lambda data: patch(data, dirent_offset(data, path, name), "Q", find(data, target).nid)


def retype(path: bytes, name: bytes, file_type: int) -> Callable[[bytes], bytes]:
    return lambda data: patch(data, dirent_offset(data, path, name) + 10, "B", file_type)


NODES = {path: find(SAMPLE, path) for path in (b"", b"dir", b"dir/sub", b"inline", b"fifo", b"ext", b"many")}
BROKEN: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("cycle", swap(b"dir", b"sub", b""), "inode 36 at offset 0x480 (/dir/sub): the directory is reached a second time"),
    (
        "own parent",
        swap(b"dir", b"sub", b"dir"),
        f"{NODES[b'dir'].where} (/dir/sub): the directory is reached a second time",
    ),
    ("twice", swap(b"", b"white", b"many"), f"{NODES[b'many'].where} (/white): the directory is reached a second time"),
    (
        "type",
        retype(b"", b"inline", 5),
        f"{NODES[b'inline'].where} (/inline): the directory entry says file type 5, the inode 1",
    ),
    (
        "no type",
        retype(b"", b"fifo", 0),
        f"{NODES[b'fifo'].where} (/fifo): the directory entry says file type 0, the inode 5",
    ),
    (
        "outside",
        lambda data: patch(data, dirent_offset(data, b"", b"fifo"), "Q", 2**64 - 1),
        "inode 18446744073709551615 at offset 0x1fffffffffffffffe0 (/fifo): there is no inode here",
    ),
    (
        "dot",
        swap(b"dir", b".", b""),
        f"{NODES[b'dir'].where} (/dir): '.' is inode 36 of file type 2, the wrong one",
    ),
    (
        "dot dot",
        swap(b"dir/sub", b"..", b""),
        f"{NODES[b'dir/sub'].where} (/dir/sub): '..' is inode 36 of file type 2, the wrong one",
    ),
    (
        "dot type",
        retype(b"dir", b".", 1),
        f"{NODES[b'dir'].where} (/dir): '.' is inode {NODES[b'dir'].nid} of file type 1, the wrong one",
    ),
    (
        "no dot",
        lambda data: data[: NODES[b"dir"].end - 10] + b"!" + data[NODES[b"dir"].end - 9 :],
        f"{NODES[b'dir'].where} (/dir): the directory has no entry '.'",
    ),
    (
        "no names",
        lambda data: patch(patch(data, NODES[b"dir/sub"].offset, "H", 0), NODES[b"dir/sub"].offset + 8, "I", 0),
        f"{NODES[b'dir/sub'].where} (/dir/sub): the directory has no entry '.'",
    ),
    (
        "order",
        lambda data: data.replace(b"...linksub", b"...linkaub"),
        f"{NODES[b'dir'].where}, directory entries at {NODES[b'dir'].tail_start:#x} (/dir): name aub is not in order",
    ),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_what_is_broken_is_named_and_left_out(change: Callable[[bytes], bytes], message: str) -> None:
    image = Image(change(SAMPLE))
    with pytest.raises(ImageError) as caught:
        list(Walk(image))
    problems: list[ImageError] = []
    steps = list(Walk(image, report=problems.append))
    assert str(caught.value) == str(problems[0])
    assert message in [str(problem)[: len(message)] for problem in problems]
    # The walk went on: the last name of the root was reached.
    assert Step(1, b"two", find(SAMPLE, b"two"), first=True) in steps


def test_a_directory_that_is_a_hard_link_is_not_entered() -> None:
    problems: list[ImageError] = []
    steps = list(Walk(Image(swap(b"dir", b"sub", b"")(SAMPLE)), report=problems.append))
    assert len(problems) == 1
    assert len(steps) == len(list(Walk(Image(SAMPLE)))) - 1


def test_overlapping_inodes_end_the_walk() -> None:
    # Every file claims the same block, together more than the image has.
    data = bytes(write_image(directory({b"f%02d" % number: regular(b"x" * 4000) for number in range(40)})))
    first = find(data, b"f00").data_start // 4096
    for number in range(40):
        inode = find(data, b"f%02d" % number)
        data = patch(data, inode.offset, "H", 0)
        data = patch(data, inode.offset + 8, "I4xI", 5000, first)
    problems: list[ImageError] = []
    steps = list(Walk(Image(data), report=problems.append))
    assert [problem.what for problem in problems] == ["inodes overlap: together they are larger than the image"]
    assert len(steps) < 1 + 256 + 40


def test_paths_are_escaped_and_bounded() -> None:
    assert show_path(iter([])) == "/"
    assert show_path(iter([b"b c", b"a"])) == "/a/b\\x20c"
    long = show_path(iter([b"x" * 255] * 1000))
    assert long.startswith(".../xxx")
    assert len(long) < 4096 + 300


def test_deep_images_are_walked() -> None:
    root = directory()
    deepest = root
    for _ in range(3000):
        deeper = directory()
        deepest.entries[b"d"] = deeper
        deepest = deeper
    shared = regular(b"x")
    deepest.entries[b"f"] = shared
    root.entries[b"z"] = HardLink(shared)
    *_, last = Walk(Image(write_image(root)))
    assert last.depth == 1
    assert not last.first
