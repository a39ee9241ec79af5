"""What is left of a store after kills, full disks and rivals; clones; and the fd limits of a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.errors import StoreError
from cfstools.linux import files
from cfstools.store import DirectoryStore, MemoryBlobs, StoreWriter, is_temporary
from cfstools.store.write.ingest import ingest
from cfstools.tree import Directory, RegularFile
from cfstools.verity import digest_bytes
from tests.store.conftest import assert_whole, listing, loop_mount, names_in

# Adds numbered contents until it is done or killed; says when it has started.
PROGRAM = """
import sys
from cfstools.linux import files
from cfstools.store import DirectoryStore, StoreWriter
path, first, count, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if kind == "named":
    files.open_tmpfile = lambda *_args: None
with DirectoryStore(path, create=True) as store:
    with StoreWriter(store, batch_files=100, deferred=kind == "deferred") as writer:
        print("started", flush=True)
        for number in range(first, first + count):
            writer.add_bytes(b"%d" % number * 300)
        report = writer.commit()
        print(report.objects_new, report.objects_shared, flush=True)
"""


def run(path: Path, first: int, count: int, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), str(first), str(count), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def wait_for_objects(path: Path) -> None:
    """A sync may take its time on a busy machine."""
    deadline = time.monotonic() + 120
    while not any(len(name) == 2 for name in names_in(path)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["anonymous", "named", "deferred"])
def test_killed(tmp_path: Path, kind: str) -> None:
    """Whatever the moment, what is visible is whole, the lock is free, and leftovers have temporaries' names."""
    path = tmp_path / "store"
    for wait in (0.0, 0.03, 0.1, 0.3):
        process = run(path, 0, 1_000_000, kind)
        time.sleep(wait)
        if wait == 0.3 and kind != "deferred":
            wait_for_objects(path)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert_whole(path)
        for name in names_in(path):
            assert len(name) == 2 or is_temporary(os.fsencode(name))
    with DirectoryStore(str(path)) as store:
        with store.locked(exclusive=True, wait=False) as held:
            assert held
        with StoreWriter(store) as writer:
            for number in range(50):
                writer.add_bytes(b"%d" % number * 300)
    assert assert_whole(path) >= 50
    if kind == "anonymous":
        assert not [name for name in names_in(path) if is_temporary(os.fsencode(name))]


