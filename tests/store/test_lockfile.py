"""The file that is locked: who may open it, what is taken for it, and what happens when it is gone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.errors import StoreBusy, StoreError
from cfstools.linux import files, locks
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care.gc import gc
from cfstools.store.locking import Waiting, in_turn
from cfstools.store.sharing import share_with_writers
from tests.requirements import need_command
from tests.store.conftest import as_nobody, loop_mount

NOBODY = 65534
DATA = b"contents " * 100


@contextmanager
def acting_as(user: int, group: int, *groups: int) -> Iterator[None]:
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def lock_of(store: DirectoryStore) -> Path:
    return Path(store.path) / ".mkcfs-lock"


def take(store: DirectoryStore, *, exclusive: bool = True) -> bool:
    with store.locked(exclusive=exclusive, wait=False) as held:
        return held


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("directory", "lock"), [(0o755, 0o600), (0o700, 0o600), (0o775, 0o660), (0o2770, 0o660), (0o1777, 0o666)]
)
@pytest.mark.parametrize("anonymous", [True, False])
def test_who_may_write_may_lock(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, directory: int, lock: int, *, anonymous: bool
) -> None:
    if not anonymous:
        monkeypatch.setattr(files, "open_tmpfile", lambda *_: None)
    os.chmod(store.path, directory)
    before = os.umask(0o077)
    try:
        assert take(store)
    finally:
        os.umask(before)
    assert mode_of(lock_of(store)) == lock
    assert lock_of(store).stat().st_size == 0


@pytest.mark.root
def test_readers_cannot_keep_anyone_out(store: DirectoryStore, tmp_path: Path) -> None:
    """Neither by the directory, which they may open, nor by the lock, which they may not."""
    take(store)
    holding = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with as_nobody(tmp_path):
            fd = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)
            assert locks.lock(fd, exclusive=True, wait=False)
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                with pytest.raises(PermissionError):
                    os.open(lock_of(store), flags)
        with StoreWriter(store) as writer:
            writer.add_bytes(DATA)
        assert len(gc(store, dict, now=0.0, grace=0.0).removed) == 1
        os.close(fd)
    finally:
        os.close(holding)


@pytest.mark.root
def test_readers_go_on_without_the_lock_and_remove_nothing(store: DirectoryStore, tmp_path: Path) -> None:
    with as_nobody(tmp_path):
        assert not take(store, exclusive=False)  # there is none
        assert os.listdir(store.path) == []
        with pytest.raises(StoreError, match="cannot lock the store: Permission denied") as caught:
            take(store)
        assert caught.value.hint is not None
    with store.locked(exclusive=True), as_nobody(tmp_path):
        assert not take(store, exclusive=False)


@pytest.mark.root
def test_a_group_shares_a_store(store: DirectoryStore, tmp_path: Path) -> None:
    """The lock belongs to the group of the directory, whoever makes it, and stays closed to the others."""
    group = 4242
    os.chown(store.path, 0, group)
    os.chmod(store.path, 0o775)
    with as_nobody(tmp_path):
        pass  # opens the way
    with acting_as(1001, 1001, group):
        assert take(store)
    status = lock_of(store).stat()
    assert (status.st_uid, status.st_gid, mode_of(lock_of(store))) == (1001, group, 0o660)
    with acting_as(1002, 1002, group):
        assert take(store)
        with store.locked(), DirectoryStore(store.path) as other, pytest.raises(StoreBusy):
            take(other)
    with acting_as(1003, 1003), pytest.raises(PermissionError):
        os.open(lock_of(store), os.O_RDONLY)


@pytest.mark.root
def test_writers_that_cannot_lock_are_refused(store: DirectoryStore, tmp_path: Path) -> None:
    os.chmod(store.path, 0o777)
    lock_of(store).touch(mode=0o600)
    with as_nobody(tmp_path), pytest.raises(StoreError, match="Permission denied") as caught:
        StoreWriter(store)
    assert caught.value.hint is not None
    assert "must be able to read and write .mkcfs-lock" in caught.value.hint


@pytest.mark.root
def test_root_makes_the_lock_for_the_owner(store: DirectoryStore, tmp_path: Path) -> None:
    os.chown(store.path, NOBODY, NOBODY)
    assert take(store)
    assert (lock_of(store).stat().st_uid, lock_of(store).stat().st_gid) == (NOBODY, NOBODY)
    with as_nobody(tmp_path):
        assert take(store)


@pytest.mark.root
def test_named_users_of_an_access_list(store: DirectoryStore, tmp_path: Path) -> None:
    """Those whom the list lets write can lock, those whom it only lets read cannot, whatever new files inherit."""
    need_command("setfacl", "getfacl")
    rules = "user:1001:rwx,user:1002:r-x,group:4242:rwx"
    done = subprocess.run(["setfacl", "-m", rules, "-dm", rules, store.path], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no access control lists here")
    with as_nobody(tmp_path):
        pass
    assert take(store)
    listed = subprocess.run(["getfacl", "-cpn", lock_of(store)], check=True, capture_output=True, text=True).stdout
    assert set(listed.split()) >= {"user:1001:rw-", "user:1002:---", "group:4242:rw-", "other::---"}
    with acting_as(1001, 1001):
        assert take(store)
    with acting_as(1002, 1002), pytest.raises(PermissionError):
        os.open(lock_of(store), os.O_RDONLY)


def test_rights_that_were_added_are_taken_away(store: DirectoryStore) -> None:
    """As after ``chmod -R a+r``; nothing is ever allowed to anybody who may not."""
    take(store)
    lock_of(store).chmod(0o644)
    take(store)
    assert mode_of(lock_of(store)) == 0o600
    lock_of(store).chmod(0o400)
    os.chmod(store.path, 0o777)
    take(store)
    assert mode_of(lock_of(store)) == 0o400


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    (path.parent.parent / "elsewhere").touch()
    path.symlink_to(path.parent.parent / "elsewhere")


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent.parent / "nowhere")


def _second_name(path: Path) -> None:
    (path.parent.parent / "elsewhere").touch()
    os.link(path.parent.parent / "elsewhere", path)


def _contents(path: Path) -> None:
    path.write_bytes(b"secret")


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [_fifo, _link, _dangling, _second_name, _contents, _directory])
@pytest.mark.parametrize("exclusive", [False, True])
def test_what_was_planted_is_not_used(store: DirectoryStore, plant: object, *, exclusive: bool) -> None:
    assert callable(plant)
    plant(lock_of(store))
    before = os.lstat(lock_of(store))
    with pytest.raises(StoreError, match=r"lock of the store is (a |no |not )"):
        take(store, exclusive=exclusive)
    after = os.lstat(lock_of(store))
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert not (Path(store.path).parent / "nowhere").exists()


@pytest.mark.root
def test_a_lock_of_someone_who_may_not_write_is_not_used(store: DirectoryStore) -> None:
    lock_of(store).touch()
    os.chown(lock_of(store), NOBODY, NOBODY)
    with pytest.raises(StoreError, match="of a user who may not write to the store") as caught:
        take(store)
    assert caught.value.hint == "remove it while nothing uses the store"


def test_a_lock_removed_while_one_waited_is_none(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the old file takes the new one, or two would hold the lock."""
    take(store)
    real = locks.lock
    removed: list[int] = []

    def late(fd: int, *, exclusive: bool, wait: bool) -> bool:
        if not removed:
            removed.append(os.fstat(fd).st_ino)
            lock_of(store).unlink()
            with DirectoryStore(store.path) as other:
                take(other)  # makes it anew
        return real(fd, exclusive=exclusive, wait=wait)

    monkeypatch.setattr(locks, "lock", late)
    with store.locked(exclusive=True) as held:
        assert held
        with DirectoryStore(store.path) as other, pytest.raises(StoreBusy):
            take(other)


