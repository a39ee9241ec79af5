"""Times that are made up whenever somebody looks, and directories that are mounted by opening them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.errors import InputError, SourceChanged
from cfstools.linux import numbers
from cfstools.sources import recheck
from cfstools.sources.directory import open_directory
from cfstools.sources.files import DirectorySource
from cfstools.sources.source import WalkOptions
from cfstools.tree import RegularFile
from tests import fuse
from tests.autofs import automount
from tests.fuse import Node
from tests.sources.trees import AtNames, get, later, paths, read, walk

FILE = stat.S_IFREG | 0o644
DIR = stat.S_IFDIR | 0o755

pytestmark = pytest.mark.usefixtures("each_implementation")


def digest(path: Path, *, use_epoch: bool = False, store: Path | None = None) -> str:
    stores = [os.fsencode(store)] if store else []
    return build(os.fsencode(path), None, stores=stores, options=BuildOptions(use_epoch=use_epoch), threads=2).digest


def made_up(times: str) -> list[Node]:
    return [
        Node("", DIR, 1, nlink=3, times=times),
        Node("d", DIR, 2, nlink=2, times=times),
        Node("d/small", FILE, 3, content=b"small", times=times),
        Node("d/middling", FILE, 4, content=b"m" * 70000, times=times),
        Node("large", FILE, 5, content=b"large" * 2_000_000, times=times),
        Node("link", stat.S_IFLNK | 0o777, 6, content=b"target", times=times),
        Node("fifo", stat.S_IFIFO | 0o600, 7, times=times),
        Node("null", stat.S_IFCHR | 0o600, 8, rdev=0x103, times=times),
    ]


# Made-up times


@pytest.mark.root
@pytest.mark.parametrize("times", ["now", "second"])
def test_times_that_are_made_up(tmp_path: Path, times: str) -> None:
    """The tree is built; with times that do not matter it is the same tree each time, and that of steady times."""
    (tmp_path / "store").mkdir()
    with fuse.mounted(tmp_path, made_up(times)) as mounted:
        digest(mounted.path, store=tmp_path / "store")
        digests = {digest(mounted.path, use_epoch=True), digest(mounted.path, use_epoch=True, store=tmp_path / "store")}
        mounted.set([replace(node, times=0) for node in made_up(times)])
        digests.add(digest(mounted.path))
    assert len(digests) == 1


@pytest.mark.root
@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize(
    ("length", "size", "words"),
    [
        (5, 6, "ends after 5 bytes, though its file system says that it has 6 bytes"),
        (1, 4096, "ends after 1 byte, though its file system says that it has 4096 bytes"),
        (5, 4, "goes on, though its file system says that it has 4 bytes"),
        (
            3 << 20,
            (3 << 20) + 1,
            f"ends after {3 << 20} bytes, though its file system says that it has {(3 << 20) + 1} bytes",
        ),
        (3 << 20, (3 << 20) - 1, f"goes on, though its file system says that it has {(3 << 20) - 1} bytes"),
    ],
)
def test_a_size_that_is_made_up(tmp_path: Path, length: int, size: int, words: str, *, with_store: bool) -> None:
    """Such a file has not changed, and no reading it again will help."""
    store = tmp_path / "store" if with_store else None
    if store:
        store.mkdir()
    nodes = [Node("file", FILE, 9, content=bytes(length), size=size)]
    with fuse.mounted(tmp_path, nodes) as mounted, pytest.raises(InputError, match=f"file: {words}$") as raised:
        digest(mounted.path, store=store)
    assert type(raised.value) is InputError


@pytest.mark.root
@pytest.mark.parametrize("use_epoch", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"d/new": Node("d/new", FILE, 9)},
        {"d/small": None},
        {"d/small": Node("d/small", FILE, 3, content=b"longer", times="now")},
        {"d/small": Node("d/small", stat.S_IFREG | 0o600, 3, content=b"small", times="now")},
        {"d/small": Node("d/small", FILE, 3, content=b"small", times="now", uid=1)},
        {"d/link": Node("d/link", stat.S_IFLNK | 0o777, 10, content=b"other", times="now")},
        {"d/e": Node("d/e", DIR, 99, times="now")},
        {"d/e": Node("d/e", stat.S_IFDIR | 0o700, 12, times="now")},
        {"d": Node("d", stat.S_IFDIR | 0o700, 2, times="now")},
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else None,
)
def test_a_change_where_times_are_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Node | None], *, use_epoch: bool
) -> None:
    """Names and what is said of them are compared: what came, went or is something else is found."""
    before = {node.path: node for node in made_up("now")}
    before["d/e"] = Node("d/e", DIR, 12, times="now")
    before["d/link"] = Node("d/link", stat.S_IFLNK | 0o777, 10, content=b"first", times="now")
    after = [node for node in {**before, **change}.values() if node is not None]
    check = recheck.Listing.check
    with fuse.mounted(tmp_path, list(before.values())) as mounted:

        def change_first(self: recheck.Listing, *words: object) -> None:
            mounted.set(after)
            check(self, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(recheck.Listing, "check", change_first)
        with pytest.raises(SourceChanged, match=r"fuse/d(/\w+)?: (directory )?changed while"):
            walk(mounted.path, use_epoch=use_epoch)


@pytest.mark.root
@pytest.mark.parametrize("use_epoch", [False, True])
@pytest.mark.parametrize("size", [5, 70000, 10_000_000])
def test_contents_that_change_where_times_are_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, *, use_epoch: bool
) -> None:
    """They are read twice, and have to be the same."""
    node = Node("file", FILE, 3, content=b"1" * size, times="now")
    (tmp_path / "store").mkdir()
    with fuse.mounted(tmp_path, [node]) as mounted:
        matter = DirectorySource.times_matter
        changes = iter(range(10))

        def change_between(self: DirectorySource, fd: int) -> bool:
            if next(changes):  # not when it is opened, but when it was read
                node.content = b"2" * size
                mounted.set([node])
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return matter(self, fd)

        monkeypatch.setattr(DirectorySource, "times_matter", change_between)
        with pytest.raises(SourceChanged, match=r"file: changed while it was read"):
            digest(mounted.path, use_epoch=use_epoch, store=tmp_path / "store")


@pytest.mark.root
@pytest.mark.parametrize("times", [1, "now"])
def test_inode_numbers_that_are_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int | str) -> None:
    """Nothing has changed where they are others at each look; no two names are links then."""
    monkeypatch.setattr("cfstools.sources.directory.MAX_OPEN", 1)
    nodes = [replace(node, ino=0, times=times) for node in made_up("now")]
    nodes += [Node(f"d/e{end}", DIR, 0, times=times) for end in ("", "/e", "/e/e")]
    nodes += [Node(name, FILE, 0, nlink=2, content=b"x", times=times) for name in "xy"]
    with fuse.mounted(tmp_path, nodes) as mounted:
        root = walk(mounted.path, use_epoch=True)
        assert get(root, b"x") is not get(root, b"y")
        digests = {digest(mounted.path, use_epoch=True) for _ in range(3)}
        mounted.set([replace(node, ino=number, nlink=1, times=0) for number, node in enumerate(nodes, 2)])
        digests.add(digest(mounted.path))
        assert len(digests) == 1


@pytest.mark.root
def test_steady_times_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In user space as well, a file has changed if its times have once and do not again."""
    monkeypatch.setattr(numbers, "_PAUSE", 0)
    node = Node("file", FILE, 3, content=b"contents")
    with fuse.mounted(tmp_path, [node]) as mounted, open_directory(os.fsencode(mounted.path)) as source:
        inode = get(source.root, b"file")
        assert isinstance(inode, RegularFile)
        node.times = 1
        mounted.set([node])
        with pytest.raises(SourceChanged, match=r"file: changed while the source was read"):
            read(source, inode)
    with fuse.mounted(tmp_path / "again", [node]) as mounted:
        options = WalkOptions(use_epoch=True)
        with open_directory(os.fsencode(mounted.path), options=options) as source:
            inode = get(source.root, b"file")
            assert isinstance(inode, RegularFile)
            node.times = 2
            mounted.set([node])
            assert read(source, inode) == b"contents"
            node.ino = 4
            mounted.set([node])
            with pytest.raises(SourceChanged):
                read(source, inode)


