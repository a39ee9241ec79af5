"""The digest cache: what it may believe, what it must not, and that it never shows in a result."""

from __future__ import annotations

import mmap
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cfstools import native
from cfstools.errors import SourceChanged
from cfstools.linux import files
from cfstools.store import DirectoryStore, IngestReport, StoreWriter, buckets, cache
from cfstools.store.cache import DigestCache, cache_statistics, check_cache
from cfstools.store.ingest import Ingest
from cfstools.tree import Directory, External, RegularFile, Stamp, Unread
from cfstools.verity import DEFAULT, Algorithm, Params, digest_bytes
from tests.store.conftest import assert_whole
from tests.store.test_ingest import content_of, tree_of

CONTENTS = {b"inline": b"i" * 64, b"small": b"s" * 5000, b"large": b"l" * ((1 << 20) + 1), b"same": b"s" * 5000}
DATABASE = ".mkcfs/digests.sqlite"


class Rooted:
    """Files of a real directory, counted when they are opened one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_RDONLY)
        self.opened: list[bytes] = []

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
    monkeypatch.setattr(cache, "_FLUSH_RECORDS", 2)


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
    digests = DigestCache.open(store, blobs.root_fd, params.algorithm)
    assert digests is not None
    with StoreWriter(store, params=params) as writer, digests:
        with Ingest(blobs, writer, params=params, cache=digests, **options) as ingest:  # type: ignore[arg-type]
            for file in root.entries.values():
                if isinstance(file, RegularFile) and isinstance(file.content, Unread):
                    ingest.add([file])
            report = ingest.finish()
        writer.commit()
    os.close(blobs.root_fd)
    return report, blobs


def last(store: DirectoryStore) -> tuple[int, int]:
    found = cache_statistics(store)
    assert found is not None
    return found.last_hits, found.last_misses


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
    report, _ = run(store, first, source, threads=threads)
    assert last(store) == (0, 4)
    second = rescan(source)
    monkeypatch.setattr(native, "digest_files", lambda *_: pytest.fail("a file was read"))
    again, blobs = run(store, second, source, threads=threads)
    assert blobs.opened == []
    assert again == report
    assert digests_of(second) == digests_of(first)
    assert last(store) == (4, 0)


def test_what_is_fresh_is_not_remembered(store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RACY_NS", 3_000_000_000)
    run(store, tree_of(CONTENTS, source), source)
    run(store, rescan(source), source)
    assert last(store) == (0, 4)
    # An old mtime is no help: it can be set at will.
    os.utime(source / "small", ns=(0, 0))
    run(store, rescan(source), source)
    run(store, rescan(source), source)
    assert last(store) == (0, 4)


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
    run(store, root, source)
    assert digests_of(root) == truth(source)
    assert last(store) == (0, 1)


def test_a_map_that_stays_open(store: DirectoryStore, source: Path) -> None:
    """Stores to a page written to before do not fault, and so change no ctime, until the page was synced."""
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
    run(store, root, source)
    assert last(store) == (2, 2)
    assert digests_of(root) == truth(source)
    assert objects_are_whole(store) == 2
    os.truncate(store.describe(digest_bytes(CONTENTS[b"large"])), 5)
    with pytest.raises(Exception, match="damaged object"):
        run(store, rescan(source), source)


def objects_are_whole(store: DirectoryStore) -> int:
    hidden = Path(store.path) / ".mkcfs"
    hidden.rename(Path(store.path).with_name("hidden"))
    try:
        return assert_whole(store.path)
    finally:
        Path(store.path).with_name("hidden").rename(hidden)


def test_algorithms_do_not_mix(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    params = Params(algorithm=Algorithm.SHA512)
    for expected in ((0, 4), (4, 0)):
        root = rescan(source)
        run(store, root, source, params=params)
        assert last(store) == expected
        assert digests_of(root) == truth(source, params)
    run(store, rescan(source), source)
    assert last(store) == (4, 0)


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


def test_a_device_that_was_given_another_number(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file system under another device number, and another under the same: neither is believed."""
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    real = os.fstatvfs

    class Other:
        f_fsid = 12345

    monkeypatch.setattr(os, "fstatvfs", lambda _fd: Other())
    run(store, rescan(source), source)
    assert last(store) == (0, 4)
    monkeypatch.setattr(os, "fstatvfs", real)
    root = rescan(source)
    for entry in root.entries.values():
        assert isinstance(entry, RegularFile)
        assert isinstance(entry.content, Unread)
        assert entry.content.stamp.device == os.stat(source).st_dev
    run(store, root, source)
    assert last(store) == (4, 0)
    stamp = Stamp(1, *os.stat(source / "small")[1:2], 5000, 0, 0)
    fd = os.open(source, os.O_RDONLY)
    digests = DigestCache.open(store, fd, Algorithm.SHA256)
    assert digests is not None
    with digests:
        assert digests.find([stamp], 64).found == [None]
        digests.settle()
        digests.remember([(stamp, (True, b"of another device"))])
    os.close(fd)
    found = cache_statistics(store)
    assert found is not None
    assert found.entries == 8


