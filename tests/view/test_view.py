"""Images and stores as read-only files: what paths lead to, and contents that are checked while they are read."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfstools import native
from cfstools.api.build import build
from cfstools.errors import CfsError, CheckFailed, InputError, StoreError
from cfstools.linux import verity as kernel_verity
from cfstools.sources.image_file import load_image
from cfstools.store import DirectoryStore, MemoryStore, Store, StoreChain, StoreWriter
from cfstools.threadpool import ThreadPool
from cfstools.tree import (
    Blob,
    Content,
    Directory,
    External,
    HardLink,
    Located,
    Piece,
    RegularFile,
    Socket,
    Stamp,
    Symlink,
    Unread,
)
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from cfstools.view.contents import PIECE
from cfstools.view.nodes import View, find, walk
from tests.compat.disk import make_tree

BLOCK = 4096
LARGE = bytes(range(256)) * (PIECE // 256 * 2) + b"and a bit more"


def directory(**entries: Directory | RegularFile | Symlink | HardLink | Socket) -> Directory:
    return Directory(mode=0o040755, entries={name.encode(): entry for name, entry in entries.items()})


def file(content: Content, size: int | None = None) -> RegularFile:
    if size is None:
        assert isinstance(content, bytes)
        size = len(content)
    return RegularFile(mode=0o100644, size=size, content=content)


def link(target: bytes) -> Symlink:
    return Symlink(mode=0o120777, target=target)


def external(data: bytes, *, params: Params = Params()) -> RegularFile:  # noqa: B008 - frozen
    digest = digest_bytes(data, params)
    return file(External(digest, object_path(digest)), len(data))


def read(view: View, inode: RegularFile) -> bytes:
    with view.open(inode, b"/the file") as contents:
        return b"".join(contents.pieces())


def complaint(view: View, inode: RegularFile, kind: type[CfsError] = CheckFailed) -> str:
    with pytest.raises(CfsError) as caught, view.open(inode, b"/the file") as contents:
        for _ in contents.pieces():
            pass
    assert type(caught.value) is kind
    return str(caught.value)


# Paths


@pytest.fixture
def tree() -> View:
    leaf = file(b"leaf")
    root = directory(
        usr=directory(lib=directory(leaf=leaf, up=link(b"../../etc/conf")), bin=link(b"lib")),
        etc=directory(conf=file(b"conf"), again=HardLink(leaf)),
        lib=link(b"/usr/lib"),
        out=link(b"../../../etc"),
        loop=link(b"loop"),
        dangling=link(b"missing/x"),
        dot=link(b"."),
        through=link(b"etc/conf/"),
        empty=link(b""),
        socket=Socket(mode=0o140755),
    )
    return View(root, MemoryStore())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"/usr/lib/leaf", b"leaf"),
        (b"usr//lib/./leaf", b"leaf"),
        (b"/etc/again", b"leaf"),
        (b"/lib/leaf", b"leaf"),
        (b"/usr/bin/leaf", b"leaf"),
        (b"/usr/../../lib/leaf", b"leaf"),
        (b"/out/conf", b"conf"),
        (b"/dot/dot/out/conf", b"conf"),
        (b"/lib/../lib/leaf", b"leaf"),
        (b"/empty/etc/conf", b"conf"),
    ],
)
def test_paths_lead_where_they_would_in_a_root(tree: View, path: bytes, wanted: bytes) -> None:
    found = find(tree, path)
    assert isinstance(found, RegularFile)
    assert found.content == wanted
    assert find(tree, path, follow=True) is found


def test_the_last_link_is_followed_when_asked(tree: View) -> None:
    assert isinstance(find(tree, b"/usr/lib/up"), Symlink)
    followed = find(tree, b"/usr/lib/up", follow=True)
    assert isinstance(followed, RegularFile)
    assert followed.content == b"conf"
    assert find(tree, b"/through", follow=True) is followed
    assert find(tree, b"/lib", follow=True) is find(tree, b"/usr/lib")
    assert find(tree, b"/socket", follow=True) is tree.root.entries[b"socket"]


@pytest.mark.parametrize("path", [b"", b"/", b"..", b"/../..", b"/usr/..", b"//.//", b"/dot/."])
def test_the_root(tree: View, path: bytes) -> None:
    assert find(tree, path) is tree.root


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"/missing", "/missing: no such name in the image"),
        (b"/missing/..", "no such name"),
        (b"/dangling", "no such name"),
        (b"/etc/conf/x", "/etc/conf/x: not a directory on the way"),
        (b"/etc/conf/..", "not a directory on the way"),
        (b"/socket/x", "not a directory on the way"),
        (b"/loop", "too many symbolic links"),
        (b"/a b", r"/a\x20b: no such name"),
    ],
)
def test_paths_that_lead_nowhere(tree: View, path: bytes, why: str) -> None:
    with pytest.raises(InputError) as caught:
        find(tree, path, follow=True)
    assert why in str(caught.value)


def test_forty_links_are_followed() -> None:
    chain = {f"l{number}": link(f"l{number + 1}".encode()) for number in range(41)}
    view = View(directory(**chain, l41=file(b"end")), MemoryStore())
    assert isinstance(find(view, b"l1", follow=True), RegularFile)
    with pytest.raises(InputError, match="too many"):
        find(view, b"l0", follow=True)


# Nodes


def test_names_in_order_and_one_node_for_all_names_of_an_inode(tree: View) -> None:
    names = [path for path, _, _ in walk(tree)]
    assert names[:5] == [b"/", b"/dangling", b"/dot", b"/empty", b"/etc"]
    assert names == sorted(names, key=lambda path: path.split(b"/"))
    leaf = find(tree, b"/usr/lib/leaf")
    assert find(tree, b"/etc/again") is leaf
    assert tree.linked == {leaf}
    etc = tree.lookup(tree.root, b"etc")
    assert etc is not None
    assert [name for name, _ in tree.children(etc)] == [b"again", b"conf"]
    assert tree.lookup(etc, b"again") is leaf
    assert tree.lookup(etc, b"..") is None
    assert tree.lookup(leaf, b"x") is None
    assert list(tree.children(leaf)) == []


def test_what_only_one_kind_has(tree: View) -> None:
    assert tree.target(find(tree, b"/lib")) == b"/usr/lib"
    with pytest.raises(InputError, match="no symbolic link"):
        tree.target(tree.root)
    with pytest.raises(InputError, match="/etc: is no file with contents"):
        tree.open(find(tree, b"/etc"), b"/etc")


def test_a_part_of_a_view(tree: View) -> None:
    part = tree.only((b"/etc", b"usr/lib/leaf"))
    wanted = [b"/", b"/etc", b"/etc/again", b"/etc/conf", b"/usr", b"/usr/lib", b"/usr/lib/leaf"]
    assert [path for path, _, _ in walk(part)] == wanted
    assert tree.only(()) is tree
    with pytest.raises(InputError, match="no such name"):
        tree.only((b"/missing",))


def test_a_deep_view_takes_no_recursion() -> None:
    root = here = directory()
    for _ in range(3000):
        here.entries[b"d"] = here = directory()
    assert sum(1 for _ in walk(View(root, MemoryStore()))) == 3001


@pytest.mark.root
@pytest.mark.parametrize("seed", range(4, 8))
def test_attributes_are_those_of_the_source(tmp_path: Path, seed: int) -> None:
    source = make_tree(tmp_path / "source", seed, whiteouts=False)
    build(bytes(source), bytes(tmp_path / "image"), stores=[bytes(tmp_path / "store")])
    view = View(load_image(bytes(tmp_path / "image")), MemoryStore())
    for path, _, node in walk(view):
        on_disk = bytes(source) + path
        status, found = os.lstat(on_disk), view.attributes(node)
        assert found[:3] == (status.st_mode, status.st_uid, status.st_gid)
        assert found.mtime_sec * 10**9 + found.mtime_nsec == status.st_mtime_ns
        assert found.xattrs == {
            os.fsencode(key): os.getxattr(on_disk, key, follow_symlinks=False)
            for key in os.listxattr(on_disk, follow_symlinks=False)
        }
        assert found.rdev == status.st_rdev
        if not stat.S_ISDIR(status.st_mode):
            assert (found.nlink, found.size) == (status.st_nlink, status.st_size)
        else:
            assert found.nlink == 2 + sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(on_disk))
    assert sum(1 for _ in walk(view)) == 1 + sum(len(below) + len(files) for _, below, files in os.walk(source))


# Contents


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("size", [0, 1, 65, PIECE - 1, PIECE, PIECE + 1, len(LARGE)])
def test_contents_are_read_whole(size: int, algorithm: Algorithm) -> None:
    params = Params(algorithm=algorithm)
    data = LARGE[:size]
    store = MemoryStore()
    store.add(data, params)
    inode = external(data, params=params)
    view = View(directory(f=inode), store)
    assert read(view, inode) == data
    with view.open(inode, b"/f") as contents:
        assert contents.size == size
        contents.check()
        assert contents.fileno() is None
    contents.close()


def test_contents_in_the_image() -> None:
    view = View(directory(), StoreChain([]))
    for inode, data in [(file(b"inline"), b"inline"), (file(b""), b""), (file(External(None, None), 0), b"")]:
        assert read(view, inode) == data
        with view.open(inode, b"/f") as contents:
            assert contents.fileno() is None
            assert contents.read(0, 99) == data
            contents.check()


@pytest.mark.parametrize("size", [70, PIECE, len(LARGE)])
@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "swapped"])
def test_damage_is_met(tmp_path: Path, size: int, damage: str) -> None:
    data = LARGE[:size]
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest = writer.add_bytes(data).digest
        path = Path(store.describe(digest))
        match damage:
            case "flipped":
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
                why = "is damaged: its fs-verity digest is "
            case "short":
                os.truncate(path, size - 1)
                why = f"has {size - 1} bytes instead of {size}"
            case "long":
                path.write_bytes(data + b"more")
                why = f"has more than {size} bytes instead of {size}"
            case "empty":
                path.write_bytes(b"")
                why = f"has 0 bytes instead of {size}"
            case _:
                path.write_bytes(bytes(size))
                why = f"is damaged: its fs-verity digest is {digest_bytes(bytes(size)).hex()}"
        inode = external(data)
        view = View(directory(f=inode), store)
        assert complaint(view, inode).startswith(f"/the\\x20file: object {path} {why}")
        given = []
        with pytest.raises(CheckFailed), view.open(inode, b"/f") as contents:
            given += [len(piece) for piece in contents.pieces()]
        # Never is the last piece given out.
        assert sum(given) <= max(0, size - 1) // PIECE * PIECE
        with view.open(inode, b"/f") as contents, pytest.raises(CheckFailed, match="object"):
            contents.check()


def test_a_clone_is_checked(tmp_path: Path) -> None:
    store = MemoryStore()
    store.add(LARGE)
    with View(directory(), store).open(external(LARGE), b"/f") as contents:
        for data, right in [(LARGE, True), (LARGE[:-1], False), (LARGE[1:] + b"!", False), (LARGE + b"x", False)]:
            (tmp_path / "clone").write_bytes(data)
            with (tmp_path / "clone").open("rb") as clone:
                if right:
                    contents.check(clone.fileno())
                else:
                    with pytest.raises(CheckFailed, match=r"^/f: object "):
                        contents.check(clone.fileno())


def test_a_clone_without_a_digest(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put(b"lib/file", b"data")
    (tmp_path / "clone").write_bytes(b"else")
    (tmp_path / "long").write_bytes(b"too long")
    with View(directory(), store).open(file(External(None, b"/lib/file"), 4), b"/f") as contents:
        with (tmp_path / "clone").open("rb") as clone:
            contents.check(clone.fileno())
        with (
            (tmp_path / "long").open("rb") as clone,
            pytest.raises(CheckFailed, match="lib/file has more than 4"),
        ):
            contents.check(clone.fileno())


def test_where_objects_are_looked_for() -> None:
    store = MemoryStore()
    digest = digest_bytes(b"data")
    by_payload = file(External(digest, b"/named/elsewhere"), 4)
    store.put(b"named/elsewhere", b"data")
    view = View(directory(), store)
    assert read(view, by_payload) == b"data"
    store.put(b"named/elsewhere", b"dada")
    assert "/the\\x20file: object /named/elsewhere is damaged" in complaint(view, by_payload)
    store.add(b"data")
    assert read(view, by_payload) == b"data"
    for content in (External(digest, None), External(None, object_path(digest)), External(None, b"named/elsewhere")):
        assert read(view, file(content, 4)) in (b"data", b"dada")


def test_what_is_missing_is_named() -> None:
    view = View(directory(), StoreChain([MemoryStore(), MemoryStore()]))
    digest = digest_bytes(b"data")
    name = object_path(digest).decode()
    for content, shown in [
        (External(digest, object_path(digest)), name),
        (External(digest, None), name),
        (External(digest, b"other place"), name),
        (External(None, b"other place"), r"other\x20place"),
    ]:
        assert complaint(view, file(content, 4)) == f"/the\\x20file: object {shown} is in none of the stores"
    for unknown in (External(None, None), Unread(b"x", Stamp(0, 0, 4, 0, 0))):
        said = complaint(view, file(unknown, 4), InputError)
        assert said == "/the\\x20file: its contents are unknown: no object is named"
    said = complaint(view, file(Located([Piece(4, Blob(1, 9, None, b"a tar"))]), 4), InputError)
    assert said == "/the\\x20file: its contents lie in pieces of a tar, not in an object of their own"


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    digest = digest_bytes(b"data")
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        Path(store.describe(digest)).mkdir(parents=True)
        said = complaint(View(directory(), store), external(b"data"), StoreError)
    assert said.startswith("/the\\x20file: ")
    assert said.endswith("not a regular file")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(bytes(tmp_path / "objects"), create=True) as opened:
        with StoreWriter(opened) as writer:
            for data in (b"data", LARGE):
                writer.add_bytes(data)
        yield opened


@pytest.mark.parametrize("way", ["pieces", "check", "large", "stat", "read"])
def test_reading_may_fail(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def fail(*_args: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with View(directory(), store).open(external(LARGE if way == "large" else b"data"), b"/f") as contents:
        place, name = {"large": (native, "digest_range"), "stat": (os, "fstat")}.get(way, (os, "pread"))
        monkeypatch.setattr(place, name, fail)
        ways: dict[str, Callable[[], object]] = {
            "pieces": lambda: list(contents.pieces()),
            "read": lambda: contents.read(0, 4),
            "stat": lambda: contents.has_holes,
        }
        with pytest.raises(StoreError, match=r"^/f: object .* cannot be read: (cannot read: )?Input/output error$"):
            ways.get(way, contents.check)()
        monkeypatch.undo()


def test_short_reads_are_made_whole(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 100_000), offset))
    inode = external(LARGE)
    view = View(directory(), store)
    with view.open(inode, b"/f") as contents:
        pieces = list(contents.pieces())
    assert b"".join(pieces) == LARGE
    assert [len(piece) for piece in pieces[:-1]] == [PIECE] * (len(pieces) - 1)
    longer = file(inode.content, len(LARGE) + PIECE)
    assert f"has {len(LARGE)} bytes instead of" in complaint(view, longer)


def test_what_the_kernel_guards_is_not_hashed(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every machine has fs-verity, so its answer is given here; the kernel would refuse the damaged reads."""
    inode = external(b"data")
    digest = digest_bytes(b"data")
    Path(store.describe(digest)).write_bytes(b"else")
    view = View(directory(), store)
    monkeypatch.setattr(kernel_verity, "measure", lambda _fd: (1, digest))
    assert read(view, inode) == b"else"
    with view.open(inode, b"/f") as contents:
        contents.check()
        assert contents.read(1, 2) == b"ls"
    for answer in [(2, digest), (1, bytes(32)), None]:
        monkeypatch.setattr(kernel_verity, "measure", lambda _fd, answer=answer: answer)
        assert "is damaged" in complaint(view, inode)

    def fail(_fd: int) -> None:
        raise OSError(errno.EOVERFLOW, "")

    monkeypatch.setattr(kernel_verity, "measure", fail)
    assert "is damaged" in complaint(view, inode)


