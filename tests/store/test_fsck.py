"""Checking a store: every sort of damage is found and named, nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from cfstools import native
from cfstools.errors import StoreBusy, StoreError
from cfstools.linux import verity as kernel_verity
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care.fsck import Fault, FsckProblem, FsckResult, fsck
from cfstools.store.care.scan import UNLOCKED_STALE_AGE, EntryKind, look_up, scan
from cfstools.store.locking import Waiting
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.store.conftest import as_nobody, loop_mount

SHA512 = Params(algorithm=Algorithm.SHA512)
NOW = 0.0
CONTENTS = [b"object %d " % number * (50 + 400 * number) for number in range(40)] + [bytes(3 << 20)]
DIGESTS = [digest_bytes(data) for data in CONTENTS]


def path_of(store: DirectoryStore, digest: bytes) -> Path:
    return Path(store.describe(digest))


@pytest.fixture
def full(store: DirectoryStore) -> DirectoryStore:
    """A store with :data:`CONTENTS`, and two objects with longer digests."""
    with StoreWriter(store) as writer:
        for data in CONTENTS:
            writer.add_bytes(data)
    with StoreWriter(store, params=SHA512) as writer:
        for data in CONTENTS[:2]:
            writer.add_bytes(data)
    return store


def check(store: DirectoryStore, *, now: float = NOW, **options: object) -> FsckResult:
    return fsck(store, now=now, **options)  # type: ignore[arg-type]


def only(result: FsckResult) -> FsckProblem:
    assert len(result.problems) == 1, result.problems
    return result.problems[0]


@pytest.mark.parametrize("threads", [1, 2, None])
def test_a_good_store_has_no_problems(full: DirectoryStore, threads: int | None) -> None:
    (Path(full.path) / ".mkcfs").mkdir()
    (Path(full.path) / "lost+found").mkdir()
    result = check(full, threads=threads)
    assert result.problems == []
    assert result.objects == len(CONTENTS) + 2
    assert result.bytes == sum(map(len, CONTENTS)) + sum(map(len, CONTENTS[:2]))
    assert result.measured == 0


def test_an_empty_store_has_none(store: DirectoryStore) -> None:
    assert check(store) == FsckResult()


@pytest.mark.parametrize("threads", [1, 2])
def test_many_objects_are_cut_into_tasks(store: DirectoryStore, threads: int) -> None:
    with StoreWriter(store) as writer:
        digests = [writer.add_bytes(b"%d" % number * 20).digest for number in range(2000)]
    damaged = sorted(digests)[::97]
    for digest in damaged:
        path_of(store, digest).write_bytes(b"%d" % 7 * 20)
    result = check(store, threads=threads)
    assert [problem.digest for problem in result.problems] == damaged
    assert result.objects == 2000


class Bar:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, str]] = []
        self.done = 0

    def stage(self, name: str, total: int | None, unit: str) -> Self:
        self.stages.append((name, total, unit))
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def finish(self) -> None:
        pass


def test_progress_is_in_bytes(full: DirectoryStore) -> None:
    bar = Bar()
    result = check(full, progress=bar, threads=1)
    assert bar.stages == [("check", result.bytes, "B")]
    assert bar.done == result.bytes


@pytest.mark.parametrize("number", [0, 7, 40])
def test_every_flipped_bit_counts(full: DirectoryStore, number: int) -> None:
    path = path_of(full, DIGESTS[number])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    problem = only(check(full))
    assert problem.fault is Fault.DAMAGED
    assert problem.digest == DIGESTS[number]
    assert problem.size == len(data)
    assert problem.what == f"its digest is {digest_bytes(data).hex()}"
    assert problem.path == os.fsencode(path.relative_to(full.path))
    assert problem.remains


def test_a_longer_digest_is_checked_with_its_own_algorithm(full: DirectoryStore) -> None:
    digest = digest_bytes(CONTENTS[1], SHA512)
    path_of(full, digest).write_bytes(b"other")
    problem = only(check(full))
    assert (problem.fault, problem.digest) == (Fault.DAMAGED, digest)
    assert problem.actual == digest_bytes(b"other", SHA512)


def test_truncated_and_empty(full: DirectoryStore) -> None:
    os.truncate(path_of(full, DIGESTS[3]), 10)
    os.truncate(path_of(full, DIGESTS[4]), 0)
    found = {problem.digest: problem for problem in check(full).problems}
    assert found[DIGESTS[3]].fault is found[DIGESTS[4]].fault is Fault.DAMAGED
    assert found[DIGESTS[4]].what == "it is empty"
    assert len(found) == 2


def test_the_contents_of_another_object(full: DirectoryStore) -> None:
    path_of(full, DIGESTS[3]).write_bytes(CONTENTS[5])
    problem = only(check(full))
    assert problem.fault is Fault.DAMAGED
    assert problem.what == f"it holds the contents of {path_of(full, DIGESTS[5]).relative_to(full.path)}"


def test_two_objects_swapped(full: DirectoryStore) -> None:
    first, second = path_of(full, DIGESTS[3]), path_of(full, DIGESTS[5])
    first.write_bytes(CONTENTS[5])
    second.write_bytes(CONTENTS[3])
    problems = check(full).problems
    assert {(problem.fault, problem.digest, problem.actual) for problem in problems} == {
        (Fault.MISPLACED, DIGESTS[3], DIGESTS[5]),
        (Fault.MISPLACED, DIGESTS[5], DIGESTS[3]),
    }
    assert {problem.what for problem in problems} == {
        f"belongs at {first.relative_to(full.path)}",
        f"belongs at {second.relative_to(full.path)}",
    }


def test_an_object_in_the_wrong_directory(full: DirectoryStore) -> None:
    right = path_of(full, DIGESTS[3])
    other = Path(full.path) / ("00" if right.parent.name != "00" else "01")
    other.mkdir(exist_ok=True)
    right.rename(other / right.name)
    problem = only(check(full))
    assert (problem.fault, problem.actual) == (Fault.MISPLACED, DIGESTS[3])
    assert problem.what == f"belongs at {right.relative_to(full.path)}"


@pytest.mark.parametrize("params", [Params(), SHA512])
@pytest.mark.parametrize("where", ["{hex}", "{rest}", "ab/{hex}", "ab/{upper}.old"])
def test_objects_gone_astray_under_other_names(full: DirectoryStore, where: str, params: Params) -> None:
    digest = digest_bytes(CONTENTS[1], params)
    text = digest.hex()
    place = Path(full.path) / where.format(hex=text, rest=text[2:], upper=text.upper())
    place.parent.mkdir(exist_ok=True)
    path_of(full, digest).rename(place)
    problem = only(check(full))
    assert (problem.fault, problem.actual, problem.digest) == (Fault.MISPLACED, digest, None)
    assert problem.size == len(CONTENTS[1])


def test_a_foreign_file_is_no_object_for_its_long_name(full: DirectoryStore) -> None:
    name = "ab" * 40
    (Path(full.path) / name).write_bytes(b"something")
    problem = only(check(full))
    assert (problem.fault, problem.what) == (Fault.FOREIGN, "a file that is not an object")


def test_foreign_names_of_all_sorts(full: DirectoryStore) -> None:
    root = os.fsencode(full.path)
    prefix = os.path.join(root, os.fsencode(path_of(full, DIGESTS[0]).parent.name))
    for name in (b"README", b"new\nline", b"not utf-8 \xff", b".tmpABCDEFG", b"AB"):
        with open(os.path.join(root, name), "wb"):
            pass
        with open(os.path.join(prefix, name), "wb"):
            pass
    os.mkdir(os.path.join(root, b"directory"))
    with open(os.path.join(root, b"directory/" + b"a" * 62), "wb"):
        pass
    os.symlink(b"ab", os.path.join(root, b"link"))
    os.symlink(b"loop", os.path.join(root, b".mkcfs-tmp-0123456789abcdef"))
    problems = check(full).problems
    assert {problem.fault for problem in problems} == {Fault.FOREIGN}
    assert len(problems) == 13
    said = {problem.path: problem.what for problem in problems}
    assert said[b"directory"] == "a directory that is not an object"
    assert said[b"link"] == "a symbolic link that is not an object"
    assert [problem.path for problem in problems] == sorted(said)


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s")
        os.rename("s", path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_link, "a symbolic link"),
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a fifo"),
        (make_socket, "a socket"),
    ],
    ids=["link", "directory", "fifo", "socket"],
)
def test_something_else_at_the_place_of_an_object(full: DirectoryStore, make: object, kind: str) -> None:
    path = path_of(full, DIGESTS[3])
    path.unlink()
    assert callable(make)
    make(path)
    problem = only(check(full))
    assert (problem.fault, problem.digest) == (Fault.ODD, DIGESTS[3])
    assert problem.what == f"{kind} instead of an object"


def test_something_else_at_the_place_of_a_directory(full: DirectoryStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    free = next(name for name in (f"{number:02x}" for number in range(256)) if not (Path(full.path) / name).exists())
    (Path(full.path) / free).symlink_to(elsewhere)
    problem = only(check(full))
    assert (problem.fault, problem.digest) == (Fault.ODD, None)
    assert problem.what == "a symbolic link instead of a directory of objects"


def test_contents_that_belong_to_something_that_is_no_file(full: DirectoryStore) -> None:
    """The object that is missing behind a link is found under another object's name."""
    path_of(full, DIGESTS[3]).unlink()
    path_of(full, DIGESTS[3]).symlink_to("x")
    path_of(full, DIGESTS[5]).write_bytes(CONTENTS[3])
    faults = {problem.digest: problem.fault for problem in check(full).problems}
    assert faults == {DIGESTS[3]: Fault.ODD, DIGESTS[5]: Fault.MISPLACED}