@pytest.mark.parametrize("use_epoch", [False, True])
def test_a_file_that_is_touched_has_changed(src: Path, *, use_epoch: bool) -> None:
    """Where times are the kernel's, also without times in the image: what else changed cannot be told."""
    (src / "file").write_bytes(b"x")
    with open_directory(os.fsencode(src), options=WalkOptions(use_epoch=use_epoch)) as source:
        inode = get(source.root, b"file")
        assert isinstance(inode, RegularFile)
        later()
        (src / "file").touch()
        with pytest.raises(SourceChanged):
            read(source, inode)


# Times that do not matter


def come_and_go(directory: Path) -> None:
    (directory / "new").touch()
    (directory / "new").unlink()


def move_away_and_back(directory: Path) -> None:
    (directory / "empty").rename(directory / "moved")
    (directory / "moved").rename(directory / "empty")


@pytest.mark.parametrize("action", [come_and_go, move_away_and_back, Path.touch])
def test_a_directory_whose_times_change(src: Path, action: Callable[[Path], object]) -> None:
    """Without times in the image it is the same as before."""
    (src / "dir" / "sub").mkdir(parents=True)
    (src / "dir" / "empty").touch()
    (src / "dir" / "link").symlink_to("x")
    os.link(src / "dir" / "empty", src / "dir" / "second")
    expected = paths(walk(src))

    def act() -> None:
        action(src / "dir")

    with open_directory(os.fsencode(src), options=WalkOptions(use_epoch=True), progress=AtNames(3, act)) as source:
        assert paths(source.root) == expected
    with pytest.raises(SourceChanged, match="dir: directory changed"):
        open_directory(os.fsencode(src), progress=AtNames(3, act))