# Random reads


SPANS = [(0, 1), (0, BLOCK), (1, BLOCK), (BLOCK - 1, 2), (PIECE - 5, BLOCK + 10), (len(LARGE) - 3, 99), (len(LARGE), 1)]


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("in_file", [True, False])
def test_random_reads(tmp_path: Path, algorithm: Algorithm, in_file: bool) -> None:
    params = Params(algorithm=algorithm)
    with DirectoryStore(bytes(tmp_path / "objects"), create=True) as on_disk:
        memory = MemoryStore()
        memory.add(LARGE, params)
        with StoreWriter(on_disk, params=params) as writer:
            writer.add_bytes(LARGE)
        stores: Store = on_disk if in_file else memory
        with View(directory(), stores).open(external(LARGE, params=params), b"/f") as contents:
            for offset, count in SPANS:
                assert contents.read(offset, count) == LARGE[offset : offset + count], (offset, count)


def test_threads_share_random_reads(store: DirectoryStore) -> None:
    chance = random.Random(1)
    spans = [(chance.randrange(len(LARGE)), chance.randrange(1, BLOCK * 2)) for _ in range(200)]
    with View(directory(), store).open(external(LARGE), b"/f") as contents, ThreadPool(4, "read") as workers:
        calls = [workers.submit(contents.read, *span) for span in spans]
        for (offset, count), call in zip(spans, calls, strict=True):
            assert call.result() == LARGE[offset : offset + count]