def test_modes_are_noted_only(full: DirectoryStore) -> None:
    path_of(full, DIGESTS[3]).chmod(0o600)
    result = check(full)
    problem = only(result)
    assert (problem.fault, problem.what) == (Fault.MODE, "mode 0600 instead of 0644")
    assert not problem.remains


def test_many_modes_are_not_all_listed(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreWriter(store, object_mode=0o600) as writer:
        for number in range(600):
            writer.add_bytes(b"%d" % number * 20)
    monkeypatch.setattr("cfstools.store.care.fsck._MODES_KEPT", 10)
    result = check(store)
    assert result.modes == 600
    assert 10 <= len(result.problems) < 600


def stage(store: DirectoryStore) -> Path:
    made = Path(store.path) / ".mkcfs-tmp-0123456789abcdef"
    made.mkdir(mode=0o700)
    (made / "0").write_bytes(b"part")
    return made


def test_temporaries_are_stale_when_nobody_builds(full: DirectoryStore) -> None:
    stage(full)
    problem = only(check(full))
    assert (problem.fault, problem.remains) == (Fault.TEMPORARY, True)
    with full.locked():
        problem = only(check(full))
    assert (problem.fault, problem.remains) == (Fault.IN_USE, False)


def test_temporaries_of_the_c_tools_are_stale_by_age(full: DirectoryStore) -> None:
    made = Path(full.path) / ".tmpAbC012"
    made.write_bytes(b"part")
    changed = made.stat().st_ctime
    assert only(check(full, now=changed + UNLOCKED_STALE_AGE - 10)).fault is Fault.IN_USE
    assert only(check(full, now=changed + UNLOCKED_STALE_AGE + 10)).fault is Fault.TEMPORARY
    made.unlink()
    made.mkdir()
    assert only(check(full)).fault is Fault.FOREIGN


def test_where_there_are_no_locks_nothing_is_stale(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(full)

    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert only(check(full)).fault is Fault.IN_USE


def test_waits_for_those_who_remove(full: DirectoryStore) -> None:
    with DirectoryStore(full.path) as other, other.locked(exclusive=True) as held:
        assert held
        with pytest.raises(StoreBusy, match="in use by another process"):
            check(full, waiting=Waiting(timeout=0))

        class Stop(Exception):
            pass

        def stop(*_: str) -> None:
            raise Stop

        with pytest.raises(Stop):
            check(full, waiting=Waiting(on_wait=stop))


def test_what_vanishes_meanwhile_is_no_problem(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = path_of(full, DIGESTS[3])
    real = native.check_objects

    def check_objects(*arguments: object) -> object:
        gone.unlink(missing_ok=True)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "check_objects", check_objects)
    result = check(full, threads=1)
    assert result.problems == []
    assert result.objects == len(CONTENTS) + 1
    assert look_up(full, os.fsencode(gone.relative_to(full.path))) is None


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is settled in a batch."""

    def check_objects(_prefixes: object, _digests: object, _ends: object, first: int, end: int, *_: object) -> bytes:
        return bytes(end - first)

    monkeypatch.setattr(native, "check_objects", check_objects)


@pytest.mark.usefixtures("one_by_one")
def test_a_file_that_changes_its_size_is_read_to_its_end(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    path = path_of(full, DIGESTS[3])

    def short(fd: int, size: int, offset: int) -> bytes:
        return real(fd, min(size, 100), offset)

    monkeypatch.setattr(os, "pread", short)
    assert check(full, threads=1).problems == []
    monkeypatch.undo()
    assert path.read_bytes() == CONTENTS[3]


@pytest.mark.usefixtures("one_by_one", "pure")
@pytest.mark.parametrize("number", [3, 40])
def test_errors_while_reading(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A failing disk, or fs-verity that refuses, is as good as damage."""
    inode = path_of(full, DIGESTS[number]).stat().st_ino
    pread, preadv = os.pread, os.preadv

    def fail(fd: int) -> None:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def failing_pread(fd: int, size: int, offset: int) -> bytes:
        fail(fd)
        return pread(fd, size, offset)

    def failing_preadv(fd: int, buffers: list[bytearray], offset: int) -> int:
        fail(fd)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "pread", failing_pread)
    monkeypatch.setattr(os, "preadv", failing_preadv)
    problem = only(check(full))
    assert (problem.fault, problem.digest, problem.actual) == (Fault.DAMAGED, DIGESTS[number], None)
    assert re.fullmatch(r"(offset \d+: )?cannot read: Input/output error", problem.what)


def test_an_error_in_a_thread_stops_all(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(native, "check_objects", fail)
    with pytest.raises(MemoryError):
        check(full, threads=2)


def test_a_store_that_cannot_be_listed(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Iterator[object]:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreError, match="cannot list the store"):
        list(scan(full))


@pytest.mark.root
def test_an_ordinary_user_is_told_what_cannot_be_read(full: DirectoryStore, tmp_path: Path) -> None:
    secret, closed = path_of(full, DIGESTS[3]), path_of(full, DIGESTS[40]).parent
    assert secret.parent != closed
    secret.chmod(0o600)
    closed.chmod(0o700)
    with as_nobody(tmp_path):
        problems = check(full).problems
    assert {(problem.fault, problem.path, problem.what) for problem in problems} == {
        (Fault.UNREADABLE, os.fsencode(secret.relative_to(full.path)), "cannot open: Permission denied"),
        (Fault.UNREADABLE, os.fsencode(closed.name), "cannot list the directory: Permission denied"),
    }


def test_the_kernel_is_asked_only_when_wanted(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it measures with other parameters is read, and what it measures right is not."""
    by_inode = {path_of(full, digest).stat().st_ino: digest for digest in DIGESTS[:3]}
    answers = {DIGESTS[0]: (1, DIGESTS[0]), DIGESTS[1]: (1, b"\0" * 32), DIGESTS[2]: (2, DIGESTS[2])}

    def measure(fd: int) -> tuple[int, bytes] | None:
        digest = by_inode.get(os.fstat(fd).st_ino)
        return None if digest is None else answers[digest]

    monkeypatch.setattr(kernel_verity, "measure", measure)
    path_of(full, DIGESTS[0]).write_bytes(b"not looked at")
    assert only(check(full)).digest == DIGESTS[0]
    result = check(full, measure=True)
    assert result.problems == []
    assert result.measured == 1

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(kernel_verity, "measure", fail)
    assert {problem.fault for problem in check(full, measure=True).problems} == {Fault.DAMAGED}


@pytest.mark.root
@pytest.mark.may_skip("needs a kernel with fs-verity on ext4")
def test_with_fs_verity(tmp_path: Path) -> None:
    for mounted in loop_mount(tmp_path, "ext4", 32 << 20, "-O", "verity", "-b", "4096"):
        with DirectoryStore(str(mounted / "store"), create=True) as store:
            with StoreWriter(store, fs_verity="auto") as writer:
                for data in CONTENTS[:5]:
                    writer.add_bytes(data)
            found = store.open(DIGESTS[0])
            sealed = kernel_verity.measure(found.fileno()) is not None
            found.close()
            if not sealed:
                pytest.skip("the kernel has no fs-verity")
            result = check(store, measure=True)
            assert (result.objects, result.measured, result.problems) == (5, 5, [])
            assert check(store).measured == 0


def test_look_refuses_what_it_cannot_see(full: DirectoryStore) -> None:
    assert look_up(full, b"README") is None
    assert look_up(full, b"zz/nothing") is None
    (Path(full.path) / "zz").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot look up the object"):
        look_up(full, b"zz/nothing")
    found = look_up(full, b"zz")
    assert found is not None
    assert found.kind is EntryKind.FOREIGN
