"""Targets that give the same work to the C functions and to their pure twins (without C they only see the twins)."""

from __future__ import annotations

import os
import stat
import tempfile
from array import array
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cfstools import native
from cfstools.errors import CfsError
from cfstools.formats.composefs.check import check_every_rule
from cfstools.formats.composefs.reader import TreeReader, read_native
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import dump_text, print_dump
from cfstools.formats.erofs.reader import Image
from cfstools.formats.registry import open_image
from cfstools.native import _pure
from cfstools.sources.inodes import InodeReader, SourceRoot
from cfstools.tree import NO_XATTRS, RegularFile, Symlink
from cfstools.tree.objects import sizes_of_packed
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm, Params
from cfstools.verity.merkle import descriptor
from tests.formats.images import findings_of, write_image

_ALGORITHMS = (("sha256", 64), ("sha512", 128))
_ARENA = 1 << 18
_NO_PREFIXES = array("i", [-1] * 256)
_NO_FILE = (1 << 31) - 1


class Taken:
    """Numbers and pieces taken from the front of an input, zeros and nothing behind its end."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def number(self, width: int = 1) -> int:
        """The next bytes as a number, little-endian."""
        return int.from_bytes(self.piece(width), "little")

    def piece(self, size: int) -> bytes:
        """The next bytes, as far as there are any."""
        piece, self.rest = self.rest[:size], self.rest[size:]
        return piece


def hashing(data: bytes) -> None:
    """Digests of the blocks of memory and any range of a file are the pure ones, for any block size and salt."""
    taken = Taken(data)
    block_size = 1 << (10 + taken.number() % 7)
    salt = taken.piece(taken.number() % 33)
    offset, length = taken.number(2), taken.number(3)
    source, copy, other = _memory_files()
    _fill(source, taken.rest)
    for algorithm, unit in _ALGORITHMS:
        padded = salt.ljust(-(-len(salt) // unit) * unit, b"\0")
        ours = native.hash_blocks(algorithm, taken.rest, block_size, padded)
        assert ours == _pure.hash_blocks(algorithm, taken.rest, block_size, padded)
        for fd in (copy, other):
            os.ftruncate(fd, 0)
        ranged = native.digest_range(algorithm, source, offset, length, block_size, padded, copy)
        assert ranged == _pure.digest_range(algorithm, source, offset, length, block_size, padded, other)
        assert _contents(copy) == _contents(other)


def reading(data: bytes) -> None:
    """An image read natively is what Python reads, is printed alike, and has the findings of a check of every rule."""
    disk = Image(data, allow_tail=True)
    tree = read_native(disk)
    if native.IMPLEMENTATION == "pure":
        return
    packed = open_image(data, allow_tail=True).packed_objects()
    if tree is None:
        assert packed is None
        raise CfsError("left to Python, which other targets try")
    before = native.IMPLEMENTATION
    native.use("pure")
    try:
        reader = TreeReader(disk)
        lines = list(print_dump(reader.read()))
        info = open_image(data, allow_tail=True).facts()
        objects = open_image(data, allow_tail=True).objects()
    finally:
        native.use(before)
    assert tree.algorithm is reader.algorithm
    assert open_image(data, allow_tail=True).objects() == objects
    assert packed is None or sizes_of_packed(packed) == objects
    assert list(print_dump(tree.root)) == lines
    assert b"".join(dump_text(tree.root)) == b"".join(lines)
    assert open_image(data, allow_tail=True).facts() == info
    assert findings_of(data, allow_tail=True) == check_every_rule(data, allow_tail=True)


def files(data: bytes) -> None:
    """Files are looked at, read, found in a store, written and linked as the pure functions do it, by any names."""
    taken = Taken(data)
    top, store = _directories()
    names = [b"f0", b"f1", b"f2", b"f3"]
    for name in names:
        fd = os.open(name, os.O_RDWR | os.O_CREAT, dir_fd=top)
        _fill(fd, taken.piece(taken.number(2) % 20_000))
        os.close(fd)
    names.insert(taken.number() % 4, taken.piece(taken.number() % 64))
    names.insert(taken.number() % 4, b"d/" + taken.piece(taken.number() % 8))
    # Names come from the kernel, which knows no zeros in them.
    plain = [name.replace(b"\0", b"") for name in names]
    _look(top, plain)
    _digest_files(taken, top, store, names)
    _merge_records(taken)
    _check_objects(taken, store)
    _digest_spans(taken, store)
    _write_files(taken, store)
    _link_files(taken, store)


def _look(top: int, names: list[bytes]) -> None:
    inodes = InodeReader(SourceRoot(b""), policy=XattrPolicy.ALL, use_epoch=False)
    maker = inodes.maker(1)
    pure = _pure.stat_names(top, names, True, b"", maker)
    for name, ours, theirs in zip(names, native.stat_names(top, names, True, b"", maker), pure, strict=True):
        if isinstance(ours, RegularFile | Symlink):
            pairs = theirs[12] if isinstance(theirs[12], tuple) else ()
            xattrs = inodes.xattrs.choose(pairs, name) if pairs else NO_XATTRS
            assert repr(ours) == repr(inodes.leaf(theirs, name, xattrs))
        else:
            assert ours == theirs


def encoding(data: bytes) -> None:
    """The image of any tree is the pure writer's byte for byte, or both refuse it in the same words."""
    root = parse_dump(data)
    version = len(data) % 2
    outcomes: list[bytes | str] = []
    before = native.IMPLEMENTATION
    for name in sorted({"pure", before}):
        native.use(name)
        try:
            outcomes.append(write_image(root, min_version=version, max_version=1))
        except CfsError as error:
            outcomes.append(str(error))
        finally:
            native.use(before)
    assert all(one == outcomes[0] for one in outcomes), "the images of the two writers differ"


