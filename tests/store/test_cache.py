"""The digest cache: what it may believe, what it must not, and that it never shows in a result."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cfstools import native
from cfstools.errors import SourceChanged
from cfstools.linux import files
from cfstools.linux.volume import Volume, clock_offset, mounted_volume
from cfstools.store import DirectoryStore, IngestReport, StoreWriter
from cfstools.store.cache import digest_cache as cache
from cfstools.store.cache import files as cache_files
from cfstools.store.cache.digest_cache import DigestCache
from cfstools.store.write.ingest import Ingest
from cfstools.tree import Directory, External, RegularFile, Stamp, Unread
from cfstools.verity import DEFAULT, Algorithm, Params, digest_bytes
from tests.store.conftest import assert_whole
from tests.store.test_ingest import content_of, tree_of

CONTENTS = {
    b"empty": b"",
    b"inline": b"i" * 64,
    b"small": b"s" * 5000,
    b"large": b"l" * ((1 << 20) + 1),
    b"same": b"s" * 5000,
}
DIGEST = bytes(range(32))


class Rooted:
    """Files of a real directory, counted when they are opened one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_RDONLY)
        self.opened: list[bytes] = []
        self.hits = 0

    def open(self, unread: Unread) -> int:
        self.opened.append(unread.path)
        return os.open(unread.path, os.O_RDONLY, dir_fd=self.root_fd)

    def name(self, unread: Unread) -> str:
        return os.fsdecode(self.root / os.fsdecode(unread.path))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made by a test are changed just now: without this nothing would be remembered."""
    monkeypatch.setattr(cache, "RACY_NS", 0)


def settle_clock(path: Path) -> None:
    """Wait until the file system's clock has moved on from what *path* has."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns:
            break
        time.sleep(0.002)
    probe.unlink()
    time.sleep(0.02)


def run(
    store: DirectoryStore, root: Directory, source: Path, *, params: Params = DEFAULT, **options: int
) -> tuple[IngestReport, Rooted]:
    blobs = Rooted(source)
    digests = DigestCache.open(place(store), blobs.root_fd, params.algorithm)
    assert digests is not None
    with StoreWriter(store, params=params) as writer, digests:
        with Ingest(blobs, writer, params=params, cache=digests, **options) as ingest:  # type: ignore[arg-type]
            for file in root.entries.values():
                if isinstance(file, RegularFile) and isinstance(file.content, Unread):
                    ingest.add([file])
            report = ingest.finish()
        writer.commit()
    os.close(blobs.root_fd)
    blobs.hits = digests.hits
    return report, blobs


def place(store: DirectoryStore) -> bytes:
    """Where the tests have the cache: beside the store."""
    return os.fsencode(Path(store.path).with_name("cache"))


@contextmanager
def opened(store: DirectoryStore, source: Path, algorithm: Algorithm = Algorithm.SHA256) -> Iterator[DigestCache]:
    """The cache for files of *source*, to be used without a build."""
    source.mkdir(exist_ok=True)
    fd = os.open(source, os.O_RDONLY)
    digests = DigestCache.open(place(store), fd, algorithm)
    assert digests is not None
    with digests:
        yield digests
    os.close(fd)


def remember(digests: DigestCache, stamps: list[Stamp], digest: bytes = DIGEST) -> None:
    """As a build does that has read these files, which are this user's alone."""
    digests._clock = clock_offset() or 0
    digests.remember([(stamp, os.geteuid(), 0o100644, digest, False) for stamp in stamps], 2**63)


def stamps_of(source: Path, count: int) -> list[Stamp]:
    source.mkdir(exist_ok=True)
    return [Stamp(source.stat().st_dev, number, 100, 1, number + 1) for number in range(count)]


def rescan(source: Path) -> Directory:
    root = Directory(mode=0o40755)
    for path in sorted(source.iterdir()):
        status = path.stat()
        stamp = Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        root.entries[os.fsencode(path.name)] = RegularFile(
            mode=0o100644, size=status.st_size, content=Unread(os.fsencode(path.name), stamp)
        )
    return root


