"""Trees back on disk: equal to what they were made of, never outside, whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.extract import CopyMode, ExtractOptions, ExtractReport, extract, extract_view
from cfstools.errors import (
    CfsError,
    CheckFailed,
    ImageError,
    InputError,
    LimitExceeded,
    StoreError,
    Unsupported,
)
from cfstools.linux import files
from cfstools.progress import SILENT, Progress
from cfstools.store import DirectoryStore, MemoryStore, Store, StoreChain, StoreWriter
from cfstools.tree import Device, Directory, Entry, External, Fifo, HardLink, RegularFile, Socket, Symlink, Xattrs
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import object_path
from cfstools.view import PIECE, View
from tests.compat.disk import make_tree
from tests.compat.mounted import differences
from tests.store.conftest import loop_mount

NOBODY = 65534
UID, GID = os.geteuid(), os.getegid()


def directory(entries: dict[bytes, Entry] | None = None, *, mode: int = 0o755, mtime: int = 5) -> Directory:
    return Directory(mode=stat.S_IFDIR | mode, uid=UID, gid=GID, mtime_sec=mtime, entries=entries or {})


def file(content: bytes = b"x", *, mode: int = 0o644, xattrs: Xattrs | None = None, mtime: int = 5) -> RegularFile:
    return RegularFile(
        mode=stat.S_IFREG | mode,
        uid=UID,
        gid=GID,
        mtime_sec=mtime,
        mtime_nsec=7,
        xattrs=xattrs or {},
        size=len(content),
        content=content,
    )


def put(
    root: Directory,
    target: Path,
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
    threads: int = 1,
    **options: object,
) -> ExtractReport:
    view = View(root, store or StoreChain([]))
    chosen = ExtractOptions(**options)  # type: ignore[arg-type]
    return extract_view(view, bytes(target), options=chosen, threads=threads, progress=progress)


def left_out(report: ExtractReport) -> dict[str, tuple[int, str]]:
    return {left.what: (left.count, left.first) for left in report.left_out}


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place to extract to; afterwards nothing temporary may be beside it."""
    place = tmp_path / "place"
    place.mkdir()
    yield place / "out"
    assert set(os.listdir(place)) <= {"out"}