def _digest_files(taken: Taken, top: int, store: int, names: list[bytes]) -> None:
    algorithm = (Algorithm.SHA256, Algorithm.SHA512)[taken.number() % 2]
    params = Params(
        algorithm=algorithm, block_size=1 << (10 + taken.number() % 7), salt=taken.piece(taken.number() % 33)
    )
    room = taken.number(3) % _ARENA + 1
    limit = taken.number(2) % 4097

    def read(function: Callable[..., list[_pure.Digested]]) -> list[object]:
        arena = bytearray(room)
        found = function(
            top,
            [(name, None) for name in names],
            arena,
            algorithm.value,
            params.block_size,
            params.salt_prefix,
            descriptor(b"", 0, params),
            limit,
            store,
            _NO_PREFIXES,
        )
        return [
            (one, arena[one[2] : one[2] + one[1]]) if isinstance(one, tuple) and one[2] >= 0 else one for one in found
        ]

    assert read(native.digest_files) == read(_pure.digest_files)


def _merge_records(taken: Taken) -> None:
    """Records of a cache that are anything: out of order, cut, of any size."""
    size = 8 * (taken.number() % 10)
    runs: list[bytes] = []
    for _ in range(2):
        records = b""
        for _ in range(taken.number() % 6):
            fields = (taken.number() % 4, taken.number() % 4, 7, 8, taken.number(), 0)
            records += native.KNOWN_RECORD.pack(*fields) + taken.piece(size).ljust(size, b"\0")
        runs.append(records + taken.piece(taken.number() % 105 if taken.number() % 4 == 0 else 0))
    oldest = taken.number()
    assert native.merge_records(runs[0], runs[1], size, oldest) == _pure.merge_records(runs[0], runs[1], size, oldest)


def _check_objects(taken: Taken, store: int) -> None:
    prefixes = array("i", [-1]) * 256
    opened = [(number, os.open(b"%02x" % number, os.O_PATH, dir_fd=store)) for number in (0,)]
    digests, ends = bytearray(bytes(32) + b"\xff" * 32), array("Q", [3, 3])
    for _ in range(taken.number() % 4):
        digests += taken.piece(32).ljust(32, b"\0")
        ends.append(ends[-1] + taken.number(3))
    first = taken.number() % (len(ends) + 1)
    for number, fd in opened:
        prefixes[number] = fd
    words = (prefixes, digests, ends, first, len(ends), bytearray(taken.number(2) + 1))
    params = Params()
    shared = ("sha256", 4096, b"", descriptor(b"", 0, params))
    try:
        assert native.check_objects(*words, *shared) == _pure.check_objects(*words, *shared)
    finally:
        for _, fd in opened:
            os.close(fd)