def digests_of(root: Directory) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for name in root.entries:
        content = content_of(root, name)
        found[name] = content.digest if isinstance(content, External) else content
    return found


def truth(source: Path, params: Params = DEFAULT) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for path in source.iterdir():
        data = path.read_bytes()
        found[os.fsencode(path.name)] = data if len(data) <= 64 else digest_bytes(data, params)
    return found


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_second_run_reads_nothing(
    store: DirectoryStore, source: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tree_of(CONTENTS, source)
    settle_clock(source / "same")
    report, blobs = run(store, first, source, threads=threads)
    assert blobs.hits == 0
    second = rescan(source)
    read: list[bytes] = []
    digest_files = native.digest_files

    def watched(fd: int, paths: list[tuple[bytes, Stamp | None]], *words: Any) -> object:
        read.extend(path for path, _ in paths)
        return digest_files(fd, paths, *words)

    monkeypatch.setattr(native, "digest_files", watched)
    monkeypatch.setattr(files, "syncfs", lambda _fd: pytest.fail("nothing is to be remembered"))
    again, blobs = run(store, second, source, threads=threads)
    assert blobs.opened == []
    # What images hold is nowhere else, so it is read.
    assert read == [b"inline"]
    assert again == report
    assert digests_of(second) == digests_of(first)
    assert blobs.hits == 3


def test_what_is_fresh_is_not_remembered(store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RACY_NS", 3_000_000_000)
    run(store, tree_of(CONTENTS, source), source)
    assert run(store, rescan(source), source)[1].hits == 0
    # An old mtime is no help: it can be set at will.
    os.utime(source / "small", ns=(0, 0))
    run(store, rescan(source), source)
    assert run(store, rescan(source), source)[1].hits == 0


def restore_times(path: Path, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"X")


def write_through_a_map(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = ord("X")


def rename_another_over(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"X" + path.read_bytes()[1:])
    status = path.stat()
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


def swap_hard_links(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"X" + path.read_bytes()[1:])
    path.unlink()
    os.link(other, path)
    other.unlink()


def reuse_the_inode(path: Path) -> None:
    data = b"X" + path.read_bytes()[1:]
    path.unlink()
    path.write_bytes(data)


def direct_write(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"X", 0)
    os.fsync(fd)
    os.close(fd)


def punch_and_fill(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(size)


def copy_range(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"X" * path.stat().st_size)
    with other.open("rb") as source, path.open("r+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), path.stat().st_size)
    other.unlink()


CHANGES = [
    write_in_place,
    write_through_a_map,
    rename_another_over,
    swap_hard_links,
    reuse_the_inode,
    direct_write,
    punch_and_fill,
    copy_range,
]


@pytest.mark.parametrize("name", ["inline", "small", "large"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_keep_size_and_mtime_are_noticed(
    store: DirectoryStore, source: Path, change: Callable[[Path], None], name: str
) -> None:
    tree_of({name.encode(): CONTENTS[name.encode()]}, source)
    path = source / name
    settle_clock(path)
    run(store, rescan(source), source)
    before = path.stat()
    change(path)
    restore_times(path, before)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    root = rescan(source)
    _, blobs = run(store, root, source)
    assert digests_of(root) == truth(source)
    assert blobs.hits == 0


@pytest.mark.parametrize("singles", [0, 256])
def test_a_map_that_stays_open(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch, singles: int
) -> None:
    """Stores to a page written to before do not fault, and so change no ctime, until the page was written back."""
    monkeypatch.setattr(cache, "_SINGLES", singles)
    path = source / "file"
    tree_of({b"file": CONTENTS[b"small"]}, source)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = ord("1")
        settle_clock(path)
        run(store, rescan(source), source)
        time.sleep(0.02)
        for value in (b"2", b"3"):
            mapped[0] = ord(value)
            root = rescan(source)
            run(store, root, source)
            assert digests_of(root) == truth(source)
            settle_clock(path)


def test_a_few_files_do_not_wait_for_what_others_write(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(files, "syncfs", synced.append)
    monkeypatch.setattr(cache, "_SINGLES", 3)
    tree_of({b"%d" % number: bytes([number + 1]) * 100 for number in range(3)}, source)
    settle_clock(source / "2")
    fd = os.open(source, os.O_RDONLY)
    with opened(store, source) as digests:
        stamps = [(b"%d" % number, number) for number in range(3)]
        since = digests.settle(stamps[:2], lambda file: os.open(file[0], os.O_RDONLY, dir_fd=fd))
        assert since > (source / "1").stat().st_ctime_ns
        # One that cannot be opened spoils what is asked for together with it, and nothing else.
        assert digests.settle([(b"none", 3)], lambda file: os.open(file[0], os.O_RDONLY, dir_fd=fd)) < 0
        assert not synced
        assert digests.settle(stamps[2:], lambda file: pytest.fail("there are too many")) >= since
        assert len(synced) == 1
    os.close(fd)


def test_changes_at_any_moment_are_noticed(store: DirectoryStore, source: Path) -> None:
    """A writer that never rests, and keeps size and mtime: no entry may outlive the contents it was made of."""
    path = source / "file"
    tree_of({b"file": bytes(100)}, source)
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            with path.open("r+b") as file:
                file.write(b"%08d" % count)
            os.utime(path, ns=(0, 0))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            root = rescan(source)
            try:
                run(store, root, source)
            except SourceChanged:
                continue
    finally:
        stop.set()
        writer.join()
    for _ in range(2):
        root = rescan(source)
        run(store, root, source)
        assert digests_of(root) == truth(source)


def test_an_object_the_store_has_lost_is_added_again(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    os.unlink(store.describe(digest_bytes(CONTENTS[b"small"])))
    root = rescan(source)
    assert run(store, root, source)[1].hits == 1
    assert digests_of(root) == truth(source)
    assert assert_whole(store.path) == 2
    os.truncate(store.describe(digest_bytes(CONTENTS[b"large"])), 5)
    with pytest.raises(Exception, match="damaged object"):
        run(store, rescan(source), source)


def test_algorithms_do_not_mix(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    params = Params(algorithm=Algorithm.SHA512)
    for expected in (0, 3):
        root = rescan(source)
        assert run(store, root, source, params=params)[1].hits == expected
        assert digests_of(root) == truth(source, params)
    assert run(store, rescan(source), source)[1].hits == 3


def test_another_threshold_makes_entries_useless(store: DirectoryStore, source: Path) -> None:
    tree_of({b"inline": b"i" * 64, b"small": b"s" * 100}, source)
    settle_clock(source / "small")
    run(store, rescan(source), source)
    root = rescan(source)
    run(store, root, source, inline_threshold=10)
    assert isinstance(content_of(root, b"inline"), External)
    root = rescan(source)
    run(store, root, source, inline_threshold=200)
    assert content_of(root, b"small") == b"s" * 100


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    said = subprocess.run(["stat", "-fc", "%t", tmp_path], capture_output=True, text=True, check=True).stdout
    fd = os.open(tmp_path, os.O_RDONLY)
    assert files.filesystem_type(fd) == int(said, 16)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.filesystem_type(1_000_000_000)


def test_changes_with_a_clock_set_back(store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from before is believed any more; what is remembered then is, also when the clock is right again."""
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    for seconds, expected in ((1, 3), (-1, 3), (-2, 0), (-2, 3), (0, 3), (-2, 3), (-4, 0)):
        monkeypatch.setattr(cache, "clock_offset", lambda s=seconds: (clock_offset() or 0) + s * 10**9)
        assert run(store, rescan(source), source)[1].hits == expected, seconds


def test_what_a_clock_set_back_made_doubtful_stays_so(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = stamps_of(source, 3)
    with opened(store, source) as digests:
        remember(digests, stamps)
    for seconds in (-2, 0):
        monkeypatch.setattr(cache, "clock_offset", lambda s=seconds: (clock_offset() or 0) + s * 10**9)
        with opened(store, source) as digests:
            assert digests.find(stamps, 64).found == [None] * 3


def test_a_clock_set_back_while_a_build_runs(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = stamps_of(source, 3)
    with opened(store, source) as digests:
        remember(digests, stamps)
        monkeypatch.setattr(cache, "clock_offset", lambda: (clock_offset() or 0) - 2 * 10**9)
    monkeypatch.setattr(cache, "clock_offset", clock_offset)
    with opened(store, source) as digests:
        assert digests.find(stamps, 64).found == [None] * 3


def test_without_a_clock_nothing_is_known(store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "clock_offset", lambda: None)
        assert run(store, rescan(source), source)[1].hits == 0
    assert run(store, rescan(source), source)[1].hits == 3


@pytest.mark.parametrize("ctime", [-1, 0, 10**18, 2**31 * 10**9 - 10**9, 4 * 10**18, 2**63 - 1])
def test_times_that_a_program_chose(store: DirectoryStore, source: Path, ctime: int) -> None:
    """Such as whole seconds, the last that an inode has room for, or any in the future."""
    stamps = [stamp._replace(ctime_ns=ctime) for stamp in stamps_of(source, 1)]
    with opened(store, source) as digests:
        digests.remember([(stamps[0], 0, 0o100644, DIGEST, False)], digests.settle())
    with opened(store, source) as digests:
        assert digests.find(stamps, 64).found == [(DIGEST, 100, -1) if ctime == -1 else None]


@pytest.mark.parametrize(
    ("uid", "mode", "is_known"),
    [
        (0, 0o644, True),
        (None, 0o600, True),
        (None, 0o4755, True),
        (None, 0o664, False),
        (0, 0o602, False),
        (12345, 0o644, False),
    ],
)
def test_files_that_others_can_write(
    store: DirectoryStore, source: Path, uid: int | None, mode: int, is_known: bool
) -> None:
    """They could exchange a file's blocks for another's, which leaves its ctime."""
    stamps = stamps_of(source, 1)
    with opened(store, source) as digests:
        read = [(stamps[0], os.geteuid() if uid is None else uid, 0o100000 | mode, DIGEST, False)]
        digests.remember(read, digests.settle())
    with opened(store, source) as digests:
        assert digests.find(stamps, 64).found == [(DIGEST, 100, -1) if is_known else None]


def test_files_of_other_devices(store: DirectoryStore, source: Path) -> None:
    stamps = stamps_of(source, 1)
    other = stamps[0]._replace(device=stamps[0].device + 1)
    with opened(store, source) as digests:
        remember(digests, [other])
    with opened(store, source) as digests:
        assert digests.find([*stamps, other], 64).found == [None, None]
        remember(digests, stamps)
    with opened(store, source) as digests:
        assert digests.find([*stamps, other], 64).found == [(DIGEST, 100, -1), None]


@pytest.mark.parametrize("field", Volume._fields)
def test_another_volume_is_not_believed(
    store: DirectoryStore, source: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it is another: boot, type, device, UUID or superblock."""
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)

    def other(fd: int) -> Volume | None:
        found = mounted_volume(fd)
        assert found is not None
        value = b"0" * 36 if field == "boot" else getattr(found, field) + 1
        return Volume(**(found._asdict() | {field: value}))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "mounted_volume", other)
        assert run(store, rescan(source), source)[1].hits == 0
    assert run(store, rescan(source), source)[1].hits == 3


def test_no_volume_no_cache(store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    for answer in (lambda _fd: None, lambda _fd: os.stat("/no such")):
        monkeypatch.setattr(cache, "mounted_volume", answer)
        assert DigestCache.open(place(store), fd, Algorithm.SHA256) is None
    assert not os.path.exists(place(store))
    os.close(fd)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("low", [0, 2**63 - 16, 2**63, 2**64 - 65])
def test_inodes_of_any_size(store: DirectoryStore, source: Path, low: int) -> None:
    device = stamps_of(source, 1)[0].device
    stamps = [Stamp(device, low + number, number + 65, -5, -6) for number in range(65)]
    digests = [bytes([number]) * 64 for number in range(65)]
    for half in (slice(0, None, 2), slice(63, None, -2)):
        with opened(store, source, Algorithm.SHA512) as made:
            read = [(*one[:1], 0, 0o100644, one[1], False) for one in list(zip(stamps, digests, strict=True))[half]]
            made.remember(read, 0)
    with opened(store, source, Algorithm.SHA512) as again:
        found = again.find(stamps[::-1], 64).found
    assert found == [(digest, stamp.size, -1) for stamp, digest in zip(stamps, digests, strict=True)][::-1]


@pytest.mark.usefixtures("each_implementation")
def test_numbers_that_no_record_holds(store: DirectoryStore, source: Path) -> None:
    stamp = stamps_of(source, 1)[0]
    odd = [stamp._replace(inode=2**64), stamp._replace(mtime_ns=-(2**80)), stamp._replace(size=2**63)]
    with opened(store, source) as digests:
        remember(digests, [*odd, stamp])
    with opened(store, source) as digests:
        assert digests.find([*odd, stamp], 64).found == [None, None, None, (DIGEST, 100, -1)]


def test_two_builds_add_to_the_same_file(store: DirectoryStore, source: Path) -> None:
    """Neither loses what the other remembers at the same time; of one inode the last word counts."""
    stamps = stamps_of(source, 200)

    def build(mine: list[Stamp], digest: bytes) -> None:
        with opened(store, source) as digests:
            remember(digests, mine, digest)

    builds = [threading.Thread(target=build, args=(stamps[first::4], bytes([first]) * 32)) for first in range(4)]
    for one in builds:
        one.start()
    for one in builds:
        one.join()
    build(stamps[:1], DIGEST)
    with opened(store, source) as digests:
        found = [one[0] for one in digests.find(stamps, 64).found if isinstance(one, tuple)]
    assert found == [DIGEST, *[bytes([number % 4]) * 32 for number in range(1, 200)]]


def grow_old(monkeypatch: pytest.MonkeyPatch, store: DirectoryStore, source: Path, days: int) -> DigestCache:
    """The cache as it is opened so many days later."""
    now = time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now + days * 86_400 * 10**9)
        fd = os.open(source, os.O_RDONLY)
        digests = DigestCache.open(place(store), fd, Algorithm.SHA256)
        os.close(fd)
    assert digests is not None
    return digests


@pytest.mark.usefixtures("each_implementation")
def test_entries_stay_as_long_as_they_are_met(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = stamps_of(source, 3)
    with opened(store, source) as digests:
        remember(digests, stamps)
    known: list[object] = [(DIGEST, 100, -1)]
    for days, asked, expected in ((20, 2, 2), (45, 1, 1), (70, 1, 1), (71, 3, 1), (110, 3, 1)):
        with grow_old(monkeypatch, store, source, days) as digests:
            remember(digests, [stamps[0]._replace(inode=1000)])  # so that something is written, and old ones go
            assert digests.find(stamps[:asked], 64).found == known * expected + [None] * (asked - expected)


def test_a_full_cache_loses_what_was_not_met_for_longest(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LAST", 100)
    stamps = stamps_of(source, 300)
    for day in range(3):
        with grow_old(monkeypatch, store, source, day) as digests:
            remember(digests, stamps[day * 40 : day * 40 + 40])
    with opened(store, source) as digests:
        known = [one is not None for one in digests.find(stamps[:120], 64).found]
    assert known == [False] * 40 + [True] * 80
    with opened(store, source) as digests:  # more in one build than are kept otherwise
        remember(digests, stamps)
    with opened(store, source) as digests:
        assert None not in digests.find(stamps, 64).found
    monkeypatch.setattr(cache_files, "MAX_RECORDS", 250)
    with opened(store, source) as digests:
        assert digests.find(stamps, 64).found == [None] * 300  # what is too long is not read
        remember(digests, stamps)
    with opened(store, source) as digests:
        assert digests.find(stamps, 64).found.count(None) == 50