@contextmanager
def as_nobody(*places: Path) -> Iterator[None]:
    """Without the rights of root; *places* are given away."""
    for place in places:
        os.chown(place, NOBODY, NOBODY)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """The temporary directory, with the way to it open to everyone."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    return tmp_path


# Equal to the source


@pytest.mark.root
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_random_trees_come_back(tmp_path: Path, out: Path, seed: int, threads: int) -> None:
    source = make_tree(tmp_path / "source", seed, whiteouts=False)
    image, store = bytes(tmp_path / "image"), bytes(tmp_path / "store")
    build(bytes(source), image, stores=[store])
    report = extract(image, bytes(out), stores=[store], threads=threads)
    assert list(differences(bytes(source), bytes(out))) == []
    assert report.left_out == ()
    assert report.bytes_linked == 0
    names = 1 + sum(len(folders) + len(leaves) for _, folders, leaves in os.walk(source))
    counted = report.directories + report.files + report.symlinks + report.special_files + report.hard_links
    assert counted == names


@pytest.mark.root
@pytest.mark.parametrize("seed", range(4, 8))
def test_what_was_extracted_gives_the_same_image(tmp_path: Path, out: Path, seed: int) -> None:
    """With whiteouts too, whose directories read back with marks that the format gave them."""
    source = make_tree(tmp_path / "source", seed)
    image, store = bytes(tmp_path / "image"), bytes(tmp_path / "store")
    digest = build(bytes(source), image, stores=[store]).digest
    extract(image, bytes(out), stores=[store])
    assert all("overlay.opaque" in line for line in differences(bytes(source), bytes(out)))
    assert build(bytes(out), None).digest == digest


def test_the_smallest_tree(out: Path) -> None:
    report = put(directory(mode=0o711), out)
    assert os.listdir(out) == []
    status = out.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o711, 5)
    assert report.to_dict() == {
        "schema": 1,
        "directory": str(out),
        "directories": 1,
        **dict.fromkeys(["files", "symlinks", "special_files", "hard_links"], 0),
        **dict.fromkeys(["bytes_copied", "bytes_cloned", "bytes_linked"], 0),
        "left_out": [],
    }


def test_links_to_what_comes_later(out: Path) -> None:
    """The primary name need not be the first, nor be among the paths chosen."""
    shared, target = file(b"shared"), Symlink(mode=0o120777, uid=UID, gid=GID, target=b"nowhere")
    entries: dict[bytes, Entry] = {b"a": HardLink(shared), b"b": directory({b"l": target, b"s": shared})}
    root = directory({**entries, b"c": HardLink(target), b"d": HardLink(shared)})
    report = put(root, out)
    assert (report.files, report.symlinks, report.hard_links) == (1, 1, 3)
    assert (out / "a").stat().st_ino == (out / "b/s").stat().st_ino == (out / "d").stat().st_ino
    assert (out / "c").lstat().st_ino == (out / "b/l").lstat().st_ino
    report = put(root, out.with_name("out").joinpath("part"), paths=(b"/a", b"/d"))
    assert (report.directories, report.files, report.hard_links) == (1, 1, 1)


def test_only_some_paths(out: Path) -> None:
    root = directory({b"etc": directory({b"conf": file(), b"other": file()}, mode=0o750, mtime=9), b"usr": directory()})
    put(root, out, paths=(b"/etc/conf",))
    assert sorted(path.name for path in out.rglob("*")) == ["conf", "etc"]
    assert (stat.S_IMODE((out / "etc").stat().st_mode), (out / "etc").stat().st_mtime) == (0o750, 9)
    with pytest.raises(InputError, match="/etc/missing: no such name"):
        put(root, out.with_name("no"), paths=(b"/etc/missing",))


def test_many_files_and_bytes(out: Path) -> None:
    store = MemoryStore()
    entries: dict[bytes, Entry] = {}
    for number in range(300):
        entries[b"f%d" % number] = file(b"%d" % number)
    for number in range(10):
        data = bytes([number]) * (PIECE + number)
        entries[b"large%d" % number] = big = file(data)
        big.content = External(store.add(data), None)
    seen: list[tuple[str, int | None, str] | int] = []
    lock = threading.Lock()

    class Seen:
        def start(self, stage: str, total: int | None, unit: str) -> None:
            seen.append((stage, total, unit))

        def advance(self, amount: int) -> None:
            with lock:
                seen.append(amount)

        def finish(self) -> None:
            seen.append(("end", None, ""))

    report = put(directory(entries), out, store=store, threads=4, progress=Seen())
    assert report.bytes_copied == sum(path.stat().st_size for path in out.iterdir())
    assert seen[0] == ("extract", report.bytes_copied, "B")
    assert seen[-1] == ("end", None, "")
    assert sum(amount for amount in seen if isinstance(amount, int)) == report.bytes_copied
    assert (out / "f299").read_bytes() == b"299"
    assert (out / "large9").read_bytes() == bytes([9]) * (PIECE + 9)


def test_a_deep_tree(out: Path) -> None:
    """Deeper than a call stack, with paths longer than one system call takes and more than descriptors go."""
    top = here = directory()
    leaf = file(b"deep")
    for _ in range(1500):
        below = directory(mode=0o500)
        here.entries = {b"d": below, b"f": leaf if here is top else HardLink(leaf)}
        here = below
    report = put(top, out, threads=2)
    assert (report.directories, report.hard_links) == (1501, 1499)
    bottom = os.open(out, os.O_RDONLY)
    for _ in range(1500):
        below_fd = os.open("d", os.O_RDONLY, dir_fd=bottom)
        os.close(bottom)
        bottom = below_fd
    assert os.fstat(bottom).st_mtime == 5
    os.close(bottom)
    # What follows cannot walk as deep as this.
    fd = os.open(out, os.O_RDONLY)
    from cfstools.api.emptying import empty_directory

    empty_directory(fd)
    os.close(fd)


# Never outside


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc", b"../x", b"zero\0byte"])
@pytest.mark.parametrize("kind", ["file", "directory", "link"])
@pytest.mark.parametrize("threads", [1, 2])
def test_names_that_would_lead_elsewhere(out: Path, name: bytes, kind: str, threads: int) -> None:
    shared = file()
    entry: Entry = {"file": file(), "directory": directory(), "link": HardLink(shared)}[kind]  # type: ignore[assignment]
    before = sorted(out.parent.parent.rglob("*"))
    for where in (directory({b"a": shared, name: entry}), directory({b"sub": directory({b"a": shared, name: entry})})):
        with pytest.raises(ImageError, match="no directory can have this name"):
            put(where, out, threads=threads)
    assert sorted(out.parent.parent.rglob("*")) == before


def test_symlinks_lead_nowhere_while_extracting(out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = bytes(outside)
    root = directory(
        {
            b"a": Symlink(mode=0o120777, uid=UID, gid=GID, target=target, mtime_sec=5),
            b"b": directory({b"up": Symlink(mode=0o120777, uid=UID, gid=GID, target=b"../../../outside")}),
        }
    )
    before = outside.stat()
    put(root, out)
    assert os.readlink(out / "a") == str(outside)
    assert outside.stat() == before
    assert (out / "a").lstat().st_mtime == 5


def test_zero_bytes_elsewhere(out: Path) -> None:
    for entry in (Symlink(mode=0o120777, target=b"a\0b"), file(xattrs={b"user.a\0b": b""})):
        with pytest.raises(ImageError, match=r"^/odd: a link or attribute holds a zero byte$"):
            put(directory({b"odd": entry}), out)


def test_paths_too_long(out: Path) -> None:
    top = here = directory()
    for _ in range(70):
        below = directory()
        here.entries = {b"n" * 250: below}
        here = below
    with pytest.raises(LimitExceeded, match="longer than 16384 bytes"):
        put(top, out)
    with pytest.raises(InputError, match="File name too long"):
        put(directory({b"n" * 256: directory()}), out)
    with pytest.raises(InputError, match=r"out/nnn.*cannot write: File name too long"):
        put(directory({b"n" * 256: file()}), out)


def test_what_is_there_is_not_touched(out: Path) -> None:
    out.mkdir()
    (out / "precious").write_bytes(b"mine")
    with pytest.raises(InputError, match="out: is not empty"):
        put(directory({b"precious": file()}), out)
    assert (out / "precious").read_bytes() == b"mine"


# Contents that are not what the image says


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("damage", ["flipped", "missing", "truncated", "longer", "swapped", "directory"])
@pytest.mark.parametrize(
    ("size", "mode"), [(100, CopyMode.AUTO), (PIECE + 100, CopyMode.AUTO), (100, CopyMode.HARDLINK)]
)
def test_damage(out: Path, damage: str, threads: int, size: int, mode: CopyMode) -> None:
    tmp_path = out.parent.parent
    data = os.urandom(size)
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest, other = writer.add_bytes(data).digest, writer.add_bytes(data[::-1]).digest
        path = Path(store.describe(digest))
        kind: type[CfsError] = CheckFailed
        match damage:
            case "flipped":
                path.write_bytes(bytes([data[0] ^ 4]) + data[1:])
            case "missing":
                path.unlink()
            case "truncated":
                os.truncate(path, size // 2)
            case "longer":
                path.write_bytes(data + b"!")
            case "swapped":
                os.replace(store.describe(other), path)
            case _:
                path.unlink()
                path.mkdir()
                kind = StoreError
        damaged = file(data)
        damaged.content = External(digest, object_path(digest))
        entries: dict[bytes, Entry] = {b"f%d" % number: file() for number in range(200)}
        root = directory({**entries, b"sub": directory({b"the file": damaged})})
        with pytest.raises(CfsError) as caught:
            put(root, out, store=store, threads=threads, contents=mode)
    assert type(caught.value) is kind
    assert caught.value.exit_code == (3 if kind is CheckFailed else 1)
    assert str(caught.value).startswith("/sub/the\\x20file: ")
    assert object_path(digest).decode() in str(caught.value)
    assert not out.exists()


def test_unknown_contents(out: Path) -> None:
    unknown = file(b"12345")
    unknown.content = External(None, None)
    with pytest.raises(InputError, match=r"^/f: its contents are unknown"):
        put(directory({b"f": unknown}), out)


# Whole or not at all


class Stop(BaseException):
    pass


def stop_after(count: int, error: BaseException) -> Progress:
    class Stopper:
        left = count

        def start(self, stage: str, total: int | None, unit: str) -> None:
            pass

        def advance(self, amount: int) -> None:
            Stopper.left -= 1
            if Stopper.left == 0:
                raise error

        def finish(self) -> None:
            pass

    return Stopper()


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_interrupted(out: Path, existing: bool, threads: int, count: int) -> None:
    if existing:
        out.mkdir()
    inside: dict[bytes, Entry] = {b"d%d" % number: directory({b"f": file()}, mode=0o500) for number in range(500)}
    with pytest.raises(Stop):
        put(directory(inside), out, threads=threads, progress=stop_after(count, Stop()))
    assert os.listdir(out.parent) == (["out"] if existing else [])
    assert not existing or os.listdir(out) == []


def test_threads_stop_in_the_middle_of_a_file(out: Path) -> None:
    """One file fails while others, larger, are being copied: these are not finished first."""
    store = MemoryStore()
    data = bytes(64 * PIECE)
    large = file(data)
    large.content = External(store.add(data), None)
    started, advanced = threading.Event(), 0

    class Watch:
        def start(self, stage: str, total: int | None, unit: str) -> None:
            pass

        def advance(self, amount: int) -> None:
            nonlocal advanced
            if amount == 3:
                started.wait(30)
                raise Stop
            advanced += 1
            started.set()

        def finish(self) -> None:
            pass

    root = directory({b"a": directory({b"f": file(b"abc")}), b"b": directory({b"f": large})})
    with pytest.raises(Stop):
        put(root, out, store=store, threads=2, progress=Watch())
    assert advanced < 64
    assert not out.exists()


@pytest.mark.root
@pytest.mark.parametrize("existing", [False, True])
def test_no_space(tmp_path: Path, existing: bool) -> None:
    for place in loop_mount(tmp_path, "ext4", 8 << 20):
        target = place / "out"
        if existing:
            target.mkdir()
        store = MemoryStore()
        data = os.urandom(64 << 20)
        large = file(data)
        large.content = External(store.add(data), None)
        before = sorted(place.rglob("*"))
        with pytest.raises(InputError, match="out/sub/large: cannot write: No space left on device"):
            put(directory({b"sub": directory({b"large": large})}), target, store=store)
        assert sorted(place.rglob("*")) == before


def test_failures_of_the_file_system(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    shared = file()
    root = directory({b"a": shared, b"b": HardLink(shared)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(InputError, match="out/b: cannot write: Too many links"):
            put(root, out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        with pytest.raises(InputError, match="out/: cannot write: Too many links"):
            put(directory(), out)
    assert not out.exists()


# How contents get there


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[DirectoryStore, RegularFile]]:
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest = writer.add_bytes(b"d" * 5000).digest
        inode = file(b"d" * 5000)
        inode.content = External(digest, None)
        yield store, inode


def test_hard_links_to_objects(out: Path, stored: tuple[DirectoryStore, RegularFile]) -> None:
    store, plain = stored
    assert isinstance(plain.content, External)
    assert plain.content.digest is not None
    path = Path(store.describe(plain.content.digest))
    before = path.stat()

    def variant(**changes: object) -> RegularFile:
        made = file(b"d" * 5000)
        made.content = plain.content
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    entries: dict[bytes, Entry] = {
        b"inline": file(),
        b"mode": variant(mode=0o100755),
        b"owner": variant(uid=1234 if UID == 0 else UID, mode=0o100644 if UID == 0 else 0o100600),
        b"plain": plain,
        b"plain again": HardLink(plain),
        b"same": variant(mtime_sec=before.st_mtime_ns // 10**9, mtime_nsec=before.st_mtime_ns % 10**9),
        b"xattrs": variant(xattrs={b"user.a": b"1"}),
    }
    report = put(directory(entries), out, store=store, contents=CopyMode.HARDLINK)
    linked = {name for name in entries if (out / os.fsdecode(name)).stat().st_ino == before.st_ino}
    assert linked == {b"plain", b"plain again", b"same"}
    assert left_out(report) == {"modification times of hard-linked objects": (1, "/plain")}
    assert (report.bytes_linked, report.bytes_copied) == (10_000, 15_001)
    now = path.stat()
    assert (now.st_mode, now.st_uid, now.st_gid, now.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_mtime_ns,
    )
    assert os.listxattr(path) == []
    assert (out / "mode").stat().st_mtime == pytest.approx(5, abs=1e-6)


def test_objects_with_attributes_of_their_own(out: Path, stored: tuple[DirectoryStore, RegularFile]) -> None:
    store, plain = stored
    assert isinstance(plain.content, External)
    assert plain.content.digest is not None
    path = Path(store.describe(plain.content.digest))
    os.setxattr(path, "user.a", b"1")
    for xattrs, linked in [({}, False), ({b"user.a": b"2"}, False), ({b"user.a": b"1"}, True)]:
        plain.xattrs = xattrs
        report = put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
        assert (report.bytes_linked > 0) is linked
        assert os.listxattr(out / "f") == [key.decode() for key in xattrs]
        (out / "f").unlink()
        out.rmdir()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EIO])
def test_objects_that_cannot_be_linked(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, plain = stored

    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "link_tmpfile", refuse)
    if number == errno.EIO:
        with pytest.raises(InputError, match="out/f: cannot write"):
            put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
    else:
        report = put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
        assert (report.bytes_copied, report.left_out) == (5000, ())


def test_stores_without_attributes(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = stored

    def refuse(*_args: object) -> list[str]:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    assert put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK).bytes_linked == 5000


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_clones(tmp_path: Path, kind: str) -> None:
    for place in loop_mount(tmp_path, kind, 320 << 20):
        data = os.urandom(8 << 20)
        with DirectoryStore(bytes(place / "store"), create=True) as store:
            with StoreWriter(store) as writer:
                digest = writer.add_bytes(data).digest
            inode = file(data, mode=0o4711)
            inode.content = External(digest, None)
            used = free_bytes(place)
            for mode in (CopyMode.AUTO, CopyMode.REFLINK):
                report = put(directory({b"f": inode, b"i": file()}), place / mode.value, store=store, contents=mode)
                assert (report.bytes_cloned, report.bytes_copied) == (len(data), 1)
                assert (place / mode.value / "f").read_bytes() == data
                assert stat.S_IMODE((place / mode.value / "f").stat().st_mode) == 0o4711
            assert used - free_bytes(place) < len(data) // 2
            report = put(directory({b"f": inode}), place / "copy", store=store, contents=CopyMode.COPY)
            assert (report.bytes_cloned, report.bytes_copied) == (0, len(data))
            path = Path(store.describe(digest))
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(CheckFailed, match=r"^/f: object .* is damaged"):
                put(directory({b"f": inode}), place / "damaged", store=store)
            assert not (place / "damaged").exists()
            with pytest.raises(Unsupported, match="cannot be cloned"):
                put(directory({b"f": inode}), tmp_path / "elsewhere", store=store, contents=CopyMode.REFLINK)
            os.truncate(path, 5)


def free_bytes(place: Path) -> int:
    os.sync()
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


def test_a_clone_where_there_are_none(out: Path) -> None:
    store = MemoryStore()
    inode = file(b"d" * 5000)
    inode.content = External(store.add(b"d" * 5000), None)
    with pytest.raises(Unsupported, match="out/f: objects cannot be cloned there"):
        put(directory({b"f": inode}), out, store=store, contents=CopyMode.REFLINK)


# What is chosen, and what cannot be


def everything() -> Directory:
    """Inodes that only root can make as they are."""
    other = {"uid": 1234, "gid": 4321, "mtime_sec": 5}
    special = file(b"suid", mode=0o6755, xattrs={b"user.a": b"1", b"trusted.t": b"2", b"security.s": b"3"})
    foreign = RegularFile(mode=0o106711, size=1, content=b"f", **other)  # type: ignore[arg-type]
    null = Device(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), **other)  # type: ignore[arg-type]
    return directory(
        {
            b"block": Device(mode=stat.S_IFBLK | 0o660, rdev=os.makedev(7, 300), **other),  # type: ignore[arg-type]
            b"dir": Directory(mode=0o043755, uid=1234, gid=GID, mtime_sec=5, xattrs={b"trusted.d": b"4"}),
            b"fifo": Fifo(mode=stat.S_IFIFO | 0o600, uid=UID, gid=GID, mtime_sec=5),
            b"foreign": foreign,
            b"link": Symlink(mode=0o120777, target=b"x", xattrs={b"trusted.l": b"5"}, **other),
            b"null": null,
            b"null again": HardLink(null),
            b"socket": Socket(mode=stat.S_IFSOCK | 0o755, uid=UID, gid=GID, mtime_sec=5),
            b"special": special,
            b"whiteout": Device(mode=stat.S_IFCHR | 0o600, rdev=0, uid=UID, gid=GID, mtime_sec=5),
        }
    )


def test_what_an_ordinary_user_holds(open_tmp: Path) -> None:
    if UID:
        pytest.skip("gives up the rights of root")
    place = open_tmp / "place"
    place.mkdir()
    root = everything()
    for inode in (root, *root.entries.values()):
        if not isinstance(inode, HardLink) and inode.uid == UID:
            inode.uid, inode.gid = NOBODY, NOBODY
    with as_nobody(place):
        report = put(root, place / "out")
    assert left_out(report) == {
        "device nodes": (3, "/block"),
        "owners": (3, "/foreign"),
        "setuid and setgid bits": (2, "/foreign"),
        "extended attributes trusted.*": (3, "/link"),
        "extended attributes security.*": (1, "/special"),
    }
    modes = {path.name: stat.filemode(path.lstat().st_mode) for path in (place / "out").iterdir()}
    assert modes == {
        "dir": "drwxr-xr-t",
        "fifo": "prw-------",
        "foreign": "-rwx--x--x",
        "link": "lrwxrwxrwx",
        "socket": "srwxr-xr-x",
        "special": "-rwsr-sr-x",
        "whiteout": "c" + "rw-------",
    }
    for path in (place / "out").iterdir():
        status = path.lstat()
        assert (status.st_uid, status.st_gid, status.st_mtime_ns // 10**9) == (NOBODY, NOBODY, 5), path
    assert os.listxattr(place / "out/special") == ["user.a"]


def test_closed_directories_of_an_ordinary_user(open_tmp: Path) -> None:
    if UID:
        pytest.skip("gives up the rights of root")
    place = open_tmp / "place"
    place.mkdir()
    closed = directory({b"b": directory({b"f": file(mode=0o000)}, mode=0o000), b"c": directory(mode=0o555)}, mode=0o000)
    with as_nobody(place):
        put(directory({b"a": closed}, mode=0o500), place / "out", threads=2)
        with pytest.raises(Stop):
            put(directory({b"a": closed, b"z": file()}), place / "no", progress=stop_after(2, Stop()))
        with pytest.raises(InputError):
            put(directory(), open_tmp / "not mine")
    assert stat.S_IMODE((place / "out/a/b").stat().st_mode) == 0
    assert os.listdir(place) == ["out"]


@pytest.mark.root
def test_whiteouts_where_users_may_not_make_them(open_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    place = open_tmp / "place"
    place.mkdir()
    whiteout = Device(mode=stat.S_IFCHR, rdev=0)
    root = directory({b"a": directory(), b"w": whiteout, b"w2": HardLink(whiteout)})
    monkeypatch.setattr(os, "mknod", refuse)
    with as_nobody(place):
        assert left_out(put(root, place / "out"))["device nodes"] == (2, "/w")
    with pytest.raises(InputError, match="no/w: cannot make a device node: Operation not permitted") as caught:
        put(root, place / "no", shared=True)
    assert caught.value.hint == "--skip-devices leaves them out"
    report = put(root, place / "without", devices=False, shared=True)
    assert (report.left_out, report.special_files, report.hard_links) == ((), 0, 0)


@pytest.mark.root
def test_root_without_owners(out: Path) -> None:
    report = put(everything(), out, owners=False)
    assert left_out(report) == {"setuid and setgid bits": (3, "/foreign")}
    assert {path.lstat().st_uid for path in out.iterdir()} == {0}
    assert stat.S_IMODE((out / "special").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "foreign").stat().st_mode) == 0o711


@pytest.mark.root
def test_the_group_of_a_setgid_directory(out: Path) -> None:
    os.chown(out.parent, 0, 1234)
    out.parent.chmod(0o2755)
    put(directory({b"d": directory({b"f": file()})}), out)
    for path in (out, out / "d", out / "d/f"):
        assert path.stat().st_gid == 0
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o755


@pytest.mark.root
def test_owners_the_kernel_has_no_name_for(out: Path) -> None:
    odd = file(mode=0o4755)
    odd.uid = 2**32 - 1
    report = put(directory({b"f": odd}), out)
    assert left_out(report) == {"owners": (1, "/f"), "setuid and setgid bits": (1, "/f")}
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755


@pytest.mark.root
@pytest.mark.parametrize(("policy", "kept"), [("all", 3), ("user", 1), ("none", 0)])
def test_xattr_policies(out: Path, policy: str, kept: int) -> None:
    report = put(everything(), out, xattrs=XattrPolicy(policy))
    assert len(os.listxattr(out / "special")) == kept
    assert report.left_out == ()


@pytest.mark.parametrize("key", [b"unknown.a", b"user.a"])
def test_attributes_no_file_system_has(open_tmp: Path, key: bytes) -> None:
    if UID:
        pytest.skip("compares root with others")
    place = open_tmp / "place"
    place.mkdir()
    odd: Entry = Symlink(mode=0o120777, uid=NOBODY, gid=NOBODY, target=b"x", xattrs={key: b"1"})
    name = key.decode()
    with pytest.raises(InputError, match=f"out/odd: cannot set extended attribute {name}: Operation not ") as caught:
        put(directory({b"odd": odd}), place / "out")
    assert caught.value.hint is not None
    bad = directory()
    bad.xattrs = {b"unknown.a": b""}
    with pytest.raises(InputError, match="out/d: cannot set extended attribute"):
        put(directory({b"d": bad}), place / "out")
    with as_nobody(place):
        report = put(directory({b"odd": odd}), place / "out")
    assert left_out(report)[f"extended attributes {name.partition('.')[0]}.*"] == (1, "/odd")


@pytest.mark.parametrize("seconds", [-(2**63), -(2**31) - 1, -1, 0, 2**31, 2**40, 2**63 - 1])
def test_times_at_the_ends(out: Path, seconds: int) -> None:
    """What the file system cannot hold is cut by the kernel and listed; what it can is exact."""
    entries: dict[bytes, Entry] = {
        b"f": file(mtime=seconds),
        b"l": Symlink(mode=0o120777, uid=UID, gid=GID, target=b"x", mtime_sec=seconds),
        b"d": directory(mtime=seconds),
    }
    report = put(directory(entries), out)
    exact = {
        "f": seconds * 10**9 + 7,
        "l": seconds * 10**9,
        "d": seconds * 10**9,
    }
    wrong = [name for name, wanted in exact.items() if (out / name).lstat().st_mtime_ns != wanted]
    assert len(wrong) in (0, 3)
    assert left_out(report) == ({"modification times": (3, "/f")} if wrong else {})
    assert not wrong or not -(2**31) <= seconds < 2**31


def test_nanoseconds_that_are_too_many(out: Path) -> None:
    odd = file()
    odd.mtime_nsec = 2**32 - 1
    report = put(directory({b"f": odd}), out)
    assert left_out(report) == {"modification times": (1, "/f")}
    assert (out / "f").stat().st_mtime_ns == 5_999_999_999


def test_the_label_every_file_has_does_not_keep_from_linking(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = stored
    monkeypatch.setattr(os, "listxattr", lambda _fd: ["security.selinux"])
    assert put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK).bytes_linked == 5000


def test_errors_name_the_image(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"x" * 5000)
    image = tmp_path / "image"
    build(bytes(source), bytes(image))
    attempts: list[tuple[type[CfsError], str, Callable[[], object]]] = [
        (CheckFailed, f"{image}: /f: object ", lambda: extract(bytes(image), bytes(out))),
        (StoreError, "missing: cannot open the store", lambda: extract(bytes(image), bytes(out), stores=[b"missing"])),
        (InputError, "nothing: cannot open", lambda: extract(b"nothing", bytes(out))),
        (ImageError, str(source / "f"), lambda: extract(bytes(source / "f"), bytes(out))),
    ]
    for kind, start, attempt in attempts:
        with pytest.raises(kind) as caught:
            attempt()
        assert str(caught.value).startswith(start)