def test_waiting_has_an_end(store: DirectoryStore) -> None:
    told = []
    waiting = Waiting(timeout=0.2, on_wait=lambda *words: told.append(words))
    with (
        DirectoryStore(store.path) as other,
        other.locked(exclusive=True),
        pytest.raises(StoreBusy, match=r"still in use by another process after 0\.2 s"),
        in_turn(store, exclusive=False, waiting=waiting),
    ):
        pass
    assert [words[0] for words in told] == [store.path]
    with in_turn(store, exclusive=False, waiting=waiting) as held:
        assert held


def test_a_writer_waits_as_long_as_it_is_told(store: DirectoryStore) -> None:
    with DirectoryStore(store.path) as other, other.locked(exclusive=True):
        with pytest.raises(StoreBusy):
            StoreWriter(store, waiting=Waiting(timeout=0))
        with DirectoryStore(store.path + "2", create=True) as first, pytest.raises(StoreBusy):
            StoreWriter(first, others=[store], waiting=Waiting(timeout=0))
    assert os.listdir(store.path) == [".mkcfs-lock"]


def test_who_holds_a_lock_is_told(store: DirectoryStore) -> None:
    need_command("flock")
    take(store)
    # Its own process has the lock, not a child.
    program = ["flock", "-x", "-F", str(lock_of(store)), "sleep", "60"]
    process = subprocess.Popen(program)
    try:
        while True:
            try:
                take(store)
            except StoreBusy as error:
                if error.hint == f"its lock is held by process {process.pid} (sleep)":
                    break
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
def test_on_a_read_only_file_system(tmp_path: Path) -> None:
    for where in loop_mount(tmp_path, "ext4", 16 << 20):
        path = where / "store"
        with DirectoryStore(str(path), create=True) as store:
            subprocess.run(["mount", "-o", "remount,ro", where], check=True)
            assert not take(store, exclusive=False)
            with pytest.raises(StoreError, match="Read-only file system") as caught:
                take(store)
            assert caught.value.hint is None
            subprocess.run(["mount", "-o", "remount,rw", where], check=True)
            assert take(store)
            subprocess.run(["mount", "-o", "remount,ro", where], check=True)
            assert take(store, exclusive=False)  # those who write elsewhere see it


def test_other_tools_and_checks_pass_it_over(store: DirectoryStore) -> None:
    from cfstools.store.care.fsck import fsck

    with StoreWriter(store) as writer:
        digest = writer.add_bytes(DATA).digest
    assert list(store.objects()) == [digest]
    assert fsck(store, now=0.0).problems == []
    shutil.rmtree(Path(store.path) / digest.hex()[:2])
    assert store.is_empty()


def test_a_new_file_is_shared_with_those_who_may_write(store: DirectoryStore, tmp_path: Path) -> None:
    os.chmod(store.path, 0o770)
    fd = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT, 0o644)
    share_with_writers(store.fd, fd)
    os.close(fd)
    assert mode_of(tmp_path / "new") == 0o660
