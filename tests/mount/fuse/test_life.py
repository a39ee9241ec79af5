"""Readers that are killed while they wait, mounts that go on with another server, what the kernel keeps, and limits."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cfstools.errors import StoreError
from cfstools.linux.mount import move_mount, umount
from cfstools.mount.fuse import connect
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.mount.fuse.server import Counters, serve
from cfstools.mount.lazy.waiting import Flight
from cfstools.store import MemoryStore
from cfstools.store.base import BytesObject
from cfstools.threadpool import ThreadPool
from cfstools.tree import Directory, External, HardLink, RegularFile
from cfstools.tree.model import Entry
from cfstools.verity import digest_bytes
from cfstools.view.nodes import View
from tests import requirements

pytestmark = [pytest.mark.root, pytest.mark.kernel]

DATA = b"contents " * 10_000
_SLOW = 60.0


class Held(MemoryStore):
    """A store whose objects come when it is told so; until then opening one waits, as it does for a lazy store."""

    def __init__(self) -> None:
        super().__init__()
        self.add(DATA)
        self.flight = Flight()
        self.asked = threading.Event()

    def open(self, digest: bytes) -> BytesObject:
        self.asked.set()
        self.flight.wait(_SLOW, "object")
        return super().open(digest)


def tree() -> Directory:
    file = RegularFile(mode=0o100644, size=len(DATA), content=External(digest_bytes(DATA), None), nlink=2)
    entries: dict[bytes, Entry] = {b"file": file, b"again": HardLink(file)}
    entries[b"small"] = RegularFile(mode=0o100644, size=5, content=b"small")
    key = b"user." + b"k" * 250
    entries[b"attributes"] = RegularFile(
        mode=0o100644, size=0, content=b"", xattrs={key: b"v" * 65535, b"user.\xff\n": b"", b"user.n": b"1"}
    )
    # More names of attributes than the kernel lists.
    many = {b"user.%0250d" % number: b"" for number in range(300)}
    entries[b"many"] = RegularFile(mode=0o100644, size=0, content=b"", xattrs=many)
    return Directory(mode=0o040755, entries=entries)


class Mounted:
    """A mount in this process, served by a thread."""

    def __init__(self, path: Path, store: MemoryStore) -> None:
        self.path = path
        self.counters = Counters()
        self.nodes = TreeNodes(View(tree(), MemoryStore()))
        self.store = store
        self.device, mount = connect.detached(source=b"test", allow_other=True)
        place = os.open(path, os.O_PATH)
        move_mount(mount, place)
        os.close(mount)
        os.close(place)

    @contextmanager
    def served(self, *, resume: bool = False, device: int | None = None) -> Iterator[None]:
        """Serve in a thread until the mount is gone; it is, at the end."""
        device = self.device if device is None else device
        with ThreadPool(4, "fuse") as pool, ObjectContents(self.nodes, [self.store]) as contents:
            options = {"pool": pool, "resume": resume, "counters": self.counters}
            thread = threading.Thread(target=serve, args=(device, self.nodes, contents), kwargs=options)
            thread.start()
            try:
                yield
            finally:
                if isinstance(self.store, Held):
                    self.store.flight.end(StoreError("the test ends"))
                with suppress(OSError):
                    umount(bytes(self.path), detach=True)
                thread.join(20)
                assert not thread.is_alive()
                os.close(device)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    requirements.need_mounts("fuse")
    held = MemoryStore()
    held.add(DATA)
    made = Mounted(tmp_path, held)
    with made.served():
        yield made


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Mounted]:
    requirements.need_mounts("fuse")
    made = Mounted(tmp_path, Held())
    with made.served():
        yield made


_READERS = {
    "cat": "import os, sys; os.read(os.open(sys.argv[1], os.O_RDONLY), 9)",
    # Without readahead (POSIX_FADV_RANDOM) the kernel waits for the very page, with an interrupt.
    "page": "import os, sys; f = os.open(sys.argv[1], 0); os.posix_fadvise(f, 0, 0, 1); os.read(f, 9)",
    "direct": "import os, sys, mmap; os.preadv(os.open(sys.argv[1], os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)",
    "map": "import os, sys, mmap; mmap.mmap(os.open(sys.argv[1], 0), 0, prot=mmap.PROT_READ)[:9]",
}


@pytest.mark.parametrize("how", _READERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_reader_that_is_killed_ends_at_once(slow: Mounted, how: str, number: signal.Signals) -> None:
    assert isinstance(slow.store, Held)
    reader = subprocess.Popen([sys.executable, "-c", _READERS[how], slow.path / "file"])
    assert slow.store.asked.wait(20)
    time.sleep(0.05)
    assert reader.poll() is None
    reader.send_signal(number)
    assert reader.wait(20) == -number  # far less than the store takes
    assert (slow.path / "small").read_bytes() == b"small"


_SIGNALS = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
f = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)
print("open", flush=True)
sys.stdout.buffer.write(os.pread(f, 9, 0))
"""


