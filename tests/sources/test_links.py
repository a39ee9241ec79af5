"""Hard links on file systems whose inode numbers and link counts are true, shared, late or made up."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.api.build import build
from cfstools.errors import InputError, SourceChanged
from cfstools.linux import numbers
from cfstools.sources import links as links_module
from cfstools.sources.directory import open_directory
from cfstools.tree import RegularFile, Unread
from tests import fuse, requirements
from tests.fuse import Node
from tests.sources.trees import AtNames, get, links, paths, walk

FILE = stat.S_IFREG | 0o644
DIR = stat.S_IFDIR | 0o755

pytestmark = pytest.mark.usefixtures("each_implementation")


def groups(*names: str) -> set[frozenset[str]]:
    """Each of *names* lists the names of one inode, with spaces between them."""
    return {frozenset(some.split()) for some in names}


def digest(path: Path) -> str:
    return build(os.fsencode(path), None).digest


@contextmanager
def mounting(*words: object) -> Iterator[None]:
    """Something mounted at the last of *words*, which are given to mount(8)."""
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(words[-1])], check=True)


@contextmanager
def image_mounted(path: Path, kind: str, *options: str) -> Iterator[Path]:
    """A new file system of this *kind*, beside its image *path*."""
    requirements.need_mounts(kind)
    requirements.need_command(f"mkfs.{kind}")
    with path.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", str(path)], check=True, capture_output=True)
    mountpoint = path.with_suffix(".mnt")
    mountpoint.mkdir()
    with mounting("-o", "loop", *options, path, mountpoint):
        yield mountpoint


# A file system in user space


SHARED = [
    Node("a", FILE, 7, nlink=3, content=b"one"),
    Node("b", FILE, 7, nlink=3, content=b"other size"),
    Node("d", DIR, 8),
    Node("d/c", FILE, 7, nlink=3, content=b"two"),
]


@pytest.mark.root
def test_files_that_share_a_number_are_no_links(tmp_path: Path) -> None:
    with fuse.mounted(tmp_path, SHARED) as mounted:
        root = walk(mounted.path)
        assert links(root) == set()
        report = build(os.fsencode(mounted.path), None)
        assert report.inodes == 5
        assert {digest(mounted.path) for _ in range(3)} == {report.digest}


def twin(**changes: object) -> list[Node]:
    """Two names of which the kernel says the same, but for *changes* of the second."""
    same = {"path": "a", "mode": FILE, "ino": 7, "nlink": 2, "content": b"same", "xattrs": {"trusted.x": b"1"}}
    return [Node(**same), Node(**{**same, "path": "b", **changes})]  # type: ignore[arg-type]


@pytest.mark.root
@pytest.mark.parametrize(
    "changes",
    [
        {"content": b"longer"},
        {"content": b"othr"},
        {"times": 1},
        {"ctime": 1},
        {"mode": stat.S_IFREG | 0o600},
        {"mode": stat.S_IFLNK | 0o777},
        {"mode": stat.S_IFIFO | 0o644},
        {"uid": 1},
        {"gid": 1},
        {"xattrs": {}},
        {"xattrs": {"trusted.x": b"2"}},
    ],
    ids=str,
)
def test_what_differs_in_anything_is_no_link(tmp_path: Path, changes: dict[str, object]) -> None:
    with fuse.mounted(tmp_path, twin(**changes)) as mounted:
        assert links(walk(mounted.path)) == set()
        root = walk(mounted.path)
        assert (get(root, b"/a").nlink, get(root, b"/b").nlink) == (1, 1)


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        (stat.S_IFLNK | 0o777, {"content": b"else"}),
        (stat.S_IFCHR | 0o600, {"rdev": 5}),
        (stat.S_IFBLK | 0o600, {"rdev": 5}),
        (stat.S_IFIFO | 0o600, {"uid": 5}),
        (stat.S_IFSOCK | 0o600, {"mode": stat.S_IFSOCK | 0o660}),
    ],
)
@pytest.mark.parametrize("is_link", [True, False])
def test_other_kinds(tmp_path: Path, mode: int, changes: dict[str, object], *, is_link: bool) -> None:
    first, second = twin(**({} if is_link else changes))
    first.mode = mode
    second.mode = second.mode if second.mode != FILE else mode
    with fuse.mounted(tmp_path, [first, second]) as mounted:
        assert links(walk(mounted.path)) == (groups("a b") if is_link else set())


@pytest.mark.root
@pytest.mark.parametrize("same_as", [None, "a"])
def test_what_agrees_in_everything_is_a_link(tmp_path: Path, same_as: str | None) -> None:
    """By contents, and where the kernel knows the two as one inode without reading them."""
    with fuse.mounted(tmp_path, twin(same_as=same_as)) as mounted:
        assert links(walk(mounted.path)) == groups("a b")
        assert links(walk(mounted.path, hardlinks=False)) == set()


@pytest.mark.root
def test_contents_are_not_read_of_what_the_kernel_knows_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(links_module, "hash_fd", unexpected)
    with fuse.mounted(tmp_path, twin(same_as="a")) as mounted:
        assert links(walk(mounted.path)) == groups("a b")


@pytest.mark.root
@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, []), (2, ["a b", "c d"]), (3, ["a b c", "d e"]), (9, ["a b c d e"])]
)
def test_no_more_names_than_the_link_count(tmp_path: Path, count: int, expected: list[str]) -> None:
    nodes = [Node(name, FILE, 7, nlink=count, content=b"x") for name in "abcde"]
    with fuse.mounted(tmp_path, nodes) as mounted:
        assert links(walk(mounted.path)) == groups(*expected)


@pytest.mark.root
@pytest.mark.parametrize("keep", [0, 60])
@pytest.mark.parametrize("same_as", [None, "x/1"])
def test_link_counts_that_come_late(tmp_path: Path, same_as: str | None, keep: int) -> None:
    """The first build of a tree and all later ones see the same links."""
    names = ["x/1", "x/2", "y/3", "z"]
    nodes = [Node("x", DIR, 2), Node("y", DIR, 3), Node("z2", FILE, 8, content=b"x", late=True)]
    nodes += [Node(name, FILE, 7, content=b"x", late=True, same_as=same_as) for name in names]
    with fuse.mounted(tmp_path, nodes, keep=keep) as mounted:
        first = walk(mounted.path)
        assert links(first) == groups("x/1 x/2 y/3 z")
        assert get(first, b"z").nlink == 4
        assert links(walk(mounted.path, exclude=(b"x/2",))) == groups("x/1 y/3 z")
    shutil.rmtree(mounted.path)
    with fuse.mounted(tmp_path, nodes, keep=keep) as mounted:
        digests = [digest(mounted.path) for _ in range(3)]
    shutil.rmtree(mounted.path)
    assert len(set(digests)) == 1
    with fuse.mounted(tmp_path, list(reversed(nodes)), keep=keep) as mounted:
        os.stat(mounted.path / "z")
        assert digest(mounted.path) == digests[0]


@pytest.mark.root
@pytest.mark.parametrize("times", ["now", "second"])
def test_links_with_made_up_times(tmp_path: Path, times: str) -> None:
    """They cannot be told apart by times that are others at each look."""
    nodes = [Node(name, FILE, 7, nlink=3, content=b"x", times=times) for name in "ab"]
    nodes += [Node("c", FILE, 7, nlink=3, content=b"y", times=times)]
    with fuse.mounted(tmp_path, nodes) as mounted:
        assert {frozenset(links(walk(mounted.path, use_epoch=True))) for _ in range(4)} == {frozenset(groups("a b"))}


@pytest.mark.root
def test_all_files_have_one_number(tmp_path: Path) -> None:
    nodes = [Node(f"{number:03}", FILE, 1, nlink=500, content=b"%d" % (number // 2 + 1000)) for number in range(400)]
    with fuse.mounted(tmp_path, nodes) as mounted:
        root = walk(mounted.path)
    assert links(root) == groups(*(f"{number:03} {number + 1:03}" for number in range(0, 400, 2)))


@pytest.mark.root
def test_what_turns_out_to_be_no_link_is_read(tmp_path: Path) -> None:
    nodes = [Node(name, FILE, 7, nlink=4, content=content) for name, content in [("a", b"1" * 99), ("b", b"2" * 99)]]
    nodes.append(Node("c", FILE, 7, nlink=4, content=b"1" * 99))
    with fuse.mounted(tmp_path, nodes) as mounted:
        (tmp_path / "store").mkdir()
        report = build(os.fsencode(mounted.path), None, stores=[os.fsencode(tmp_path / "store")])
    assert (report.objects_new, report.objects_shared) == (2, 0)


@pytest.mark.root
@pytest.mark.parametrize("change", [{"mode": stat.S_IFREG | 0o600}, {"content": b"longer"}, {"uid": 5}, {"error": 2}])
def test_a_doubtful_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    """After it was met, and before it is looked at once more."""
    with fuse.mounted(tmp_path, twin()) as mounted:
        settle = links_module.Doubts.settle

        def change_first(self: links_module.Doubts, fd: int) -> list[RegularFile]:
            mounted.set(twin(**change))
            return settle(self, fd)

        monkeypatch.setattr(links_module.Doubts, "settle", change_first)
        with pytest.raises(SourceChanged, match=r"fuse/b: (changed|vanished or was replaced) while"):
            walk(mounted.path)


@pytest.mark.root
def test_a_doubtful_file_is_cut_while_it_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "hash_fd", lambda *_: (b"", 1))
    with fuse.mounted(tmp_path, twin()) as mounted, pytest.raises(SourceChanged, match="fuse/a: changed while"):
        walk(mounted.path)


@pytest.mark.root
def test_a_doubtful_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(links_module, "hash_fd", fail)
    with fuse.mounted(tmp_path, twin()) as mounted, pytest.raises(InputError) as caught:
        walk(mounted.path)
    assert str(caught.value) == f"{mounted.path}/a: cannot read: Input/output error"


# Layers


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A tree with links between directories, to be a layer."""
    lower = tmp_path / "lower"
    (lower / "d").mkdir(parents=True)
    (lower / "e").mkdir()
    (lower / "d" / "a").write_bytes(b"contents of a file")
    os.link(lower / "d" / "a", lower / "e" / "b")
    os.link(lower / "d" / "a", lower / "z")
    (lower / "s").symlink_to("target")
    os.link(lower / "s", lower / "e" / "s", follow_symlinks=False)
    os.mkfifo(lower / "f")
    os.link(lower / "f", lower / "d" / "f")
    return lower