def other_directory(directory: Path) -> None:
    (directory / "sub").rename(directory.parent.parent / "kept")
    (directory / "sub").mkdir()


def other_link(directory: Path) -> None:
    (directory / "link").unlink()
    (directory / "link").symlink_to("y")


def other_device(directory: Path) -> None:
    (directory / "null").unlink()
    os.mknod(directory / "null", stat.S_IFCHR | 0o600, os.makedev(1, 5))


@pytest.mark.parametrize(
    "action",
    [
        other_directory,
        other_link,
        pytest.param(other_device, marks=pytest.mark.root),
        lambda path: path.chmod(0o700),
        lambda path: (path / "empty").unlink(),
        lambda path: (path / "new").touch(),
        lambda path: os.setxattr(path, "user.new", b"1"),
    ],
)
def test_a_directory_that_changes_without_times(src: Path, action: Callable[[Path], object]) -> None:
    (src / "dir" / "sub").mkdir(parents=True)
    (src / "dir" / "sub" / "deep").mkdir()
    (src / "dir" / "empty").touch()
    (src / "dir" / "link").symlink_to("x")
    if os.geteuid() == 0:
        os.mknod(src / "dir" / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with pytest.raises(SourceChanged, match=r"dir(/sub|/link|/null)?: (directory )?changed while"):
        open_directory(
            os.fsencode(src), options=WalkOptions(use_epoch=True), progress=AtNames(4, lambda: action(src / "dir"))
        )


def test_a_directory_that_cannot_be_listed_again(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "dir").mkdir()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(recheck.Listing, "check", fail)
    with pytest.raises(InputError, match=r"src: cannot list directory: Input/output error"):
        open_directory(os.fsencode(src), options=WalkOptions(use_epoch=True), progress=AtNames(2, (src / "new").touch))


# Automount points


@pytest.mark.root
def test_an_automount_point(tmp_path: Path, src: Path) -> None:
    """It is another directory once it is opened, and so it must be."""
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "file").write_bytes(b"x" * 100)
    (src / "auto").mkdir()
    (src / "z").touch()
    with automount(src / "auto", tmp_path / "other"):
        root = walk(src)
        assert paths(root) == [b"/", b"/auto", b"/auto/deep", b"/auto/file", b"/z"]
        expected = digest(src)
    with automount(src / "auto", tmp_path / "other"):
        assert [digest(src), digest(src), digest(src, use_epoch=True)][:2] == [expected, expected]