def test_other_signals_do_not_end_a_read(slow: Mounted) -> None:
    assert isinstance(slow.store, Held)
    words = [sys.executable, "-c", _SIGNALS, str(slow.path / "file")]
    reader = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert slow.store.asked.wait(20)
    time.sleep(1)
    assert reader.poll() is None
    slow.store.flight.end()
    assert reader.communicate(timeout=20)[0] == b"open\ncontents "


def test_another_server_goes_on(tmp_path: Path) -> None:
    """What one server has read and not answered, the next one gets from the kernel and answers."""
    requirements.need_mounts("fuse")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9):
        requirements.missing("needs Linux 6.9")
    held = MemoryStore()
    held.add(DATA)
    made = Mounted(tmp_path, held)
    # The first server answers INIT and LOOKUP, and reads more than it answers.
    first = os.fork()
    if not first:
        with ThreadPool(2, "fuse") as pool, ObjectContents(made.nodes, [Held()]) as contents:
            serve(made.device, made.nodes, contents, pool=pool)
        os._exit(0)
    reader = subprocess.Popen(["cat", made.path / "file"], stdout=subprocess.PIPE)
    while (made.path / "file").stat().st_size != len(DATA) or not _waits(reader.pid):
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert reader.poll() is None
    with made.served(resume=True):
        assert reader.communicate(timeout=20)[0] == DATA
        assert (made.path / "small").read_bytes() == b"small"


def _waits(pid: int) -> bool:
    return b"folio" in Path(f"/proc/{pid}/stack").read_bytes() or b"fuse" in Path(f"/proc/{pid}/stack").read_bytes()


def test_what_was_asked_once_is_not_asked_again(mounted: Mounted) -> None:
    def look() -> None:
        assert sorted(os.listdir(mounted.path)) == ["again", "attributes", "file", "many", "small"]
        # Not by open(), which asks whether it is a terminal: such requests the kernel always passes on.
        file = os.open(mounted.path / "file", os.O_RDONLY)
        assert os.read(file, len(DATA) + 1) == DATA
        os.close(file)
        assert (mounted.path / "again").stat().st_ino == (mounted.path / "file").stat().st_ino
        for name in ("missing", "file2", "small/x"):
            assert not os.path.lexists(mounted.path / name)

    look()
    before = mounted.counters.requests
    for _ in range(3):
        look()
    assert mounted.counters.requests == before


def test_attributes_as_the_kernel_limits_them(mounted: Mounted) -> None:
    path = mounted.path / "attributes"
    key = "user." + "k" * 250
    assert os.getxattr(path, key) == b"v" * 65535
    assert sorted(map(os.fsencode, os.listxattr(path))) == sorted([key.encode(), b"user.\xff\n", b"user.n"])
    assert _getxattr(path, b"user.n", 1) == 1
    assert _getxattr(path, key.encode(), 10) == -errno.ERANGE
    assert _getxattr(path, b"user.missing", 10) == -errno.ENODATA
    with pytest.raises(OSError, match=os.strerror(errno.E2BIG)):
        os.listxattr(mounted.path / "many")
    assert os.getxattr(mounted.path / "many", f"user.{299:0250}") == b""
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.setxattr(path, "user.n", b"2")


def _getxattr(path: Path, key: bytes, room: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    got = int(libc.getxattr(bytes(path), key, ctypes.create_string_buffer(room), ctypes.c_size_t(room)))
    return -ctypes.get_errno() if got < 0 else got


def test_nothing_can_be_written(mounted: Mounted) -> None:
    for action in (
        lambda: os.mkdir(mounted.path / "new"),
        lambda: os.unlink(mounted.path / "file"),
        lambda: os.open(mounted.path / "file", os.O_WRONLY),
        lambda: os.chmod(mounted.path / "file", 0o600),
        lambda: os.rename(mounted.path / "file", mounted.path / "x"),
        lambda: os.utime(mounted.path / "file"),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            action()


def test_a_handle_finds_a_file_that_the_kernel_has_forgotten(mounted: Mounted) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    number = ctypes.c_int()
    words = (-100, bytes(mounted.path / "small"), handle, ctypes.byref(number), 0)
    assert libc.name_to_handle_at(*words) == 0, os.strerror(ctypes.get_errno())
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
    top = os.open(mounted.path, os.O_RDONLY)
    fd = libc.open_by_handle_at(top, handle, os.O_RDONLY)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    assert os.read(fd, 9) == b"small"
    os.close(fd)
    os.close(top)