LINKED = groups("d/a e/b z", "s e/s", "f d/f")


@pytest.mark.root
def test_fuse_overlayfs(tmp_path: Path, linked: Path) -> None:
    """Its link counts grow while names are looked at: the first digest is that of all later builds, too."""
    requirements.need_mounts("fuse")
    requirements.need_command("fuse-overlayfs")
    digests = set()
    top = tmp_path / "merged"
    for name in ("merged", "upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={linked},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    for look_first in ("", "z", "e/b"):
        subprocess.run(["fuse-overlayfs", "-o", options, str(top)], check=True, capture_output=True)
        try:
            os.stat(top / look_first)
            digests |= {digest(top) for _ in range(3)}
            assert links(walk(top)) == LINKED
        finally:
            subprocess.run(["umount", "--lazy", str(top)], check=True)
    assert len(digests) == 1


@pytest.mark.root
@pytest.mark.parametrize("xino", ["off", "auto", "on"])
def test_kernel_overlay_over_several_file_systems(tmp_path: Path, linked: Path, xino: str) -> None:
    """Inode numbers of the layers meet, and one of the names was changed on top."""
    requirements.need_mounts("overlay", "tmpfs", "xfs")
    with ExitStack() as stack:
        space = tmp_path / "space"
        space.mkdir()
        stack.enter_context(mounting("-t", "tmpfs", "none", space))
        second = stack.enter_context(image_mounted(tmp_path / "xfs.image", "xfs"))
        for number in range(200):
            (second / f"x{number:03}").write_bytes(b"%d" % number)
            os.link(second / f"x{number:03}", second / f"y{number:03}")
        for name in ("upper", "work", "merged"):
            (space / name).mkdir()
        options = f"lowerdir={linked}:{second},upperdir={space}/upper,workdir={space}/work,xino={xino}"
        stack.enter_context(mounting("-t", "overlay", "overlay", "-o", options, space / "merged"))
        expected = groups(*(f"x{number:03} y{number:03}" for number in range(200))) | LINKED
        assert links(walk(space / "merged")) == expected
        # Copied up, it is a file of its own; what the other names are is unchanged.
        (space / "merged" / "z").chmod(0o600)
        assert links(walk(space / "merged")) == expected - LINKED | groups("d/a e/b", "s e/s", "f d/f")
        assert len({digest(space / "merged") for _ in range(3)}) == 1
        # Times are the kernel's there, and tell.
        with pytest.raises(SourceChanged, match="merged: directory changed while"):
            open_directory(os.fsencode(space / "merged"), progress=AtNames(2, (space / "merged").touch))


# True inode numbers


@pytest.mark.root
def test_snapshots_are_no_links(tmp_path: Path) -> None:
    """Those of btrfs repeat inode numbers, each on a device of its own."""
    with image_mounted(tmp_path / "btrfs.image", "btrfs") as top:
        subprocess.run(["btrfs", "subvolume", "create", str(top / "one")], check=True, capture_output=True)
        (top / "one" / "a").write_bytes(b"x")
        os.link(top / "one" / "a", top / "one" / "b")
        for name in ("three", "two"):
            words = ["btrfs", "subvolume", "snapshot", str(top / "one"), str(top / name)]
            subprocess.run(words, check=True, capture_output=True)
        assert (top / "one" / "a").stat().st_ino == (top / "two" / "a").stat().st_ino
        assert links(walk(top)) == groups("one/a one/b", "two/a two/b", "three/a three/b")


@pytest.mark.root
def test_one_file_seen_through_several_mounts(tmp_path: Path) -> None:
    """It has as many names as its link count says, however often it is met."""
    requirements.need_mounts()
    src = tmp_path / "src"
    for name in ("a", "b", "c"):
        (src / name).mkdir(parents=True)
    (src / "a" / "1").write_bytes(b"x")
    os.link(src / "a" / "1", src / "a" / "2")
    (src / "a" / "lone").write_bytes(b"x")
    with mounting("--bind", src / "a", src / "b"), mounting("--bind", src / "a", src / "c"):
        assert links(walk(src)) == groups("a/1 a/2", "b/1 b/2", "c/1 c/2")


@pytest.mark.root
def test_a_file_that_is_mounted(tmp_path: Path) -> None:
    """What its numbers are worth is a matter of its own file system."""
    src = tmp_path / "src"
    src.mkdir()
    for name in ("x", "y", "z"):
        (src / name).touch()
    nodes = [Node(name, FILE, 7, nlink=2, content=content) for name, content in [("a", b"1"), ("b", b"2"), ("c", b"1")]]
    with ExitStack() as stack:
        mounted = stack.enter_context(fuse.mounted(tmp_path, nodes))
        for name, file in zip("xyz", "abc", strict=True):
            stack.enter_context(mounting("--bind", mounted.path / file, src / name))
        assert links(walk(src)) == groups("x z")


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_links_are_those_of_stat(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    src = tmp_path_factory.mktemp("links")
    directories = ["", *data.draw(st.lists(st.sampled_from(["a", "b", "a/c", "b/d"]), unique=True))]
    for directory in directories:
        (src / directory).mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for number in range(data.draw(st.integers(0, 12))):
        path = src / data.draw(st.sampled_from(directories)) / f"n{number}"
        origin = data.draw(st.sampled_from([None, *made]))
        if origin is not None:
            os.link(origin, path, follow_symlinks=False)
        else:
            data.draw(st.sampled_from([make_file, make_empty, make_link, make_fifo]))(path)
        made.append(path)
    expected: dict[int, set[str]] = {}
    for path in made:
        expected.setdefault(path.lstat().st_ino, set()).add(str(path.relative_to(src)))
    assert links(walk(src)) == {frozenset(names) for names in expected.values() if len(names) > 1}


def make_file(path: Path) -> None:
    path.write_bytes(b"contents")


def make_empty(path: Path) -> None:
    path.touch()


def make_link(path: Path) -> None:
    path.symlink_to("target")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.root
def test_random_numbers_and_contents(tmp_path: Path) -> None:
    """Whatever a file system says: linked is what has one number, one description, one content and enough links."""
    requirements.need_mounts("fuse")
    with fuse.mounted(tmp_path, []) as mounted:

        @given(
            st.lists(
                st.tuples(
                    st.integers(2, 4), st.integers(0, 4), st.sampled_from([b"", b"a", b"b", b"ab"]), st.booleans()
                ),
                max_size=8,
            )
        )
        @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
        def check(files: list[tuple[int, int, bytes, bool]]) -> None:
            nodes = []
            expected: dict[tuple[int, bytes, bool], list[str]] = {}
            counts: dict[tuple[int, bytes, bool], int] = {}
            for place, (number, nlink, content, is_private) in enumerate(files):
                name = f"f{place}"
                mode = stat.S_IFREG | (0o600 if is_private else 0o644)
                nodes.append(Node(name, mode, number, nlink=nlink, content=content))
                key = (number, content, is_private)
                expected.setdefault(key, []).append(name)
                # Of several counts the highest is the one that was right in the end.
                size_key = (number, b"." * len(content), is_private)
                counts[size_key] = max(counts.get(size_key, 0), nlink)
            mounted.set(nodes)
            wanted = set()
            for (number, content, is_private), names in expected.items():
                count = counts[number, b"." * len(content), is_private]
                some = [names[first : first + count] for first in range(0, len(names), count)] if count > 1 else []
                wanted |= {frozenset(group) for group in some if len(group) > 1}
            assert links(walk(mounted.path)) == wanted

        check()


def test_an_unknown_file_system_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the directory here were on one: the same links are found, with more looks."""
    monkeypatch.setattr(numbers, "filesystem_type", lambda fd: 0x12345678)
    (tmp_path / "d").mkdir()
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "lone").write_bytes(b"x")
    os.link(tmp_path / "a", tmp_path / "d" / "b")
    (tmp_path / "empty").touch()
    os.link(tmp_path / "empty", tmp_path / "empty2")
    root = walk(tmp_path)
    assert links(root) == groups("a d/b", "empty empty2")
    assert paths(root) == [b"/", b"/a", b"/d", b"/d/b", b"/empty", b"/empty2", b"/lone"]
    lone = get(root, b"lone")
    assert isinstance(lone, RegularFile)
    assert isinstance(lone.content, Unread)
    assert native.IMPLEMENTATION in {"pure", "native"}