@pytest.mark.parametrize("size", [len(LARGE) - 1, len(LARGE) + 1, len(LARGE)])
def test_random_reads_give_nothing_of_a_damaged_object(store: DirectoryStore, size: int) -> None:
    path = Path(store.describe(digest_bytes(LARGE)))
    path.write_bytes((LARGE[:-1] + b"?!")[:size])
    with View(directory(), store).open(external(LARGE), b"/f") as contents:
        for offset in (0, PIECE, 0):
            with pytest.raises(CheckFailed, match=r"^/f: object .* (is damaged: its|has )"):
                contents.read(offset, 1)


def test_what_changes_after_the_check_is_not_given_out(store: DirectoryStore) -> None:
    path = Path(store.describe(digest_bytes(LARGE)))
    with View(directory(), store).open(external(LARGE), b"/f") as contents:
        assert contents.read(0, 9) == LARGE[:9]
        with path.open("r+b") as changed:
            changed.seek(PIECE)
            changed.write(b"?")
        assert contents.read(0, 9) == LARGE[:9]
        with pytest.raises(CheckFailed, match=r"^/f: object .* was changed after it was checked$"):
            contents.read(PIECE + 5, 9)
        # At the border of a block nothing of what is left is wrong.
        for length in (BLOCK * 3, 5, 0):
            os.truncate(path, length)
            with pytest.raises(CheckFailed, match=r"was (cut|changed) after"):
                contents.read(length // BLOCK * BLOCK - BLOCK if length > BLOCK else 0, BLOCK + 1)


def test_random_reads_without_a_digest() -> None:
    store = MemoryStore()
    store.put(b"lib/file", b"data")
    view = View(directory(), store)
    with view.open(file(External(None, b"lib/file"), 4), b"/f") as contents:
        assert contents.read(1, 9) == b"ata"
    with (
        view.open(file(External(None, b"lib/file"), 5), b"/f") as contents,
        pytest.raises(CheckFailed, match="4 bytes"),
    ):
        contents.read(1, 1)
