"""Stores that several users write to, and stores below places that others own."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.errors import StoreError
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care.gc import gc
from cfstools.store.sharing import make_prefix
from tests.requirements import need_command
from tests.store.conftest import as_nobody

NOBODY = 65534
GROUP = 4242


@contextmanager
def acting_as(user: int, *groups: int, umask: int = 0o022) -> Iterator[None]:
    before, mask = os.getgroups(), os.umask(umask)
    os.setgroups(groups)
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
        os.umask(mask)


def fill(store: DirectoryStore, seed: int) -> None:
    """Add so many objects that some directories get two."""
    with StoreWriter(store, sync="none") as writer:
        for number in range(60):
            writer.add_bytes(b"%d of %d " % (number, seed) * 20)


def shared(tmp_path: Path, store: DirectoryStore, mode: int, *, owner: int = 0) -> None:
    with as_nobody(tmp_path):
        pass  # opens the way
    os.chown(store.path, owner, GROUP)
    os.chmod(store.path, mode)


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o2775, 0o775, 0o2770, 0o777, 0o2777])
def test_all_who_may_write_can_add_and_remove(store: DirectoryStore, tmp_path: Path, mode: int, umask: int) -> None:
    """Whoever made the directories of objects, and whatever their umask."""
    shared(tmp_path, store, mode)
    with acting_as(1001, GROUP, umask=umask):
        fill(store, 1)
    for user in (1002, 0):
        with acting_as(user, GROUP, umask=umask), DirectoryStore(store.path) as other:
            fill(other, user)
    with acting_as(1003, GROUP), DirectoryStore(store.path) as other:
        assert len(gc(other, dict, now=0.0, grace=0.0).removed) == 180
        assert not list(other.objects())


@pytest.mark.root
def test_in_a_sticky_store_everybody_adds_and_removes_what_is_theirs(store: DirectoryStore, tmp_path: Path) -> None:
    shared(tmp_path, store, 0o1777)
    for user in (1001, 1002):
        with acting_as(user, umask=0o077), DirectoryStore(store.path) as other:
            fill(other, user)
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path(store.path).glob("??")} == {0o1777}
    with acting_as(1002), DirectoryStore(store.path) as other, pytest.raises(StoreError, match="not permitted"):
        gc(other, dict, now=0.0, grace=0.0)


@pytest.mark.root
def test_a_store_of_one_user_stays_as_it_was(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o755), (0o077, 0o700), (0o002, 0o755)):
        with acting_as(0, umask=umask), DirectoryStore(str(tmp_path / f"{umask}"), create=True) as store:
            fill(store, 1)
            assert {
                stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / f"{umask}", *Path(store.path).glob("??"))
            } == {mode}


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_root_adds_directories_for_the_owner(store: DirectoryStore, tmp_path: Path, umask: int) -> None:
    """After a build with sudo, builds without it go on."""
    shared(tmp_path, store, 0o755, owner=NOBODY)
    with acting_as(0, umask=umask):
        fill(store, 1)
    assert {path.stat().st_uid for path in Path(store.path).glob("??")} == {NOBODY}
    with as_nobody(tmp_path), DirectoryStore(store.path) as other:
        fill(other, 2)
        assert len(gc(other, dict, now=0.0, grace=0.0).removed) == 120


@pytest.mark.root
def test_access_lists_hold_for_directories_of_objects(store: DirectoryStore, tmp_path: Path) -> None:
    need_command("setfacl")
    shared(tmp_path, store, 0o755)
    if subprocess.run(["setfacl", "-m", "user:1001:rwx", store.path], check=False, capture_output=True).returncode:
        pytest.skip("no access control lists here")
    for user in (0, 1001):
        with acting_as(user, umask=0o077), DirectoryStore(store.path) as other:
            fill(other, user)


@pytest.mark.root
def test_directories_of_others_say_what_is_missing(store: DirectoryStore, tmp_path: Path) -> None:
    """As versions before this one made them, and the C tools do."""
    shared(tmp_path, store, 0o2775)
    for number in range(256):
        (Path(store.path) / f"{number:02x}").mkdir(mode=0o755)
    with acting_as(1001, GROUP), pytest.raises(StoreError, match="cannot add the object: Permission denied") as caught:
        fill(store, 1)
    assert caught.value.hint is not None
    assert "must be able to write" in caught.value.hint


def test_a_directory_that_is_there_already(store: DirectoryStore) -> None:
    os.chmod(store.path, 0o777)
    make_prefix(store.fd, b"ab")
    inode = os.stat(b"ab", dir_fd=store.fd).st_ino
    with pytest.raises(FileExistsError):
        make_prefix(store.fd, b"ab")
    assert (os.stat(b"ab", dir_fd=store.fd).st_ino, os.listdir(store.path)) == (inode, ["ab"])


@pytest.mark.root
@pytest.mark.parametrize("where", ["last", "on the way"])
def test_nothing_is_made_or_locked_where_links_of_others_lead(tmp_path: Path, where: str) -> None:
    """Root reads there: objects are what their digests say, wherever they come from."""
    theirs, real = tmp_path / "theirs", tmp_path / "real"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    with DirectoryStore(str(real / "store"), create=True) as store, StoreWriter(store) as writer:
        digest = writer.add_bytes(b"contents " * 10).digest
    before = sorted(os.listdir(real / "store"))
    (theirs / "link").symlink_to(real / "store" if where == "last" else real)
    os.chown(theirs / "link", NOBODY, NOBODY, follow_symlinks=False)
    path = theirs / "link" if where == "last" else theirs / "link/store"
    for create in (path, path / "new"):
        with pytest.raises(StoreError, match=r"link:? is a symbolic link that belongs to user 65534") as caught:
            DirectoryStore(str(create), create=True)
        assert caught.value.hint is not None
    with DirectoryStore(str(path)) as store:
        assert store.size(digest) == 90
        for exclusive in (False, True):
            with pytest.raises(StoreError, match="symbolic link"), store.locked(exclusive=exclusive):
                pass
    assert (os.listdir(real), sorted(os.listdir(real / "store"))) == (["store"], before)
    os.chown(theirs / "link", 0, 0, follow_symlinks=False)
    os.chown(theirs, 0, 0)
    with DirectoryStore(str(path), create=True) as store, store.locked(exclusive=True) as held:
        assert held


def test_parents_are_made_but_not_what_only_a_link_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere/below")
    for path in ("a/b/c", "link/a/b", "./x//y/", "x/../z", "link/../w", "new/../u", str(tmp_path / "absolute/store")):
        with DirectoryStore(path, create=True) as store, StoreWriter(store) as writer:
            writer.add_bytes(b"contents " * 10)
        with DirectoryStore(path) as store:
            assert len(list(store.objects())) == 1
    assert (tmp_path / "real/a/b").is_dir()
    for path in ("dangling", "dangling/store"):
        with pytest.raises(StoreError):
            DirectoryStore(path, create=True)
    assert not (tmp_path / "nowhere").exists()