def _digest_spans(taken: Taken, store: int) -> None:
    spans = [(taken.number() % 9 * 1024, taken.number(2) % 9000) for _ in range(taken.number() % 4)]
    arena = bytearray(taken.piece(taken.number(2) % 9000))
    for offset, size in spans:  # zeros behind each, up to its end
        if offset + size <= len(arena):
            arena[offset + size :] = bytes(max(0, len(arena) - offset - size))
    words = (arena, spans, "sha256", 1024, b"", descriptor(b"", 0, Params(block_size=1024)), store, _NO_PREFIXES)

    def digest(function: Callable[..., object]) -> object:
        try:
            return function(*words)
        except ValueError as error:
            return str(error)

    assert digest(native.digest_spans) == digest(_pure.digest_spans)


def _write_files(taken: Taken, store: int) -> None:
    spans = [(taken.number(2), taken.number(2)) for _ in range(taken.number() % 4)]
    arena = bytearray(taken.rest)

    def write(function: Callable[..., list[int]]) -> list[bytes] | str:
        try:
            fds = function(store, arena, spans, 0o600, -1)
        except ValueError as error:
            return str(error)
        written = [_contents(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
        return written

    assert write(native.write_files) == write(_pure.write_files)


def _link_files(taken: Taken, store: int) -> None:
    number = taken.number()
    count = 250 if number >= 250 else number % 16
    wanted = [(taken.number(), taken.number(), taken.piece(taken.number() % 12)) for _ in range(count)]
    # Nothing is made outside of the two directories, and however many links there are they have different names.
    wanted = [
        (fd, place, name.lstrip(b"/").replace(b"..", b"__") or b"%d" % index)
        for index, (fd, place, name) in enumerate(wanted)
    ]

    def link(function: Callable[[list[tuple[int, int, bytes]]], list[int]]) -> list[object]:
        fds = native.write_files(store, b"ab", [(0, 0), (0, 1), (0, 2)], 0o600, -1)
        fds += [_NO_FILE, -1, store, os.open("taken", os.O_RDWR | os.O_CREAT, dir_fd=_link_places()[0])]
        places = [*_link_places(), fds[-1], -1, _NO_FILE]
        links = [(fds[fd % len(fds)], places[place % len(places)], name) for fd, place, name in wanted]
        # One of each kind is always there.
        links += [(fds[0], places[0], name) for name in (b"", b".", b"one", b"one", b"taken", b"no/such", b"n" * 256)]
        try:
            outcome: object = function(links)
        except ValueError as error:
            outcome = str(error)
        inodes = {os.fstat(fd).st_ino: index for index, fd in enumerate(fds) if fd not in (-1, _NO_FILE)}
        made = [_take_names(place, inodes) for place in _link_places()]
        for fd in fds[:-4] + fds[-1:]:
            os.close(fd)
        return [outcome, made]

    assert link(native.link_files) == link(_pure.link_files)


def _take_names(place: int, inodes: dict[int, int]) -> list[tuple[str, int | None]]:
    """Remove all names in a directory; which they were, and of which of the files."""
    found = [(name, os.stat(name, dir_fd=place, follow_symlinks=False)) for name in sorted(os.listdir(place))]
    for name, status in found:
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=place)
    return [(name, inodes.get(status.st_ino)) for name, status in found]


def _fill(fd: int, data: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def _contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@cache
def _memory_files() -> tuple[int, int, int]:
    source, copy, other = (os.memfd_create("fuzz") for _ in range(3))
    return source, copy, other


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


@cache
def _directories() -> tuple[int, int]:
    """A directory with a directory and two kinds of links in it, and a store with one object of three bytes."""
    top = Path(_directory().name)
    (top / "tree/d").mkdir(parents=True)
    (top / "tree/d/file").write_bytes(b"x" * 5000)
    (top / "tree/link").symlink_to("d/file")
    (top / "tree/d/up").symlink_to("..")
    (top / "store/00").mkdir(parents=True)
    (top / "store/00" / ("00" * 31)).write_bytes(b"abc")
    return os.open(top / "tree", os.O_RDONLY), os.open(top / "store", os.O_RDONLY)


@cache
def _link_places() -> tuple[int, int]:
    """A directory with a directory in it, and that one."""
    top = Path(_directory().name) / "links"
    (top / "d").mkdir(parents=True)
    return os.open(top, os.O_RDONLY), os.open(top / "d", os.O_RDONLY)
