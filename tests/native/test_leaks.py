"""The C copy gives back what it takes: memory, references and descriptors, also when it refuses its arguments."""

from __future__ import annotations

import array
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cfstools.formats.composefs import METACOPY_HEADERS, rewrite_xattrs
from cfstools.formats.dump import parse_dump
from cfstools.formats.dump.parse import _KINDS
from cfstools.tree import NO_XATTRS, Device, Directory, External, Fifo, HardLink, RegularFile, Socket, Symlink
from cfstools.verity import Algorithm, Params
from cfstools.verity.descriptor import descriptor

try:
    _native: ModuleType | None = importlib.import_module("cfstools.native._native")
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="the native functions were not built")
KINDS = (Directory, RegularFile, Symlink, Device, Fifo, Socket, HardLink, External)
NONE = array.array("i", [-1]) * 256
EMPTY = descriptor(b"", 0, Params())
DUMP = b"/ 0 40755 2 0 0 0 1.0 - - -\n" + b"".join(
    b"/f%d 5 100644 1 0 0 0 1.0 - hello - user.k=v\n/l%d 3 120777 1 0 0 0 1.0 abc - -\n" % (n, n) for n in range(20)
)
TURNS = 400
# What the allocator may keep: less than one byte for each turn of the smallest leak would add up to.
SLACK = 2 << 20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    for number in range(40):
        (tmp_path / f"file{number}").write_bytes(bytes([number]) * (number * 300))
    (tmp_path / "link").symlink_to("file1")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def refused(call: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError, BufferError, OSError)):
        call()


def calls(fd: int) -> list[Callable[[], object]]:
    assert _native is not None
    n = _native
    arena = bytearray(1 << 20)
    names = [b"file%d" % number for number in range(40)] + [b"link", b"missing"]
    wanted = [(name, None) for name in names]
    root = parse_dump(DUMP)
    header = METACOPY_HEADERS[Algorithm.SHA256]
    holes = memoryview(bytes(8192))[::2]

    def written() -> None:
        for one in n.write_files(fd, arena, [(0, 5000), (0, 0)], 0o600):
            os.close(one)

    def linked() -> None:
        (one,) = n.write_files(fd, arena, [(0, 10)], 0o600)
        assert n.link_files([(one, fd, b"file1")]) == [17]  # EEXIST
        os.close(one)

    def files(buffer: object, items: object, empty: bytes = EMPTY) -> Callable[[], object]:
        return lambda: n.digest_files(fd, items, buffer, "sha256", 4096, b"", empty, 64, -1, NONE)

    return [
        lambda: n.hash_blocks("sha256", arena, 4096, b""),
        lambda: n.hash_blocks("sha512", b"", 4096, b""),
        lambda: refused(lambda: n.hash_blocks("sha256", holes, 4096, b"")),
        lambda: refused(lambda: n.hash_blocks("sha256", b"x", 4096, b"", "none")),
        files(arena, wanted),
        files(bytearray(), wanted),
        lambda: refused(files(b"not writable", wanted)),
        lambda: refused(files(arena, [*wanted, 1])),
        lambda: refused(files(arena, wanted, b"short")),
        lambda: refused(files(memoryview(arena)[::2], wanted)),
        lambda: n.find_objects(fd, NONE, [(bytes(32), 1)] * 50),
        lambda: refused(lambda: n.find_objects(fd, NONE, [(bytes(32), 1)] * 50 + [None])),
        lambda: refused(lambda: n.find_objects(fd, b"short", [(bytes(32), 1)])),
        written,
        linked,
        lambda: refused(lambda: n.write_files(fd, arena, [(0, 1 << 30)], 0o600)),
        lambda: refused(lambda: n.link_files([(1, 2)])),
        lambda: n.stat_names(fd, names, True),
        lambda: refused(lambda: n.stat_names(fd, [*names, "text"], True)),
        lambda: refused(lambda: n.digest_range("sha256", 999_999, 0, 4096, 4096, b"", -1)),
        lambda: n.encode_tree(root, KINDS, rewrite_xattrs, header, 32, 0),
        lambda: refused(lambda: n.encode_tree(root, (), rewrite_xattrs, header, 32, 0)),
        lambda: n.parse_lines(DUMP[28:], 0, _KINDS, {b"": Directory(mode=0o40755)}, {}, NO_XATTRS, 64, False),
        lambda: refused(lambda: n.parse_lines(b"", -1, _KINDS, {}, {}, NO_XATTRS, 64, False)),
    ]


def test_memory_descriptors_and_references_come_back(place: int) -> None:
    every = calls(place)

    def all_of_them(turns: int) -> None:
        for call in every:
            for _ in range(turns):
                call()

    def references() -> list[int]:
        return [sys.getrefcount(one) for one in (KINDS, EMPTY, NONE, NO_XATTRS, DUMP, *KINDS)]

    all_of_them(TURNS // 4)
    had = references()
    descriptors, before = len(os.listdir("/proc/self/fd")), resident()
    all_of_them(TURNS)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident() - before < SLACK
    assert references() == had


def test_the_interpreter_ends_while_threads_hash() -> None:
    program = """
import threading, time
from cfstools.native import _native
data = bytearray(64 << 20)
def hash_on():
    while True:
        _native.hash_blocks("sha256", data, 4096, b"")
for _ in range(4):
    threading.Thread(target=hash_on, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