@pytest.mark.root
def test_an_automount_point_that_cannot_be_mounted(src: Path) -> None:
    """Nothing changed there."""
    (src / "auto").mkdir()
    with automount(src / "auto", None), pytest.raises(InputError) as caught:
        walk(src)
    assert str(caught.value) == f"{src}/auto: cannot open directory: No such file or directory"
    assert not isinstance(caught.value, SourceChanged)


@pytest.mark.root
@pytest.mark.parametrize("has_mount_numbers", [True, False])
def test_a_mount_that_comes_between_look_and_opening(
    tmp_path: Path, src: Path, monkeypatch: pytest.MonkeyPatch, *, has_mount_numbers: bool
) -> None:
    """As an automount does; without mounts' numbers it cannot be told from a replacement."""
    other = tmp_path / "other"
    (other / "file").parent.mkdir()
    (other / "file").touch()
    (src / "dir").mkdir()
    opening = os.open

    def mount(name: bytes, *args: int, dir_fd: int | None = None) -> int:
        if name == b"dir":
            subprocess.run(["mount", "--bind", str(other), str(src / "dir")], check=True)
        return opening(name, *args, dir_fd=dir_fd)

    if not has_mount_numbers:
        monkeypatch.setattr(numbers, "_statx", None)
    monkeypatch.setattr(os, "open", mount)
    try:
        if has_mount_numbers:
            assert paths(walk(src)) == [b"/", b"/dir", b"/dir/file"]
        else:
            with pytest.raises(SourceChanged, match="dir: was replaced"):
                walk(src)
    finally:
        subprocess.run(["umount", "--lazy", str(src / "dir")], check=True)


# What cannot be opened, and has not changed


@pytest.mark.root
def test_a_name_that_is_listed_without_a_number(tmp_path: Path) -> None:
    """It is none, as for the C library and all that lists with it."""
    nodes = [Node("a", FILE, 2), Node("b", FILE, 3, unnumbered=True)]
    with fuse.mounted(tmp_path, nodes) as mounted:
        assert [os.fsencode(f"/{name}") for name in os.listdir(mounted.path)] == paths(walk(mounted.path))[1:]


@pytest.mark.root
def test_a_name_that_is_listed_and_not_there(tmp_path: Path) -> None:
    nodes = [Node("file", FILE, 2, error=errno.ENOENT)]
    with fuse.mounted(tmp_path, nodes) as mounted, pytest.raises(InputError) as caught:
        walk(mounted.path)
    assert str(caught.value) == f"{mounted.path}/file: is listed, but cannot be looked at: No such file or directory"
    assert not isinstance(caught.value, SourceChanged)


@pytest.mark.root
@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.ENXIO, errno.ELOOP, errno.EIO])
def test_what_cannot_be_opened_and_is_there(tmp_path: Path, number: int) -> None:
    nodes = [Node("d", DIR, 2, open_error=number), Node("file", FILE, 3, content=b"x", open_error=number)]
    why = os.strerror(number)
    with fuse.mounted(tmp_path, nodes) as mounted:
        with pytest.raises(InputError) as caught:
            walk(mounted.path)
        assert str(caught.value) == f"{mounted.path}/d: cannot open directory: {why}"
        assert not isinstance(caught.value, SourceChanged)
        with open_directory(os.fsencode(mounted.path), options=WalkOptions(exclude=(b"d",))) as source:
            inode = get(source.root, b"file")
            assert isinstance(inode, RegularFile)
            with pytest.raises(InputError) as caught:
                read(source, inode)
    assert str(caught.value) == f"{mounted.path}/file: cannot open: {why}"
    assert not isinstance(caught.value, SourceChanged)
