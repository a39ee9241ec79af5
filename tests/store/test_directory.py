"""The directory store: layout, what counts as an object, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from cfstools.errors import InputError, ObjectMissing, StoreError
from cfstools.linux import files
from cfstools.store import DirectoryStore, contains, is_temporary
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from tests.descriptors import descriptors

DATA = b"contents of an object" * 10
DIGEST = digest_bytes(DATA)
LONG = digest_bytes(DATA, Params(algorithm=Algorithm.SHA512))


def place(store: DirectoryStore, digest: bytes) -> Path:
    return Path(store.path) / os.fsdecode(object_path(digest))


def plant(store: DirectoryStore, digest: bytes = DIGEST, data: bytes = DATA) -> Path:
    path = place(store, digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_reading(store: DirectoryStore) -> None:
    for digest in (DIGEST, LONG):
        assert store.size(digest) is None
        assert not contains(store, digest)
        with pytest.raises(ObjectMissing) as caught:
            store.open(digest)
        assert str(caught.value) == f"{place(store, digest)}: no such object"
        plant(store, digest)
        assert store.size(digest) == len(DATA)
        assert contains(store, digest)
        found = store.open(digest)
        assert found.size == len(DATA)
        assert (found.read(0, 1000), found.read(1, 2), found.read(len(DATA), 9)) == (DATA, DATA[1:3], b"")
        assert not os.get_inheritable(found.fileno())
        found.close()
        found.close()
        with pytest.raises(InputError, match="cannot read: Bad file descriptor"):
            found.read(0, 1)
        assert store.describe(digest) == str(place(store, digest))
    assert list(store.objects()) == sorted([DIGEST, LONG])


def test_objects_are_listed_in_order_and_foreign_names_passed_over(store: DirectoryStore) -> None:
    root = Path(store.path)
    wanted = sorted(digest_bytes(b"%d" % number) for number in range(600))
    for digest in wanted:
        plant(store, digest, b"x")
    (root / "ab").mkdir(exist_ok=True)
    (root / "ab" / "short").touch()
    (root / "ab" / ("C" * 62)).touch()
    (root / "ab" / ("c" * 63)).touch()
    (root / "ab" / ("d" * 62)).mkdir()
    (root / "ab" / ("e" * 62)).symlink_to("/etc/passwd")
    (root / ".tmpAbC123").touch()
    (root / ".mkcfs-tmp-0011").mkdir()
    (root / "lost+found").mkdir()
    (root / "AB").mkdir()
    (root / "AB" / ("c" * 62)).touch()
    assert list(store.objects()) == wanted


def test_listing_passes_over_prefixes_that_are_no_directories(tmp_path: Path) -> None:
    with DirectoryStore(str(tmp_path)) as store:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / ("a" * 62)).touch()
        (tmp_path / "aa").symlink_to("outside")
        (tmp_path / "bb").touch()
        assert list(store.objects()) == []


def test_creating(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = tmp_path / "a" / "b"
        with DirectoryStore(str(path), create=True) as store:
            assert store.is_empty()
        with DirectoryStore(os.fsencode(path), create=True) as store:
            assert store.path == str(path)
        for made in (path, path.parent):
            assert made.stat().st_mode & 0o7777 == 0o750
    finally:
        os.umask(old)


def test_what_cannot_be_a_store(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, create in [(file, False), (file, True), (file / "below", True), (file / "below", False)]:
        with pytest.raises(StoreError) as caught:
            DirectoryStore(str(path), create=create)
        assert str(caught.value) == f"{path}: an object store must be a directory"
    with pytest.raises(StoreError) as caught:
        DirectoryStore(str(tmp_path / "missing"))
    assert str(caught.value) == f"{tmp_path}/missing: cannot open the store: No such file or directory"
    with pytest.raises(StoreError) as caught:
        DirectoryStore("/proc/no/such", create=True)
    assert str(caught.value) == "/proc/no/such: cannot make the store: No such file or directory"


def test_links_at_an_objects_place_are_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = place(store, DIGEST)
    path.parent.mkdir()
    path.symlink_to(secret)
    for attempt in (store.size, store.open):
        with pytest.raises(StoreError) as caught:
            attempt(DIGEST)
        assert str(caught.value) == f"{path}: not a regular file"


def test_links_at_a_prefix_are_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = place(store, DIGEST)
    (outside / path.name).write_bytes(DATA)
    path.parent.symlink_to(outside)
    with pytest.raises(StoreError, match="cannot look up the object: Not a directory"):
        store.size(DIGEST)
    with pytest.raises(StoreError, match="cannot open the object: Not a directory"):
        store.open(DIGEST)
    assert list(store.objects()) == []


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_other_kinds_are_not_objects(store: DirectoryStore, kind: str) -> None:
    path = place(store, DIGEST)
    path.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StoreError, match="not a regular file"):
        store.size(DIGEST)
    before = descriptors()
    with pytest.raises(StoreError, match="not a regular file"):
        store.open(DIGEST)
    assert descriptors() <= before


def test_listing_errors_are_named(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(store)
    real = os.open

    def fail_on_prefix(path: object, *args: object, **options: object) -> int:
        if path == object_path(DIGEST)[:2]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", fail_on_prefix)
    with pytest.raises(StoreError, match=r"store/[0-9a-f]{2}: cannot list the store: Permission denied"):
        list(store.objects())


def test_prefix_that_vanishes_while_listing(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plant(store)
    names = store._names

    def then_removed(fd: int, *, regular: bool = False) -> list[bytes]:
        found = names(fd, regular=regular)
        if not regular and path.exists():
            path.unlink()
            path.parent.rmdir()
        return found

    monkeypatch.setattr(store, "_names", then_removed)
    assert list(store.objects()) == []


def test_closed_store_lists_nothing_by_accident(store: DirectoryStore) -> None:
    plant(store)
    store.close()
    with pytest.raises(StoreError, match="cannot list the store"):
        list(store.objects())
    store.close()


def test_few_descriptors_are_kept_when_few_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fd_limit", lambda: 64)
    before = descriptors()
    with DirectoryStore(str(tmp_path)) as store:
        for number in range(100):
            plant(store, digest_bytes(b"%d" % number), b"x")
        for number in range(100):
            assert store.size(digest_bytes(b"%d" % number)) == 1
        assert len(descriptors() - before) <= 1 + 8
    assert descriptors() <= before


def test_locks(store: DirectoryStore) -> None:
    with DirectoryStore(store.path) as other:
        with store.locked() as held, other.locked(wait=False) as also:
            assert held
            assert also
            with pytest.raises(StoreError, match="in use by another process"), other.locked(exclusive=True, wait=False):
                pass
        with store.locked(exclusive=True):
            with pytest.raises(StoreError, match="in use by another process"), other.locked(wait=False):
                pass
            entered = threading.Event()

            def wait() -> None:
                with other.locked():
                    entered.set()

            thread = threading.Thread(target=wait)
            thread.start()
            assert not entered.wait(0.1)
        thread.join(60)
        assert entered.is_set()
    assert os.listdir(store.path) == [".mkcfs-lock"]


def test_file_systems_without_locks(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def flock(_fd: int, _operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with store.locked() as held:
        assert not held
    refuse(errno.EIO)
    with pytest.raises(StoreError, match="cannot lock the store"), store.locked():
        pass


def test_names_of_temporaries() -> None:
    assert is_temporary(b".mkcfs-tmp-0123456789abcdef")
    assert is_temporary(b".tmpAbCdEf")
    assert not is_temporary(b".tmp")
    assert not is_temporary(b".tmpdir-of-mine")
    assert not is_temporary(b"ab")