@pytest.mark.parametrize("kinds", [("anonymous", "anonymous"), ("anonymous", "named"), ("named", "deferred")])
def test_two_processes_at_once(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """Overlapping contents: every object is there once, and each was new to exactly one of the two."""
    path = tmp_path / "store"
    pair = [run(path, 0, 1500, kinds[0]), run(path, 500, 1500, kinds[1])]
    counts = [tuple(map(int, process.communicate()[0].split())) for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sum(new for new, _ in counts) == 2000
    assert sum(shared for _, shared in counts) == 1000
    assert assert_whole(path) == 2000
    assert all(len(name) == 2 for name in names_in(path))


def test_small_descriptor_limit(tmp_path: Path) -> None:
    """With the limit of a plain shell the work is done in smaller batches."""
    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n" + PROGRAM.replace(
        "batch_files=100, ", ""
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "s"), "0", "300", "anonymous"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "started\n300 0\n"
    assert assert_whole(tmp_path / "s") == 300


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    yield from loop_mount(tmp_path, "ext4", 8 << 20, "-O", "^has_journal", "-m", "0")


@pytest.mark.parametrize("deferred", [False, True])
def test_full_file_system(small_ext4: Path, deferred: bool) -> None:
    path = small_ext4 / "store"

    def fill() -> None:
        with (
            DirectoryStore(str(path), create=True) as store,
            StoreWriter(store, batch_files=10, deferred=deferred) as writer,
        ):
            for number in range(100):
                writer.add_bytes(b"%03d" % number * 70_000)

    with pytest.raises(StoreError) as caught:
        fill()
    assert str(caught.value) == f"{path}: cannot write an object: No space left on device"
    kept = assert_whole(path)
    assert all(len(name) == 2 for name in names_in(path))
    if deferred:
        assert kept == 0
        assert listing(path) == {}
    else:
        assert kept >= 10


@pytest.fixture(params=["xfs", "btrfs"])
def cloning(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield from loop_mount(tmp_path, request.param, 320 << 20)


def shares_blocks(first: Path, second: Path) -> bool:
    out = subprocess.run(["filefrag", "-v", str(first), str(second)], check=True, capture_output=True, text=True).stdout
    return out.count("shared") >= 2


@pytest.mark.parametrize("deferred", [False, True])
def test_large_files_are_cloned(cloning: Path, deferred: bool) -> None:
    data = os.urandom(3 << 20)
    source = cloning / "source"
    source.write_bytes(data)
    with DirectoryStore(str(cloning / "store"), create=True) as store:
        fd = os.open(source, os.O_RDONLY)
        with StoreWriter(store, deferred=deferred) as writer:
            first = writer.add_fd(fd)
            second = writer.add_fd(fd)
            writer.commit()
        os.close(fd)
        assert first.new
        assert not second.new
        assert first.digest == digest_bytes(data)
        assert assert_whole(store.path) == 1
        target = Path(store.describe(first.digest))
        assert target.stat().st_mode & 0o7777 == 0o644
        assert shares_blocks(source, target)
        # The clone is independent of what happens to the source.
        source.write_bytes(b"changed")
        assert assert_whole(store.path) == 1


def test_clone_errors(tmp_path: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is asked once and refuses is not asked again; a real failure is an error."""
    asked = []

    def refuse(_src: int, _dst: int) -> bool:
        asked.append(1)
        return False

    def fail(_src: int, _dst: int) -> bool:
        raise OSError(5, "Input/output error")

    path = tmp_path / "source"
    path.write_bytes(os.urandom(2 << 20))
    fd = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(files, "reflink", refuse)
    with StoreWriter(store) as writer:
        assert writer.add_fd(fd).new
        assert not writer.add_fd(fd).new
    assert asked == [1]
    monkeypatch.setattr(files, "reflink", fail)
    with (
        StoreWriter(store) as writer,
        pytest.raises(StoreError, match="cannot clone into the store: Input/output error"),
    ):
        writer.add_fd(fd)
    os.close(fd)
    assert assert_whole(store.path) == 1


@pytest.mark.usefixtures("pure")
def test_clone_that_cannot_be_read(tmp_path: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(2 << 20))
    monkeypatch.setattr(files, "reflink", lambda _src, _dst: True)

    def fail(*_args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    fd = os.open(path, os.O_RDONLY)
    writer = StoreWriter(store)
    with pytest.raises(Exception, match="cannot read: Input/output error"):
        writer.add_fd(fd)
    writer.close()
    os.close(fd)
    assert names_in(store.path) == []


def test_an_ordinary_user_who_may_not_write(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("changing to another user needs root")
    path = tmp_path / "store"
    path.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from cfstools.errors import StoreError\n"
        "from cfstools.store import DirectoryStore, StoreWriter\n"
        "try:\n"
        "    with StoreWriter(DirectoryStore(sys.argv[1])) as writer: writer.add_bytes(b'x')\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import cfstools.store.directory, cfstools.store.write.writer, cfstools.errors\n" + program,
            str(path),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{path}: cannot make a temporary file in the store: Permission denied\n"


def test_ingest_killed_midway(tmp_path: Path) -> None:
    """The whole of an ingest with threads, killed: the next run completes the store."""
    program = """
import sys
from cfstools.store import DirectoryStore, MemoryBlobs, StoreWriter
from cfstools.store.write.ingest import ingest
from cfstools.tree import Directory, RegularFile
blobs, root = MemoryBlobs(), Directory(mode=0o40755)
for number in range(500):
    data = b"%d" % number * 3000
    root.entries[b"%d" % number] = RegularFile(mode=0o100644, size=len(data), content=blobs.add(b"%d" % number, data))
print("started", flush=True)
with DirectoryStore(sys.argv[1], create=True) as store, StoreWriter(store, batch_files=50) as writer:
    ingest(root, blobs, writer, threads=3)
"""
    path = tmp_path / "store"
    command = [sys.executable, "-c", program, str(path)]
    for wait in (0.02, 0.05, 0.1, 0.2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.communicate()
        if path.exists():
            assert_whole(path)
    subprocess.run(command, check=True, capture_output=True)
    assert assert_whole(path) == 500
    assert all(len(name) == 2 for name in names_in(path))


def test_memory_does_not_grow_with_file_size(tmp_path: Path) -> None:
    """A file through digest and store in a process that may not have as much memory as it is long."""
    program = """
import resource, sys
from cfstools.store import DirectoryStore, StoreWriter
import os
limit = 256 << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
fd = os.open(sys.argv[2], os.O_RDONLY)
with DirectoryStore(sys.argv[1], create=True) as store, StoreWriter(store) as writer:
    print(writer.add_fd(fd).size)
"""
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(400 << 20)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store"), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{400 << 20}\n"
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.unlink()


def test_tree_in_memory_to_store(store: DirectoryStore) -> None:
    blobs = MemoryBlobs()
    data = b"data" * 100
    root = Directory(mode=0o40755)
    root.entries[b"f"] = RegularFile(mode=0o100644, size=len(data), content=blobs.add(b"f", data))
    with StoreWriter(store) as writer:
        ingest(root, blobs, writer)
    blobs.close()
    assert assert_whole(store.path) == 1