def test_an_identity_without_a_uuid_ends_with_the_boot(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    plain = cache.volume_identity(fd)
    assert plain is not None

    class Numbered:
        f_fsid = os.fstat(fd).st_dev

    monkeypatch.setattr(os, "fstatvfs", lambda _fd: Numbered())
    numbered = cache.volume_identity(fd)
    assert numbered is not None
    assert len(numbered) > len(plain)
    assert Path("/proc/sys/kernel/random/boot_id").read_bytes().strip() in numbered
    os.close(fd)


def test_file_systems_that_are_not_trusted(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    monkeypatch.setattr(files, "filesystem_type", lambda _fd: 0x01021994)
    assert cache.volume_identity(fd) is None
    assert DigestCache.open(store, fd, Algorithm.SHA256) is None
    assert cache_statistics(store) is None
    assert check_cache(store) is None
    os.close(fd)


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    said = subprocess.run(["stat", "-fc", "%t", tmp_path], capture_output=True, text=True, check=True).stdout
    fd = os.open(tmp_path, os.O_RDONLY)
    assert files.filesystem_type(fd) == int(said, 16)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.filesystem_type(1_000_000_000)


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000, b""])
def test_a_damaged_cache_is_made_anew(store: DirectoryStore, source: Path, damage: bytes) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    path = Path(store.path) / DATABASE
    path.write_bytes(damage)
    root = rescan(source)
    run(store, root, source)
    assert digests_of(root) == truth(source)
    assert last(store) == (0, 4)
    run(store, rescan(source), source)
    assert last(store) == (4, 0)


