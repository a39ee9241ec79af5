"""The C copy gives back what it takes: memory, references and descriptors, also when it refuses its arguments."""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from operator import lt
from pathlib import Path
from types import ModuleType

import pytest

from cfstools import native
from cfstools.formats.composefs.overlay_xattrs import METACOPY_HEADERS, rewrite_xattrs
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import dump_text, ls_text
from cfstools.formats.erofs.reader import Image
from cfstools.native._names import Maker
from cfstools.tree import NO_XATTRS, Directory, External, RegularFile
from cfstools.tree.model import KINDS, Stamp
from cfstools.verity import Algorithm, Params
from cfstools.verity.merkle import descriptor
from tests.formats.images import write_image

try:
    _native: ModuleType | None = importlib.import_module("cfstools.native._native")
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="the native functions were not built")
NONE = array.array("i", [-1]) * 256
EMPTY = descriptor(b"", 0, Params())
DUMP = b"/ 0 40755 2 0 0 0 1.0 - - -\n" + b"".join(
    b"/f%d 5 100644 1 0 0 0 1.0 - hello - user.k=v\n/l%d 3 120777 1 0 0 0 1.0 abc - -\n" % (n, n) for n in range(20)
)
IMAGE = bytes(write_image(parse_dump(DUMP)))
LINE = b"/%d %d 100644 1 0 0 0 1.0 00/" + b"0" * 62 + b" - " + b"0" * 64 + b"\n"
OBJECTS, TWO_SIZES = (bytes(write_image(parse_dump(DUMP[:28] + LINE % (1, 5) + LINE % (2, size)))) for size in (5, 6))
ROOT = Image(IMAGE).root_nid
XATTRS = Image(IMAGE).superblock.xattr_block * 4096
TURNS = 200
ROUNDS = 20
# Objects, bytes and descriptors: less than half an object, 16 bytes and a descriptor in each turn.
BOUNDS = (TURNS // 2, 8 * TURNS, TURNS // 2)


_MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo2(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in re.findall(r"\w+", _MALLINFO2)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    for number in range(40):
        (tmp_path / f"file{number}").write_bytes(bytes([number]) * (number * 300))
    (tmp_path / "link").symlink_to("file1")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def in_use() -> tuple[int, ...]:
    """Blocks of Python's allocator, bytes of the C library's, and descriptors."""
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _Mallinfo2
        said = library.mallinfo2()
    except AttributeError:
        pytest.skip("needs mallinfo2 of glibc 2.33")
    return sys.getallocatedblocks(), said.uordblks + said.hblkhd, len(os.listdir("/proc/self/fd"))


def growth(call: Callable[[], object]) -> list[int]:
    """By how much each of :func:`in_use` grows in so many turns, at least.

    What leaks grows in every round. Caches and free lists are full after some, so rounds end once nothing grew.
    """
    least = [1 << 62] * len(BOUNDS)
    for _ in range(ROUNDS):
        gc.collect()
        before = in_use()
        for _ in range(TURNS):
            call()
        gc.collect()
        least = [min(least[at], after - before[at]) for at, after in enumerate(in_use())]
        if all(map(lt, least, BOUNDS)):
            break
    return least


def refused(call: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError, BufferError, OSError)):
        call()


def calls(fd: int, closing: Callable[[int], object]) -> list[Callable[[], object]]:
    assert _native is not None
    n = _native
    arena = bytearray(1 << 20)
    names = [b"file%d" % number for number in range(40)] + [b"link", b"missing"]
    wanted = [(name, None) for name in names]
    root = parse_dump(DUMP)
    header = METACOPY_HEADERS[Algorithm.SHA256]
    holes = memoryview(bytes(8192))[::2]
    row = native.KNOWN_RECORD.pack(1, 3, 7, 8, 0, 0) + b"abcdefgh"
    maker: Maker = (KINDS, Stamp, NO_XATTRS, {}, False, True, None)
    regular = RegularFile(mode=0o100644, size=3, content=b"old")
    untold = RegularFile(mode=0o100644, size=3, content=External(None, "text"))  # type: ignore[arg-type]
    large = os.open("file39", os.O_RDONLY, dir_fd=fd)
    closing(large)

    def written() -> None:
        for one in n.write_files(fd, arena, [(0, 5000), (0, 0)], 0o600, -1):
            os.close(one)

    def linked() -> None:
        (one,) = n.write_files(fd, arena, [(0, 10)], 0o600, -1)
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
        written,
        linked,
        lambda: refused(lambda: n.write_files(fd, arena, [(0, 1 << 30)], 0o600, -1)),
        lambda: refused(lambda: n.write_files(fd, arena, [(0, 1), 1], 0o600, -1)),
        lambda: refused(lambda: n.write_files(fd, holes, [(0, 10)], 0o600, -1)),
        lambda: refused(lambda: n.link_files([(1, 2)])),
        lambda: n.stat_names(fd, names, True, b"a/", maker),
        lambda: refused(lambda: n.stat_names(fd, [*names, "text"], True, b"", maker)),
        lambda: refused(lambda: n.stat_names(fd, names, True, b"", (KINDS, int, NO_XATTRS, {}, False, True))),
        lambda: n.merge_records(row, row * 9, 8, 0),
        lambda: refused(lambda: n.merge_records(row, 1, 8, 0)),
        lambda: n.digest_range("sha256", 999_999, 0, 4096, 4096, b"", -1),
        lambda: refused(lambda: n.digest_range("sha256", large, -1, 4096, 4096, b"", -1)),
        lambda: n.digest_range("sha256", large, 0, 20_000, 4096, b"", -1),
        lambda: n.digest_range("sha512", large, 4096, 8192, 4096, b"s" * 128, -1),
        lambda: n.digest_spans(arena, [(0, 9), (4096, 4096)], "sha256", 4096, b"", EMPTY, fd, NONE),
        lambda: refused(lambda: n.digest_spans(arena, [(0, 9), (1, 1)], "sha256", 4096, b"", EMPTY, -1, b"")),
        lambda: refused(lambda: n.digest_spans(arena, [(0, 9)], "sha256", 4096, b"", b"", -1, b"")),
        lambda: n.check_objects(NONE, bytes(64), bytes(16), 0, 2, arena, "sha256", 4096, b"", EMPTY),
        lambda: refused(lambda: n.check_objects(NONE, bytes(64), b"", 0, 2, arena, "sha256", 4096, b"", EMPTY)),
        lambda: n.find_objects(NONE, bytes(64), bytes(16), 0, 2, 32),
        lambda: refused(lambda: n.find_objects(NONE, bytes(64), b"", 0, 2, 32)),
        lambda: refused(lambda: n.find_objects(b"", bytes(64), bytes(16), 0, 2, 32)),
        lambda: n.list_objects(fd, 0, b"\x20\x40", 0),
        lambda: n.list_objects(fd, 0, b"\x20\x40", 3),
        lambda: refused(lambda: n.list_objects(large, 0, b"\x20", 3)),
        lambda: n.needed_objects(root, KINDS, 32),
        lambda: n.needed_objects(regular, KINDS, 32),
        lambda: refused(lambda: n.needed_objects(root, KINDS, 0)),
        lambda: refused(lambda: n.digest_range("sha256", large, 0, 4096, 4096, holes, -1)),
        lambda: n.encode_tree(root, KINDS, rewrite_xattrs, header, 32, 0),
        lambda: refused(lambda: n.encode_tree(root, (), rewrite_xattrs, header, 32, 0)),
        lambda: n.parse_lines(DUMP[28:], 0, KINDS, {b"": Directory(mode=0o40755)}, {}, NO_XATTRS, 64, False),
        lambda: n.read_tree(IMAGE, ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, dict),
        lambda: n.read_tree(IMAGE, ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, dict, dict.clear),
        lambda: refused(lambda: n.read_tree(IMAGE, ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, dict, int)),
        lambda: n.read_tree(IMAGE, ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, dict, None),
        lambda: n.read_tree(OBJECTS, Image(OBJECTS).root_nid, 0, 0, 0, KINDS, NO_XATTRS, dict, None),
        lambda: n.read_tree(TWO_SIZES, Image(TWO_SIZES).root_nid, 0, 0, 0, KINDS, NO_XATTRS, dict, None),
        lambda: n.read_tree(IMAGE[:-4096], ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, dict),
        lambda: n.read_tree(IMAGE, 5, XATTRS, 0, 0, KINDS, NO_XATTRS, dict),
        lambda: refused(lambda: n.read_tree(IMAGE, ROOT, 1, 0, 0, KINDS, NO_XATTRS, dict)),
        lambda: refused(lambda: n.read_tree(IMAGE, ROOT, XATTRS, 0, 0, KINDS, NO_XATTRS, int)),
        lambda: b"".join(dump_text(root)),
        lambda: b"".join(ls_text(root)),
        lambda: refused(
            lambda: n.print_entries([([(b"a", untold)], 0)], bytearray(), {}, None, None, NO_XATTRS, KINDS, 10)
        ),
        lambda: refused(
            lambda: n.print_entries([([(b"a", None)], 0)], bytearray(), {}, int, None, NO_XATTRS, KINDS, 10)
        ),
        lambda: refused(
            lambda: n.print_entries([([(b"", root)], 0)], bytearray(), {}, int, None, NO_XATTRS, KINDS, 10)
        ),
        lambda: refused(lambda: n.parse_lines(b"", -1, KINDS, {}, {}, NO_XATTRS, 64, False)),
    ]


def test_memory_descriptors_and_references_come_back(place: int, request: pytest.FixtureRequest) -> None:
    """One object, 16 bytes or one descriptor lost in each turn of any call would show."""

    def references() -> list[int]:
        gc.collect()  # what tests before this one left behind
        return [sys.getrefcount(one) for one in (KINDS, EMPTY, NONE, NO_XATTRS, DUMP, *KINDS)]

    every = calls(place, lambda fd: request.addfinalizer(lambda: os.close(fd)))
    had = references()
    gc.freeze()  # what is there already need not be looked through again and again
    request.addfinalizer(gc.unfreeze)
    for number, call in enumerate(every):
        least = growth(call)
        assert all(map(lt, least, BOUNDS)), f"call {number}: {least} objects, bytes, descriptors in {TURNS} turns"
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
