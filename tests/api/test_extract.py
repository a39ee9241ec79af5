"""Trees back on disk: equal to what they were made of, and never outside."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from cfstools.api.build import build
from cfstools.api.extract import CopyMode, extract
from cfstools.errors import (
    CfsError,
    CheckFailed,
    ImageError,
    InputError,
    LimitExceeded,
    StoreError,
)
from cfstools.store import DirectoryStore, MemoryStore, StoreWriter
from cfstools.tree import Entry, External, HardLink, Symlink
from cfstools.verity import object_path
from cfstools.view.contents import PIECE
from tests.api.extracting import GID, UID, directory, file, put
from tests.compat.disk import make_tree
from tests.compat.mounted import differences

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
        def stage(self, name: str, total: int | None, unit: str) -> Self:
            seen.append((name, total, unit))
            return self

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
    from cfstools.output.removal import empty_directory

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
