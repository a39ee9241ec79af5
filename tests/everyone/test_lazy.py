"""Lazy objects through real mounts: of root by the kernel's overlay and by FUSE, and of an ordinary user by FUSE."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools import api
from cfstools.verity.object_id import LARGE, leaves_name
from tests import requirements
from tests.api.places import Made, Served, is_object, make, path_of
from tests.mkcfs import COMMAND
from tests.mounts import unmount_below
from tests.reference import Completed
from tests.servers.faulty import CUT, Asked, FaultyServer, Part, Wait, reply, serve
from tests.store.conftest import assert_whole
from tests.users import Place, User

pytestmark = [pytest.mark.root, pytest.mark.slow]

SIZE = LARGE + 1_234_567
FILES = {f"dir/file{number}": bytes([number]) * (500 + 900 * number) for number in range(1, 40)}
FILES["large"] = random.Random(12).randbytes(SIZE)
FILES["library"] = random.Random(13).randbytes(300_000)
PATIENCE = 30.0

# Maps a file without having read a byte of it, and prints the digest of what is there.
MAP = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    print(hashlib.sha256(mapped).hexdigest())
"""


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make(tmp_path_factory.mktemp("made"), FILES)
    shutil.copy("/bin/true", made.place / "source" / "true")
    api.build(bytes(made.place / "source"), made.image, stores=[made.store])
    api.push_objects([made.store], bytes(made.place / "remote" / "objects"), [made.image])
    for path in (made.place, *made.place.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    return made


class Mounter:
    """Mounts in one way, and does in the mount what the mount is for."""

    def __init__(self, method: str, directory: Path, user: User | None) -> None:
        self.method = method
        self.user = user
        self.mnt, self.store, self.log = directory / "mnt", directory / "store", directory / "log"
        self.trace = directory / "trace"
        self.fresh()

    def fresh(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(self.store, ignore_errors=True)
        for path in (self.mnt, self.store):
            path.mkdir(exist_ok=True)
        if self.user is not None:
            self.user.give(self.mnt, self.store)

    def start(self, *words: str | bytes | Path) -> subprocess.Popen[bytes]:
        command = [os.fsencode(word) for word in words]
        if self.user is not None:
            return self.user.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words: str | bytes | Path) -> Completed:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return Completed(process.returncode, out, err)

    def mkcfs(self, *words: str | bytes | Path) -> None:
        done = self.run(*COMMAND, *words)
        assert done.code == 0, done.stderr.decode(errors="replace")

    def read(self, name: str) -> Completed:
        return self.run("cat", self.mnt / name)

    def assert_reads(self, name: str) -> None:
        done = self.read(name)
        assert (done.code, done.stderr) == (0, b"")
        assert done.stdout == FILES[name]

    def assert_fails(self, name: str) -> None:
        done = self.read(name)
        assert done.code == 1
        assert b"Input/output error" in done.stderr
        assert not done.stdout

    def objects(self) -> list[Path]:
        return [path for path in self.store.glob("??/*") if not path.name.startswith(".")]

    @contextmanager
    def mounted(self, made: Made, *words: str | bytes | Path) -> Iterator[None]:
        """Mount, and unmount; afterwards no process is left that serves it."""
        way: list[str | Path] = ["--log", self.log, "--method", self.method]
        self.mkcfs("mount", made.image, self.mnt, "--store", self.store, *way, *words)
        try:
            yield
        finally:
            self.mkcfs("umount", self.mnt)
        eventually(lambda: not serving(self.mnt), f"processes of {self.mnt} are left")


def serving(directory: Path) -> list[int]:
    """The processes whose command names a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if bytes(directory) in words:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(params=["kernel", "fuse", "user"])
def mounter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounter]:
    requirements.need_mounts("fuse")
    if request.param == "user":
        requirements.need_command("fusermount3")
        place: Place = request.getfixturevalue("place")
        place.open_fuse()
        user: User = request.getfixturevalue("user")
        yield Mounter("fuse", user.home, user)
        return
    yield Mounter(request.param, tmp_path, None)
    unmount_below(tmp_path)


Fault = Callable[[Asked, bytes], Iterable[Part] | None]


@contextmanager
def served(made: Made, fault: Fault | None = None) -> Iterator[FaultyServer]:
    with FaultyServer(Served(made.place / "remote", fault)) as server:
        yield server


def lazy(server: FaultyServer, *more: str) -> Sequence[str]:
    return ("--lazy", server.address("objects"), "--readahead", "0", *more)


def once(server: FaultyServer) -> Sequence[str]:
    return lazy(server, "--attempts", "1")


def impatient(server: FaultyServer) -> Sequence[str]:
    """Where a server is silent and somebody has to wait for it."""
    return [*once(server), "--fetch-timeout", "3"]


def name_of(name: str) -> str:
    """The object of a file, as its place calls it."""
    from cfstools.verity import digest_bytes
    from cfstools.verity.object_id import object_name

    return object_name(digest_bytes(FILES[name]))


def test_everything_is_right_and_kept(made: Made, mounter: Mounter) -> None:
    with served(made) as server:
        with mounter.mounted(made, *lazy(server, "--readahead", "8")):
            assert mounter.run("diff", "-r", made.place / "source", mounter.mnt) == Completed(0, b"", b"")
            assert mounter.run(mounter.mnt / "true").code == 0
        assert assert_whole(mounter.store) == len(list(api.objects([made.image])))
    # What was fetched is in the store: nobody is asked any more.
    with served(made, lambda _asked, _data: [reply(500)]) as server, mounter.mounted(made, *lazy(server)):
        assert mounter.run("diff", "-r", made.place / "source", mounter.mnt).code == 0
    assert not server.asked


def test_eight_readers_cost_one_fetch(made: Made, mounter: Mounter) -> None:
    gate = threading.Event()

    def slowly(asked: Asked, _data: bytes) -> None:
        if is_object(asked):
            assert gate.wait(PATIENCE)

    with served(made, slowly) as server, mounter.mounted(made, *lazy(server)):
        readers = [mounter.start("cat", mounter.mnt / "dir/file30") for _ in range(8)]
        eventually(lambda: server.asked, "nothing was asked for")
        time.sleep(0.2)
        gate.set()
        for reader in readers:
            assert reader.communicate(timeout=60) == (FILES["dir/file30"], b"")
        assert [asked.target for asked in server.asked] == [f"/objects/{name_of('dir/file30')}"]


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


FAULTS: dict[str, Fault] = {
    "failing": lambda _asked, _data: [reply(500)],
    "reset": lambda _asked, _data: [CUT],
    "missing": lambda _asked, _data: [reply(404)],
    "silent": lambda _asked, _data: [Wait(60)],
    "truncated": lambda asked, data: [serve(data[:-1], asked)],
    "corrupt": lambda asked, data: [serve(damaged(data), asked)],
}


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_bad_source_is_an_io_error_and_tried_again(kind: str, made: Made, mounter: Mounter) -> None:
    mended = False

    def fault(asked: Asked, data: bytes) -> Iterable[Part] | None:
        return FAULTS[kind](asked, data) if is_object(asked) and not mended else None

    options = impatient if kind == "silent" else once
    with served(made, fault) as server, mounter.mounted(made, *options(server)):
        mounter.assert_fails("dir/file20")
        mounter.assert_fails("dir/file20")
        assert not mounter.objects(), "something wrong was published"
        mended = True
        mounter.assert_reads("dir/file20")
        mounter.assert_reads("dir/file21")
    assert assert_whole(mounter.store) == 2


def test_a_reader_that_is_killed_does_not_wait(made: Made, mounter: Mounter) -> None:
    gate = threading.Event()

    def stuck(asked: Asked, _data: bytes) -> None:
        if path_of(asked) == f"objects/{name_of('dir/file25')}":
            assert gate.wait(2 * PATIENCE)

    with served(made, stuck) as server, mounter.mounted(made, *lazy(server, "--fetch-timeout", "120")):
        for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
            reader = mounter.start("cat", mounter.mnt / "dir/file25")
            eventually(lambda: server.asked, "nothing was asked for")
            time.sleep(0.2)
            for pid in (reader.pid, *children_of(reader.pid)):
                os.kill(pid, end)
            reader.communicate(timeout=PATIENCE)
            assert not gate.is_set()
            # Others are served meanwhile.
            mounter.assert_reads("dir/file7")
        gate.set()
        mounter.assert_reads("dir/file25")


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text(encoding="ascii").split()):
            found += [child, *children_of(child)]
    return found


def test_what_is_mapped_unread_has_the_right_bytes(made: Made, mounter: Mounter) -> None:
    """The very first thing after the mount: no look-up, no read went before."""
    for name in ("library", "large"):
        mounter.fresh()
        with served(made) as server, mounter.mounted(made, *lazy(server)):
            done = mounter.run(sys.executable, "-c", MAP, mounter.mnt / name)
            assert done.code == 0, done.stderr
            assert done.stdout.decode().strip() == hashlib.sha256(FILES[name]).hexdigest()


def test_what_is_mapped_and_cannot_be_had_kills_who_reads_it(made: Made, mounter: Mounter) -> None:
    with served(made, lambda _asked, _data: [reply(500)]) as server, mounter.mounted(made, *once(server)):
        done = mounter.run(sys.executable, "-c", MAP, mounter.mnt / "library")
        assert done.code in (-signal.SIGBUS, 128 + signal.SIGBUS, 1), done
        assert not done.stdout


def test_a_program_is_fetched_when_it_is_run(made: Made, mounter: Mounter) -> None:
    with served(made) as server, mounter.mounted(made, *lazy(server)):
        assert mounter.run(mounter.mnt / "true").code == 0
    assert len(mounter.objects()) == 1


def test_the_first_bytes_of_a_large_file_cost_little(made: Made, mounter: Mounter) -> None:
    with served(made) as server:
        with mounter.mounted(made, *lazy(server)):
            done = mounter.run("head", "-c", "4096", mounter.mnt / "large")
            assert done.stdout == FILES["large"][:4096]
            spans = [asked.span for asked in server.asked if path_of(asked) == f"objects/{name_of('large')}"]
            assert spans
            assert all(span is not None for span in spans), "all of it was asked for"
            assert sum(span[1] - span[0] for span in spans if span) < SIZE // 2
            assert not mounter.objects()
            mounter.assert_reads("large")
        assert assert_whole(mounter.store) == 1


def test_wrong_leaves_and_wrong_parts_are_io_errors(made: Made, mounter: Mounter) -> None:
    leaves, parts = True, True

    def fault(asked: Asked, data: bytes) -> Iterable[Part] | None:
        if leaves and "leaves" in asked.target:
            return [serve(damaged(data), asked)]
        if parts and path_of(asked) == f"objects/{name_of('large')}":
            return [serve(damaged(data), asked)]
        return None

    with served(made, fault) as server, mounter.mounted(made, *once(server)):
        mounter.assert_fails("large")
        leaves = False
        # All but the end of it is right.
        done = mounter.run("head", "-c", "4096", mounter.mnt / "large")
        assert done.stdout == FILES["large"][:4096]
        done = mounter.run("tail", "-c", "10", mounter.mnt / "large")
        assert done.code == 1
        assert not mounter.objects()
        parts = False
        mounter.assert_reads("large")
    assert assert_whole(mounter.store) == 1


def test_everything_is_fetched_behind(made: Made, mounter: Mounter) -> None:
    wanted = len(list(api.objects([made.image])))
    with served(made) as server, mounter.mounted(made, *lazy(server, "--prefetch", "all")):
        eventually(lambda: len(mounter.objects()) == wanted, "not all was fetched")
    assert assert_whole(mounter.store) == wanted


def test_a_trace_is_written_and_replayed(made: Made, mounter: Mounter) -> None:
    names = ["dir/file9", "dir/file31", "dir/file2"]
    with served(made) as server, mounter.mounted(made, *lazy(server, "--trace", str(mounter.trace))):
        for name in names:
            mounter.assert_reads(name)
    eventually(mounter.trace.exists, "no trace was written")
    written = mounter.trace.read_text(encoding="ascii")
    digests = [name_of(name).replace("/", "") for name in names]
    assert [written.find(digest) for digest in digests] == sorted(written.find(digest) for digest in digests)
    assert min(written.find(digest) for digest in digests) > 0
    mounter.fresh()
    with served(made) as server, mounter.mounted(made, *lazy(server, "--prefetch", str(mounter.trace))):
        eventually(lambda: len(mounter.objects()) == len(names), "the trace was not fetched")
        assert {asked.target for asked in server.asked} == {f"/objects/{name_of(name)}" for name in names}


def test_leaves_are_where_push_put_them(made: Made) -> None:
    from cfstools.verity import digest_bytes

    assert (made.place / "remote" / "objects" / leaves_name(digest_bytes(FILES["large"]))).is_file()
