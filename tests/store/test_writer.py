"""Adding objects: what is written, what is shared, what happens when it cannot be."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cfstools import native
from cfstools.errors import Exhausted, InputError, StoreError
from cfstools.linux import files
from cfstools.linux import verity as kernel_verity
from cfstools.native import _pure
from cfstools.store import DirectoryStore, MemoryStore, StoreWriter
from cfstools.store.write import publisher
from cfstools.store.write.scratch import Scratch
from cfstools.store.write.stream import SMALL
from cfstools.verity import DEFAULT, Algorithm, Params, digest_bytes, object_path
from tests.descriptors import descriptors
from tests.store.conftest import assert_whole, listing, names_in

# The same in each run: now and then, digests of random data would share the directory of another test object.
_RANDOM = random.Random(1)
SMALL_DATA = _RANDOM.randbytes(5000)
LARGE_DATA = _RANDOM.randbytes(SMALL * 2 + 77)


@pytest.fixture(params=["anonymous", "named", "deferred"])
def deferred(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs a test with every kind of temporary: without a name, with one where need be, with one until late."""
    if request.param == "named":
        monkeypatch.setattr(files, "open_tmpfile", lambda *_args: None)
    return bool(request.param == "deferred")


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert len(descriptors() - before) <= 300  # the store's own prefixes


def source(tmp_path: Path, data: bytes, name: str = "source") -> int:
    path = tmp_path / name
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_every_way_to_add(store: DirectoryStore, tmp_path: Path, deferred: bool) -> None:
    contents = [SMALL_DATA, LARGE_DATA, os.urandom(SMALL), os.urandom(SMALL + 1), b"x", b""]
    with StoreWriter(store, deferred=deferred) as writer:
        stored = []
        for number, data in enumerate(contents):
            match number % 3:
                case 0:
                    stored.append(writer.add_bytes(data))
                case 1:
                    fd = source(tmp_path, data)
                    os.lseek(fd, 3, os.SEEK_SET)
                    stored.append(writer.add_fd(fd))
                    os.close(fd)
                case _:
                    with writer.open_stream() as stream:
                        for at in range(0, len(data), 70_000):
                            stream.write(data[at : at + 70_000])
                            assert stream.size == min(len(data), at + 70_000)
                        stored.append(stream.finish())
        assert [item.digest for item in stored] == [digest_bytes(data) for data in contents]
        assert [item.size for item in stored] == [len(data) for data in contents]
        assert all(item.new for item in stored)
        assert list(store.objects()) == []
        report = writer.commit()
    assert (report.objects_new, report.bytes_new) == (6, sum(map(len, contents)))
    assert report.objects_shared == 0
    assert report == writer.report
    assert report.to_dict()["objects_new"] == 6
    expected = {digest_bytes(data).hex(): data for data in contents}
    assert {name.replace("/", ""): data for name, data in listing(store.path).items()} == expected


def test_layout_and_modes(store: DirectoryStore, deferred: bool) -> None:
    old = os.umask(0o077)
    try:
        with StoreWriter(store, deferred=deferred) as writer:
            digest = writer.add_bytes(SMALL_DATA).digest
            writer.add_bytes(b"second")
            writer.commit()
    finally:
        os.umask(old)
    path = Path(store.describe(digest))
    assert path.relative_to(store.path).parts == (digest.hex()[:2], digest.hex()[2:])
    assert path.stat().st_mode & 0o7777 == 0o644
    assert path.stat().st_nlink == 1
    assert path.parent.stat().st_mode & 0o7777 == 0o700