def test_another_version_is_made_anew(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    run(store, rescan(source), source)
    with sqlite3.connect(Path(store.path) / DATABASE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert cache_statistics(store) is None
    run(store, rescan(source), source)
    assert last(store) == (0, 4)


def split(records: bytes) -> list[bytes]:
    size = native.KNOWN_RECORD.size
    return [records[at : at + size] for at in range(0, len(records), size)]


def rewrite_buckets(store: DirectoryStore, change: Callable[[bytes], object]) -> None:
    """Put into each bucket what *change* makes of its records."""
    with sqlite3.connect(Path(store.path) / DATABASE) as database:
        for number, records in database.execute("SELECT rowid, records FROM buckets").fetchall():
            database.execute("UPDATE buckets SET records = ? WHERE rowid = ?", (change(records), number))
    database.close()


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize(
    "change",
    [
        lambda records: records[:-1],
        lambda records: records + b"\0",
        lambda records: records[1:] + b"\0",
        lambda _: b"",
        lambda _: "text",
        lambda _: 5,
        lambda _: bytes(native.KNOWN_RECORD.size),
        lambda _: b"\xff" * native.KNOWN_RECORD.size,
        lambda records: records * 40,
    ],
)
def test_buckets_of_a_wrong_form_are_made_anew(
    store: DirectoryStore, source: Path, change: Callable[[bytes], object]
) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    rewrite_buckets(store, change)
    found = check_cache(store)
    assert found is not None
    assert (found.malformed == found.entries, found.problem) == (True, None)
    for expected in ((0, 4), (4, 0)):
        root = rescan(source)
        run(store, root, source)
        assert digests_of(root) == truth(source)
        assert last(store) == expected
    statistics = cache_statistics(store)
    assert statistics is not None
    assert statistics.entries == 4


def test_entries_of_a_wrong_form_are_not_believed(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    rewrite_buckets(store, lambda records: b"".join(one[:37] + b"\x01" + one[38:] for one in split(records)))
    found = check_cache(store)
    assert found is not None
    assert (found.entries, found.malformed, found.problem) == (4, 4, None)
    root = rescan(source)
    run(store, root, source)
    assert digests_of(root) == truth(source)
    assert last(store) == (0, 4)


def test_check_of_a_damaged_database(store: DirectoryStore, source: Path) -> None:
    tree_of({b"%d" % number: b"%d" % number for number in range(2000)}, source)
    settle_clock(source / "1999")
    run(store, rescan(source), source)
    path = Path(store.path) / DATABASE
    data = bytearray(path.read_bytes())
    data[4096 * 5 : 4096 * 6] = b"\xff" * 4096
    path.write_bytes(data)
    found = check_cache(store)
    assert found is not None
    assert found.problem
    assert (Path(store.path) / DATABASE).write_bytes(b"no database at all, just some text")
    found = check_cache(store)
    assert found is not None
    assert "not a database" in (found.problem or "")


@pytest.mark.parametrize("what", ["directory", "database"])
def test_links_are_not_followed(store: DirectoryStore, source: Path, tmp_path: Path, what: str) -> None:
    source.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    hidden = Path(store.path) / ".mkcfs"
    if what == "directory":
        hidden.symlink_to(outside)
    else:
        hidden.mkdir()
        (hidden / "digests.sqlite").symlink_to(outside / "target")
    assert cache_statistics(store) is None
    fd = os.open(source, os.O_RDONLY)
    digests = DigestCache.open(store, fd, Algorithm.SHA256)
    os.close(fd)
    # What is no directory of ours is left alone; a link inside of ours gives way to the database.
    assert (digests is None) is (what == "directory")
    if digests is not None:
        digests.close()
        assert not (hidden / "digests.sqlite").is_symlink()
    assert list(outside.iterdir()) == []


def test_a_database_in_use_is_no_hindrance(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to the database while it is used, the build goes on without."""
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    monkeypatch.setattr(buckets, "_STORE", "nonsense")
    monkeypatch.setattr(buckets, "_ASK", "nonsense")
    root = rescan(source)
    run(store, root, source)
    assert digests_of(root) == truth(source)
    monkeypatch.undo()
    found = cache_statistics(store)
    assert found is not None
    assert found.entries == 4


def grow_old(store: DirectoryStore, days: int) -> None:
    """Let everything in the cache have been remembered so many days sooner."""

    def older(records: bytes) -> bytes:
        made = native.KNOWN_RECORD.iter_unpack(records)
        return b"".join(native.KNOWN_RECORD.pack(*one[:4], one[4] - days, *one[5:]) for one in made)

    rewrite_buckets(store, older)
    with sqlite3.connect(Path(store.path) / DATABASE) as database:
        database.execute("UPDATE buckets SET newest = newest - ?", (days,))
    database.close()


def ages(store: DirectoryStore) -> list[int]:
    """How many days ago each entry was remembered, in the order of inode numbers."""
    today = time.time_ns() // 86_400_000_000_000
    with sqlite3.connect(Path(store.path) / DATABASE) as database:
        every = b"".join([records for (records,) in database.execute("SELECT records FROM buckets")])
    database.close()
    return [today - one[4] for one in sorted(native.KNOWN_RECORD.iter_unpack(every))]


def test_entries_stay_as_long_as_they_are_met(store: DirectoryStore, source: Path) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    for days, expected in ((10, 10), (10, 0), (14, 14), (1, 0)):
        grow_old(store, days)
        run(store, rescan(source), source)
        assert ages(store) == [expected] * 4
    assert last(store) == (4, 0)


def test_old_neighbours_go_when_a_bucket_is_written(store: DirectoryStore, source: Path) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    device = os.fstat(fd).st_dev
    for inode, days in ((64, 31), (65, 30), (66, 0)):
        digests = DigestCache.open(store, fd, Algorithm.SHA256)
        assert digests is not None
        with digests:
            digests.settle()
            digests.remember([(Stamp(device, inode, 1, 1, 1), (True, b"x"))])
        grow_old(store, days)
    os.close(fd)
    assert ages(store) == [30, 0]


def test_old_entries_are_refreshed_and_dropped(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree_of(CONTENTS, source)
    settle_clock(source / "same")
    run(store, rescan(source), source)
    grow_old(store, 100)
    with sqlite3.connect(Path(store.path) / DATABASE) as database:
        database.execute("INSERT INTO buckets SELECT volume, algorithm, 1, newest, records FROM buckets LIMIT 1")
    database.close()
    monkeypatch.setattr(cache, "_LARGE_BYTES", 0)
    run(store, rescan(source), source)
    assert last(store) == (4, 0)
    found = cache_statistics(store)
    assert found is not None
    assert found.entries == 4


def test_numbers_beyond_the_database(store: DirectoryStore, source: Path) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    digests = DigestCache.open(store, fd, Algorithm.SHA256)
    assert digests is not None
    device = os.fstat(fd).st_dev
    with digests:
        digests.settle()
        stamp = Stamp(device, 2**64 - 1, 1, 1, 1)
        digests.remember([(stamp, (True, b"x")), (stamp._replace(inode=7), (True, b"y"))])
        assert digests.find([stamp], 64).found == [b"x"]
        far = Stamp(device, 5, 1, -(2**80), 1)
        huge = Stamp(device, 2**70, 1, 1, 1)
        long = Stamp(device, 6, 65, 1, 1)
        digests.remember([(far, (True, b"x")), (huge, (True, b"x")), (long, (True, b"x" * 65))])
        assert digests.find([stamp, far, long], 100).found == [b"x", None, None]
        # What cannot even be asked for.
        assert digests.find([stamp, huge], 64).found == [None, None]
    os.close(fd)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("low", [0, 2**63 - 16, 2**63, 2**64 - 200])
def test_inodes_of_any_size(store: DirectoryStore, source: Path, low: int) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    device = os.fstat(fd).st_dev
    files = [(Stamp(device, low + number, number, -5, -6), (True, bytes(number))) for number in range(65)]
    for _ in range(2):
        digests = DigestCache.open(store, fd, Algorithm.SHA512)
        assert digests is not None
        with digests:
            digests.settle()
            digests.remember(files[::2])
            digests.remember(files[1::2])
            digests.close()
        again = DigestCache.open(store, fd, Algorithm.SHA512)
        assert again is not None
        with again:
            assert again.find([stamp for stamp, _ in files], 64).found == [contents for _, (_, contents) in files]
    os.close(fd)
    found = check_cache(store)
    assert found is not None
    assert (found.entries, found.malformed) == (65, 0)


def test_a_bucket_without_form_hides_no_other(store: DirectoryStore, source: Path) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    device = os.fstat(fd).st_dev
    files = [(Stamp(device, inode, 1, 1, 1), (True, b"x")) for inode in range(96)]
    for damage in (b"\0", b"", b"\0" * 10**6):
        digests = DigestCache.open(store, fd, Algorithm.SHA256)
        assert digests is not None
        with digests:
            digests.settle()
            digests.remember(files)
            with sqlite3.connect(Path(store.path) / DATABASE) as database:
                database.execute("UPDATE buckets SET records = ? WHERE bucket = 1", (damage,))
            database.close()
            found = digests.find([stamp for stamp, _ in files], 64).found
            assert found == [b"x"] * 32 + [None] * 32 + [b"x"] * 32
    os.close(fd)


def test_two_builds_remember_into_the_same_buckets(store: DirectoryStore, source: Path) -> None:
    """Neither loses what the other remembers at the same time."""
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    device = os.fstat(fd).st_dev
    stamps = [Stamp(device, inode, 1, 1, 1) for inode in range(200)]

    def build(mine: list[Stamp], value: bytes) -> None:
        digests = DigestCache.open(store, fd, Algorithm.SHA256)
        assert digests is not None
        with digests:
            digests.settle()
            for at in range(0, len(mine), 3):
                digests.remember([(stamp, (True, value)) for stamp in mine[at : at + 3]])

    builds = [threading.Thread(target=build, args=(stamps[first::4], b"%d" % first)) for first in range(4)]
    for one in builds:
        one.start()
    for one in builds:
        one.join()
    build(stamps[:1], b"9")  # the last one counts
    digests = DigestCache.open(store, fd, Algorithm.SHA256)
    assert digests is not None
    with digests:
        assert digests.find(stamps, 64).found == [b"9", *[b"%d" % (number % 4) for number in range(1, 200)]]
    os.close(fd)


def test_nobody_writes_between_reading_and_writing(
    store: DirectoryStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    stamps = [Stamp(os.fstat(fd).st_dev, inode, 1, 1, 1) for inode in range(2)]

    def build(stamp: Stamp) -> None:
        digests = DigestCache.open(store, fd, Algorithm.SHA256)
        assert digests is not None
        with digests:
            digests.settle()
            digests.remember([(stamp, (True, b"x"))])

    other = threading.Thread(target=build, args=stamps[1:])
    joined = buckets._joined

    def wait_for_other(records: Iterable[bytes]) -> tuple[int, bytes]:
        monkeypatch.setattr(buckets, "_joined", joined)
        other.start()
        other.join(0.5)  # it cannot end sooner than this
        return joined(records)

    monkeypatch.setattr(buckets, "_joined", wait_for_other)
    build(stamps[0])
    other.join()
    digests = DigestCache.open(store, fd, Algorithm.SHA256)
    assert digests is not None
    with digests:
        assert digests.find(stamps, 64).found == [b"x", b"x"]
    os.close(fd)


def test_what_is_still_to_be_looked_up_is_not_dropped(store: DirectoryStore, source: Path) -> None:
    source.mkdir()
    fd = os.open(source, os.O_RDONLY)
    stamps = [Stamp(os.fstat(fd).st_dev, inode, 1, 1, 1) for inode in range(4)]
    for days in (100, 0):
        digests = DigestCache.open(store, fd, Algorithm.SHA256)
        assert digests is not None
        with digests:
            digests.settle()
            if days:
                digests.remember([(stamp, (True, b"x")) for stamp in stamps])
            else:
                assert digests.find(stamps[:2], 64).found == [b"x"] * 2  # remembers these two anew
                assert digests.find(stamps[2:3], 64).found == [b"x"]
        grow_old(store, days)
    os.close(fd)
    assert ages(store) == [0, 0, 0]