def test_shared_contents(store: DirectoryStore, tmp_path: Path, deferred: bool) -> None:
    with StoreWriter(store, deferred=deferred) as writer:
        first = writer.add_bytes(SMALL_DATA)
        again = writer.add_bytes(SMALL_DATA)
        assert first.new
        assert not again.new
        with writer.open_stream() as stream:
            stream.write(LARGE_DATA)
            assert stream.finish().new
        fd = source(tmp_path, LARGE_DATA)
        assert not writer.add_fd(fd).new
        report = writer.commit()
        assert (report.objects_new, report.objects_shared) == (2, 2)
        assert report.bytes_shared == len(SMALL_DATA) + len(LARGE_DATA)
    inode = os.stat(store.describe(first.digest)).st_ino
    with StoreWriter(store, deferred=deferred) as writer:
        assert not writer.add_bytes(SMALL_DATA).new
        # Most contents were there so far: the large file is hashed before it is copied.
        assert not writer.add_fd(fd).new
        new = source(tmp_path, LARGE_DATA + b"more", "new")
        assert writer.add_fd(new).new
        report = writer.commit()
        assert (report.objects_new, report.objects_shared) == (1, 2)
        os.close(new)
    os.close(fd)
    assert os.stat(store.describe(first.digest)).st_ino == inode
    assert assert_whole(store.path) == 3


def test_other_stores_count_as_shared(store: DirectoryStore) -> None:
    class Broken(MemoryStore):
        def size(self, digest: bytes) -> int | None:
            raise StoreError("broken")

    class Damaged(MemoryStore):
        def size(self, digest: bytes) -> int | None:
            return 1

    other = MemoryStore()
    other.add(SMALL_DATA)
    with StoreWriter(store, others=[Broken(), Damaged(), other]) as writer:
        assert not writer.add_bytes(SMALL_DATA).new
        assert writer.add_bytes(b"only here").new
    assert assert_whole(store.path) == 1


def test_other_parameters(store: DirectoryStore) -> None:
    params = Params(algorithm=Algorithm.SHA512)
    with StoreWriter(store, params=params) as writer:
        small = writer.add_bytes(SMALL_DATA)
        with writer.open_stream() as stream:
            stream.write(LARGE_DATA)
            large = stream.finish()
    assert small.digest == digest_bytes(SMALL_DATA, params)
    assert large.digest == digest_bytes(LARGE_DATA, params)
    assert set(store.objects()) == {small.digest, large.digest}


@pytest.mark.parametrize("limit", [{"batch_files": 10}, {"batch_bytes": 10_000}])
def test_batches_are_published_on_the_way(store: DirectoryStore, limit: dict[str, int]) -> None:
    with StoreWriter(
        store, batch_files=limit.get("batch_files", 3000), batch_bytes=limit.get("batch_bytes", 1 << 30)
    ) as w:
        for number in range(9):
            w.add_bytes(b"%d" % number + bytes(1000))
        assert list(store.objects()) == []
        w.add_bytes(b"one more" + bytes(1000))
        assert assert_whole(store.path) == 10
        assert w.report.objects_new == 10
        w.add_bytes(b"and another")
        assert assert_whole(store.path) == 10
    assert assert_whole(store.path) == 11


def test_names_come_after_the_sync(store: DirectoryStore, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that makes a power cut harmless: contents, sync, names, sync."""
    events: list[str] = []
    with store.locked():  # whose file gets a name as well
        pass

    def record(name: str, event: str) -> None:
        real = getattr(files, name)

        def call(*args: object) -> object:
            events.append(event)
            return real(*args)

        monkeypatch.setattr(files, name, call)

    def link_files(links: Sequence[tuple[int, int, bytes]]) -> list[int]:
        events.extend(["name"] * len(links))
        return _pure.link_files(links)

    record("syncfs", "sync")

    monkeypatch.setattr(native, "link_files", link_files)
    record("link_tmpfile", "name")
    record("rename_noreplace", "name")
    with StoreWriter(store, batch_files=2, deferred=deferred) as writer:
        for number in range(5):
            writer.add_bytes(b"%d" % number)
        writer.commit()
        writer.commit()
    if deferred:
        assert events == ["sync", *["name"] * 5, "sync"]
    else:
        assert events == ["sync", "name", "name", "sync", "name", "name", "sync", "name", "sync"]
    events.clear()
    with StoreWriter(store, deferred=deferred) as writer:
        writer.add_bytes(b"0")
        writer.commit()
    assert events == []


def test_an_error_drops_what_was_not_published(store: DirectoryStore, deferred: bool) -> None:
    writer = StoreWriter(store, deferred=deferred)

    def fail() -> None:
        with writer:
            writer.add_bytes(SMALL_DATA)
            stream = writer.open_stream()
            stream.write(LARGE_DATA)
            stream.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names_in(store.path) == []
    with pytest.raises(StoreError, match="the writer is closed"):
        writer.add_bytes(SMALL_DATA)
    with pytest.raises(StoreError, match="the writer is closed"):
        writer.commit()
    assert names_in(store.path) == []
    writer.close()


def test_streams_may_be_dropped(store: DirectoryStore, deferred: bool) -> None:
    with StoreWriter(store, deferred=deferred) as writer:
        with writer.open_stream() as stream:
            stream.write(LARGE_DATA)
        with writer.open_stream() as stream:
            stream.write(b"small")
        assert writer.commit().objects_new == 0
    assert names_in(store.path) == []


def test_discard_before_publication(store: DirectoryStore, deferred: bool) -> None:
    with StoreWriter(store, deferred=deferred) as writer:
        unwanted = writer.add_bytes(b"unwanted").digest
        wanted = writer.add_bytes(b"wanted").digest
        assert writer.discard(unwanted)
        assert not writer.discard(unwanted)
        writer.commit()
        assert not writer.discard(wanted)
        again = writer.add_bytes(b"unwanted")
        assert again.new
        writer.discard(again.digest)
        writer.commit()
    assert list(store.objects()) == [wanted]
    assert names_in(store.path) == [wanted.hex()[:2]]


def test_deferred_publishes_what_is_kept(store: DirectoryStore) -> None:
    with StoreWriter(store, deferred=True, batch_files=3) as writer:
        digests = [writer.add_bytes(b"%d" % number).digest for number in range(20)]
        assert list(store.objects()) == []
        stage = [name for name in names_in(store.path) if name.startswith(".mkcfs-tmp-")]
        assert len(stage) == 1
        assert (Path(store.path) / stage[0]).stat().st_mode & 0o7777 == 0o700
        report = writer.commit(keep=set(digests[:5]))
        assert report.objects_new == 5
    assert set(store.objects()) == set(digests[:5])
    assert not [name for name in names_in(store.path) if name.startswith(".")]


def test_deferred_without_commit_publishes_nothing(store: DirectoryStore) -> None:
    with StoreWriter(store, deferred=True) as writer:
        writer.add_bytes(SMALL_DATA)
    assert names_in(store.path) == []


def test_damaged_object_of_other_length(store: DirectoryStore, deferred: bool) -> None:
    path = Path(store.describe(digest_bytes(SMALL_DATA)))
    path.parent.mkdir()
    path.write_bytes(b"short")
    with pytest.raises(StoreError) as caught, StoreWriter(store, deferred=deferred) as writer:
        writer.add_bytes(SMALL_DATA)
    assert str(caught.value) == f"{path}: damaged object: 5 bytes instead of 5000"
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("where", ["object", "prefix"])
def test_planted_links_are_never_followed(store: DirectoryStore, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"victim")
    path = Path(store.describe(digest_bytes(SMALL_DATA)))
    if where == "object":
        path.parent.mkdir()
        path.symlink_to(outside / "victim")
    else:
        path.parent.symlink_to(outside)
    with pytest.raises(StoreError, match=r"not a regular file|Not a directory"), StoreWriter(store) as writer:
        writer.add_bytes(SMALL_DATA)
    assert listing(outside) == {"victim": b"victim"}


@pytest.mark.parametrize("plant", ["link", "prefix", "same", "other", "gone"])
def test_what_appears_between_lookup_and_publication(
    store: DirectoryStore, tmp_path: Path, plant: str, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone else comes while an object waits: the same object is shared, anything else is an error."""
    digest = digest_bytes(SMALL_DATA)
    path = Path(store.describe(digest))
    (tmp_path / "outside").mkdir()

    def act() -> None:
        if plant == "prefix":
            path.parent.symlink_to(tmp_path / "outside")
            return
        path.parent.mkdir()
        if plant == "link":
            path.symlink_to(tmp_path / "outside" / "new")
        else:
            path.write_bytes(SMALL_DATA if plant == "same" else b"other")

    writer = StoreWriter(store, deferred=deferred)
    writer.add_bytes(SMALL_DATA)
    act()
    if plant == "gone":
        monkeypatch.setattr(store, "size", lambda _digest: None)
    if plant == "same":
        report = writer.commit()
        assert (report.objects_new, report.objects_shared) == (0, 1)
    else:
        with pytest.raises(StoreError) as caught:
            writer.commit()
        # Every later attempt hears the same.
        with pytest.raises(StoreError) as again:
            writer.add_bytes(b"next")
        assert str(again.value) == str(caught.value)
    writer.close()
    assert listing(tmp_path / "outside") == {}


def test_fifo_and_pipe_contents(store: DirectoryStore) -> None:
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(LARGE_DATA)

    thread = threading.Thread(target=feed)
    thread.start()
    with StoreWriter(store) as writer:
        assert writer.add_fd(read_end).digest == digest_bytes(LARGE_DATA)
    thread.join()
    os.close(read_end)
    assert assert_whole(store.path) == 1


@pytest.mark.parametrize("claimed", [0, 10, 6000])
def test_files_that_are_not_as_long_as_they_say(
    store: DirectoryStore, tmp_path: Path, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is what was read, under its own digest."""
    fd = source(tmp_path, SMALL_DATA)
    real = os.fstat

    def fstat(number: int) -> os.stat_result:
        status = real(number)
        if number != fd:
            return status
        values = list(status)
        values[6] = claimed
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", fstat)
    with StoreWriter(store) as writer:
        assert writer.add_fd(fd).digest == digest_bytes(SMALL_DATA)
    os.close(fd)
    assert assert_whole(store.path) == 1


@pytest.mark.usefixtures("pure")
def test_unreadable_sources(store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreWriter(store) as writer:
        with pytest.raises(InputError, match="cannot read: Bad file descriptor"):
            writer.add_fd(1_000_000_000)
        fd = source(tmp_path, LARGE_DATA)

        def fail(*_args: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(InputError, match="cannot read: Input/output error"):
            writer.add_fd(fd)
        os.close(fd)
    assert names_in(store.path) == []


@pytest.mark.usefixtures("pure")
def test_full_disk(store: DirectoryStore, tmp_path: Path, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial writes, then none: the temporary goes, nothing becomes visible."""
    real, real_pwrite = os.write, os.pwrite
    fd = source(tmp_path, LARGE_DATA)

    def write(number: int, data: memoryview) -> int:
        if len(data) <= 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, data[: len(data) // 2])

    def pwrite(number: int, data: memoryview, offset: int) -> int:
        if len(data) <= 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_pwrite(number, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "pwrite", pwrite)
    writer = StoreWriter(store, deferred=deferred)
    message = "store: cannot write an object: No space left on device$"
    with pytest.raises(StoreError, match=message):
        writer.add_bytes(SMALL_DATA)
    with pytest.raises(StoreError, match=message):
        writer.add_fd(fd)
    writer.commit()
    writer.close()
    os.close(fd)
    assert names_in(store.path) == []


@pytest.mark.parametrize("call", ["fchmod", "fstat"])
def test_errors_while_completing(store: DirectoryStore, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(os, call)

    def fail(fd: int, *args: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(
        files, "open_tmpfile", lambda dirfd, _mode: os.open(b".", os.O_TMPFILE | os.O_RDWR, 0, dir_fd=dirfd)
    )
    with StoreWriter(store) as writer:
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(StoreError, match="cannot complete an object: Input/output error"):
            writer.add_bytes(SMALL_DATA)
        monkeypatch.setattr(os, call, real)
        assert writer.add_bytes(SMALL_DATA).new
    assert assert_whole(store.path) == 1


def test_sync_errors_publish_nothing(store: DirectoryStore, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = StoreWriter(store, deferred=deferred)
    writer.add_bytes(SMALL_DATA)
    monkeypatch.setattr(files, "syncfs", fail)
    with pytest.raises(StoreError, match="cannot bring objects to stable storage: Input/output error"):
        writer.commit()
    writer.close()
    assert names_in(store.path) == []


def test_interrupted_publication(store: DirectoryStore, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_fd: int) -> None:
        raise KeyboardInterrupt

    writer = StoreWriter(store, deferred=deferred)
    writer.add_bytes(SMALL_DATA)
    monkeypatch.setattr(files, "syncfs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    writer.close()
    assert names_in(store.path) == []


def test_too_many_open_files(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is published early when no descriptor is left; when that does not help it is an error."""
    real, sync = files.open_tmpfile, files.syncfs
    held: list[int | None] = []
    with store.locked():
        pass

    def scarce(dirfd: int, mode: int = 0o600) -> int | None:
        if len(held) >= 5:
            raise OSError(errno.EMFILE, "Too many open files")
        fd = real(dirfd, mode)
        held.append(fd)
        return fd

    def letting_go(fd: int) -> None:
        held.clear()
        sync(fd)

    monkeypatch.setattr(files, "open_tmpfile", scarce)
    monkeypatch.setattr(files, "syncfs", letting_go)
    writer = StoreWriter(store)
    for number in range(6):
        writer.add_bytes(b"%d" % number)
    assert assert_whole(store.path) == 5
    monkeypatch.setattr(files, "syncfs", sync)
    for number in range(6, 10):
        writer.add_bytes(b"%d" % number)
    with pytest.raises(Exhausted, match="cannot make a temporary file in the store: Too many open files"):
        writer.add_bytes(b"last")
    writer.close()


def test_batches_are_smaller_when_few_descriptors_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fd_limit", lambda: 100)
    with DirectoryStore(str(tmp_path / "s"), create=True) as store, StoreWriter(store) as writer:
        for number in range(17):
            writer.add_bytes(b"%d" % number)
        assert assert_whole(store.path) == 16


def test_unwritable_store(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.locked():
        pass

    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "open_tmpfile", refuse)
    with pytest.raises(StoreError) as caught, StoreWriter(store) as writer:
        writer.add_bytes(b"x")
    assert str(caught.value) == f"{store.path}: cannot make a temporary file in the store: Permission denied"


def test_fs_verity_is_turned_on(store: DirectoryStore, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's part stands in: it must see a complete file, open for reading only."""
    seen = []

    def enable(fd: int, algorithm: int, block_size: int, salt: bytes) -> None:
        import fcntl

        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        seen.append((os.pread(fd, 100, 0), algorithm, block_size, salt))

    monkeypatch.setattr(kernel_verity, "enable", enable)
    with StoreWriter(store, fs_verity="auto", deferred=deferred) as writer:
        writer.add_bytes(b"one")
        writer.add_bytes(b"two")
        writer.commit()
    assert seen == [(b"one", 1, 4096, b""), (b"two", 1, 4096, b"")]
    assert assert_whole(store.path) == 2


def test_fs_verity_that_cannot_be_turned_on(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(number: int) -> None:
        def enable(*_args: object) -> None:
            tries.append(number)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(kernel_verity, "enable", enable)

    refuse(errno.EOPNOTSUPP)
    with StoreWriter(store, fs_verity="auto") as writer:
        writer.add_bytes(b"one")
        writer.add_bytes(b"two")
    assert tries == [errno.EOPNOTSUPP]
    refuse(errno.ETXTBSY)
    with StoreWriter(store, fs_verity="auto") as writer:
        writer.add_bytes(b"three")
        writer.add_bytes(b"four")
    assert tries[1:] == [errno.ETXTBSY] * 2
    assert assert_whole(store.path) == 4
    with pytest.raises(StoreError, match="cannot turn on fs-verity"), StoreWriter(store, fs_verity="require") as writer:
        writer.add_bytes(b"five")
    assert assert_whole(store.path) == 4


def test_many_threads(store: DirectoryStore, deferred: bool) -> None:
    """Every content added by every thread: published once each, counted right."""
    contents = [b"%d" % number * 50 for number in range(400)]

    def add_all(writer: StoreWriter, start: int) -> int:
        return sum(writer.add_bytes(data).new for data in contents[start:] + contents[:start])

    with StoreWriter(store, batch_files=50, deferred=deferred) as writer, ThreadPoolExecutor(4) as pool:
        new = sum(pool.map(lambda start: add_all(writer, start), [0, 7, 200, 399]))
        report = writer.commit()
    assert report.objects_new == 400
    assert report.objects_new + report.objects_shared == 1600
    assert new >= 400
    assert assert_whole(store.path) == 400


def test_lock_is_held_until_the_end(store: DirectoryStore) -> None:
    with DirectoryStore(store.path) as other:
        with (
            StoreWriter(store) as writer,
            pytest.raises(StoreError, match="in use"),
            other.locked(exclusive=True, wait=False),
        ):
            pass
        with other.locked(exclusive=True, wait=False) as held:
            assert held
    writer.close()


def test_stage_is_not_made_after_the_end(store: DirectoryStore) -> None:
    """A thread that is late finds the door closed instead of leaving a directory behind."""
    scratch = Scratch(store, named=True, mode=0o644, fs_verity="off", params=DEFAULT)
    scratch.close()
    with pytest.raises(StoreError, match="the writer is closed"):
        scratch.create()
    assert names_in(store.path) == []


def test_stage_that_cannot_be_removed_is_left(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recognised as stale later (docs/store.md); the work itself succeeded."""
    writer = StoreWriter(store, deferred=True)
    writer.add_bytes(SMALL_DATA)
    writer.commit()

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", refuse)
        writer.close()
    assert assert_whole(store.path) == 1


@pytest.mark.usefixtures("each_implementation")
def test_many_contents_at_once(store: DirectoryStore, deferred: bool) -> None:
    contents = [b"%d" % number * 500 for number in range(50)]
    with StoreWriter(store, deferred=deferred) as writer:
        digests = writer.add_many([*contents, contents[0]])
        assert digests == [digest_bytes(data) for data in [*contents, contents[0]]]
        writer.commit()
        assert (writer.report.objects_new, writer.report.objects_shared) == (50, 1)
    assert assert_whole(store.path) == 50
    with StoreWriter(store, deferred=deferred) as writer:
        assert writer.add_many(contents) == digests[:50]
        writer.commit()
        assert (writer.report.objects_new, writer.report.objects_shared) == (0, 50)
    damaged = Path(store.path) / os.fsdecode(object_path(digests[3]))
    damaged.write_bytes(b"x")
    with (
        pytest.raises(StoreError, match="damaged object: 1 bytes"),
        StoreWriter(store, deferred=deferred) as writer,
    ):
        writer.add_many(contents)
    assert not [name for name in names_in(store.path) if len(name) != 2]


def test_what_waits_is_written_before_the_commit(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of writing is told once by the kernel, and must not be lost when it is told early."""
    monkeypatch.setattr(publisher, "_WRITE_BACK_BYTES", 1000)
    calls = []

    def syncfs(_fd: int) -> None:
        calls.append(threading.current_thread())
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "syncfs", syncfs)
    with StoreWriter(store, deferred=True) as writer:
        writer.add_bytes(bytes(2000))
        with pytest.raises(StoreError, match="cannot bring objects to stable storage: Input/output error"):
            writer.commit()
    assert calls[0] is not threading.current_thread()
    assert list(store.objects()) == []


def test_batches_are_published_in_the_background(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is synced, more objects are added; what has been queued meanwhile is published next."""
    monkeypatch.setattr(publisher, "_BEGIN_BYTES", 3)
    syncing, go_on = threading.Event(), threading.Event()
    calls = []

    def syncfs(_fd: int) -> None:
        calls.append(threading.current_thread())
        syncing.set()
        assert go_on.wait(60)

    monkeypatch.setattr(files, "syncfs", syncfs)
    with StoreWriter(store) as writer:
        for number in range(3):
            writer.add_bytes(b"%d" % number)
        assert syncing.wait(60)
        for number in range(5):
            assert writer.add_bytes(b"%d" % number).new == (number >= 3)
        assert list(store.objects()) == []
        go_on.set()
        assert writer.commit().objects_new == 5
    assert assert_whole(store.path) == 5
    # In the background: the contents of three. Here: those of the others, and all names.
    here = threading.current_thread()
    assert [thread is here for thread in calls] == [False, True, True]


def test_an_error_in_the_background_stops_the_writer(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_BEGIN_BYTES", 1)

    def syncfs(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "syncfs", syncfs)
    message = "cannot bring objects to stable storage: Input/output error"
    writer = StoreWriter(store)
    writer.add_bytes(b"first")
    for _ in range(2):
        with pytest.raises(StoreError, match=message):
            writer.commit()
    with pytest.raises(StoreError, match=message):
        writer.add_bytes(b"second")
    writer.close()
    assert list(store.objects()) == []


def test_without_a_thread_for_the_background_all_is_published(
    store: DirectoryStore, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_BEGIN_BYTES", 1)
    monkeypatch.setattr(publisher, "_WRITE_BACK_BYTES", 1)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with StoreWriter(store, deferred=deferred) as writer:
        for number in range(5):
            writer.add_bytes(b"%d" % number)
        writer.commit()
    assert assert_whole(store.path) == 5


def test_what_was_written_back_gets_names_while_the_rest_is_synced(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only contents that were complete before a sync began are durable after it."""
    monkeypatch.setattr(publisher, "_WRITE_BACK_BYTES", 1)
    real = files.rename_noreplace
    begun = [threading.Event(), threading.Event()]
    go_on = [threading.Event(), threading.Event()]
    syncs: list[int] = []
    named_during_last: list[object] = []

    def syncfs(_fd: int) -> None:
        number = len(syncs)
        syncs.append(number)
        if number < 2:
            begun[number].set()
            assert go_on[number].wait(60)

    def rename_noreplace(*args: Any) -> None:
        if len(syncs) == 2 and not go_on[1].is_set():
            named_during_last.append(args)
            if len(named_during_last) == 3:
                go_on[1].set()
        real(*args)

    monkeypatch.setattr(files, "syncfs", syncfs)
    monkeypatch.setattr(files, "rename_noreplace", rename_noreplace)
    with StoreWriter(store, deferred=True) as writer:
        monkeypatch.setattr(publisher, "_WRITE_BACK_BYTES", 3)
        for number in range(3):
            writer.add_bytes(b"%d" % number)
        assert begun[0].wait(60)
        for number in range(3, 5):  # these come too late for the first sync
            writer.add_bytes(b"%d" % number)
        go_on[0].set()
        assert writer.commit().objects_new == 5
    assert assert_whole(store.path) == 5
    assert len(named_during_last) == 3
    assert syncs == [0, 1, 2]


def test_nothing_is_published_early_for_want_of_descriptors(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StoreWriter(store, deferred=True) as writer:
        writer.add_bytes(b"first")

        def none_left(_scratch: Scratch) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(Scratch, "create", none_left)
        with pytest.raises(Exhausted, match="cannot make a temporary file in the store: Too many open files"):
            writer.add_bytes(b"second")
        assert list(store.objects()) == []


@pytest.mark.parametrize("kind", ["full", "link"])
def test_a_stage_is_swapped_before_it_is_open(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever may write to the store can have nothing of others' removed by it."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    real = os.mkdir

    def mkdir(name: bytes, mode: int = 0o777, *, dir_fd: int) -> None:
        real(name, mode, dir_fd=dir_fd)
        if b"tmp" in name:
            os.rename(name, b"taken", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            if kind == "full":
                os.rename(precious, name, dst_dir_fd=dir_fd)
            else:
                os.symlink(precious, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StoreError), StoreWriter(store, deferred=True) as writer:
        writer.add_bytes(b"x" * 5000)
    monkeypatch.undo()
    (found,) = [*tmp_path.rglob("precious/file"), *Path(store.path).glob(".mkcfs-tmp-*/file")][:1]
    assert found.exists()
