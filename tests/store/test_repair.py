"""Repairs: from each sort of source, in part, and killed at any step."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfstools.errors import InputError, StoreBusy, StoreError
from cfstools.linux import files
from cfstools.linux import verity as kernel_verity
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care import repair as repairing
from cfstools.store.care.fsck import Fault, FsckResult, fsck
from cfstools.store.care.repair import RepairOptions, repair
from cfstools.store.locking import Waiting
from cfstools.store.write.scratch import Temporary, Workbench
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.files import hash_fd
from tests.store.conftest import as_nobody, assert_whole, listing, loop_mount

SHA512 = Params(algorithm=Algorithm.SHA512)
CONTENTS = [b"object %d " % number * (50 + 400 * number) for number in range(12)] + [b"large" * 700_000]
DIGESTS = [digest_bytes(data) for data in CONTENTS]
NOW = 0.0
REPAIR = RepairOptions(replace=True, remove_temporaries=True)


def path_of(store: DirectoryStore, digest: bytes) -> Path:
    return Path(store.describe(digest))


def fill(store: DirectoryStore) -> DirectoryStore:
    with StoreWriter(store) as writer:
        for data in CONTENTS:
            writer.add_bytes(data)
    return store


@pytest.fixture
def full(store: DirectoryStore) -> DirectoryStore:
    return fill(store)


def mend(store: DirectoryStore, *donors: Path, **options: bool) -> FsckResult:
    """Check and repair; with the default options what ``--repair`` does."""
    result = fsck(store, now=NOW, threads=1)
    donating = [os.fsencode(donor) for donor in donors]
    chosen = RepairOptions(donors=donating, **(options or {"replace": True}))  # type: ignore[arg-type]
    repair(store, result, chosen, now=NOW)
    return result


def outcomes(result: FsckResult) -> list[str | None]:
    return [problem.outcome for problem in result.problems]


def is_clean(store: DirectoryStore, objects: int = len(CONTENTS)) -> bool:
    """Whether the store has no problem and holds this many objects."""
    again = fsck(store, now=NOW)
    return again.problems == [] and again.objects == objects and assert_whole(store.path) == objects


@pytest.fixture(params=["store", "tree", "misplaced", "hidden"])
def donor(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with all contents: a store, a tree, a store with wrong names, a tree with much else."""
    place = tmp_path / "donor"
    if request.param in ("store", "misplaced"):
        with DirectoryStore(str(place), create=True) as made:
            fill(made)
    else:
        place.mkdir()
        (place / "deep/er").mkdir(parents=True)
        for number, data in enumerate(CONTENTS):
            (place / ("deep/er" if number % 2 else "") / f"file{number}").write_bytes(data)
    if request.param == "misplaced":
        for number, found in enumerate([found for found in place.rglob("*") if found.is_file()]):
            found.rename(place / f"lost{number}")
    if request.param == "hidden":
        (place / "link").symlink_to("file0")
        (place / "loop").symlink_to(".")
        os.mkfifo(place / "fifo")
        (place / "same size").write_bytes(bytes(len(CONTENTS[3])))
        (place / "secret").write_bytes(b"x" * 100)
    return place


def test_replacing_what_is_damaged(full: DirectoryStore, donor: Path) -> None:
    for number, data in ((0, b"x" * len(CONTENTS[0])), (3, b"shorter"), (5, b""), (12, CONTENTS[12][:-1] + b"!")):
        path_of(full, DIGESTS[number]).write_bytes(data)
    path_of(full, DIGESTS[7]).unlink()
    path_of(full, DIGESTS[7]).symlink_to("/etc/hostname")
    path_of(full, DIGESTS[8]).unlink()
    os.mkfifo(path_of(full, DIGESTS[8]))
    path_of(full, DIGESTS[9]).unlink()
    path_of(full, DIGESTS[9]).mkdir()
    kept = path_of(full, DIGESTS[1]).stat().st_ino
    result = mend(full, donor)
    assert all(outcome and outcome.startswith(f"replaced from {donor}/") for outcome in outcomes(result))
    assert len(result.problems) == 7
    assert not any(problem.remains for problem in result.problems)
    assert is_clean(full)
    assert path_of(full, DIGESTS[3]).stat().st_mode & 0o7777 == 0o644
    assert path_of(full, DIGESTS[1]).stat().st_ino == kept


def test_the_longer_digest(store: DirectoryStore, tmp_path: Path) -> None:
    with StoreWriter(store, params=SHA512) as writer:
        long = writer.add_bytes(CONTENTS[2]).digest
    fill(store)
    for digest in (long, DIGESTS[2]):
        path_of(store, digest).write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(CONTENTS[2])
    mend(store, tmp_path / "tree")
    assert fsck(store, now=NOW).problems == []


def test_only_in_part(full: DirectoryStore, tmp_path: Path) -> None:
    for number in (3, 5):
        path_of(full, DIGESTS[number]).write_bytes(b"x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(CONTENTS[5])
    (tmp_path / "b").mkdir()
    result = mend(full, tmp_path / "b", tmp_path / "a")
    found = {problem.digest: problem.outcome for problem in result.problems}
    assert found == {DIGESTS[3]: None, DIGESTS[5]: f"replaced from {tmp_path}/a/file"}
    assert path_of(full, DIGESTS[3]).read_bytes() == b"x"
    result = mend(full, remove_damaged=True)
    assert outcomes(result) == ["removed"]
    assert is_clean(full, len(CONTENTS) - 1)


def test_several_batches(full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfstools.store.care.repair._BATCH_FILES", 2)
    syncs = []
    real = files.syncfs

    def counting(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(files, "syncfs", counting)
    with DirectoryStore(str(tmp_path / "donor"), create=True) as made:
        fill(made)
    for digest in DIGESTS[:7]:
        path_of(full, digest).write_bytes(b"x")
    syncs.clear()
    result = mend(full, tmp_path / "donor")
    assert len(syncs) == 5  # four batches, and the names
    assert len(result.problems) == 7
    assert is_clean(full)


def test_a_donor_that_is_damaged_in_the_same_way(full: DirectoryStore, tmp_path: Path) -> None:
    with DirectoryStore(str(tmp_path / "donor"), create=True) as made:
        fill(made)
        path_of(made, DIGESTS[3]).write_bytes(b"x")
        path_of(made, DIGESTS[5]).unlink()
        path_of(made, DIGESTS[5]).symlink_to("/etc/hostname")
    for number in (3, 5, 6):
        path_of(full, DIGESTS[number]).write_bytes(b"x")
    result = mend(full, tmp_path / "donor")
    assert {problem.digest for problem in result.problems if problem.remains} == {DIGESTS[3], DIGESTS[5]}
    assert listing(full.path).keys() == {str(path_of(full, digest).relative_to(full.path)) for digest in DIGESTS}


@pytest.mark.usefixtures("pure")
def test_a_file_of_the_donor_that_cannot_be_read(
    full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(CONTENTS[3])
    (tree / "b").write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[3]).write_bytes(b"x" * len(CONTENTS[3]))
    inode = (tree / "a").stat().st_ino
    real = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, "broken")
        return real(fd, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        assert outcomes(mend(full, tree)) == [f"replaced from {tree}/b"]
    assert is_clean(full)


def test_a_donor_that_cannot_be_opened(full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "closed").mkdir(parents=True)
    (tree / "a").write_bytes(CONTENTS[3])
    (tree / "b").write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    opener, scan = os.open, os.scandir

    def refuse_open(path: object, *rest: int, **named: int) -> int:
        if path == os.fsencode(tree / "a"):
            raise PermissionError(errno.EACCES, "no")
        return opener(path, *rest, **named)  # type: ignore[arg-type]

    def refuse_scan(path: object) -> object:
        if path == os.fsencode(tree / "closed"):
            raise PermissionError(errno.EACCES, "no")
        return scan(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse_open)
    monkeypatch.setattr(os, "scandir", refuse_scan)
    assert outcomes(mend(full, tree)) == [f"replaced from {tree}/b"]


def test_donors_that_are_no_directories(full: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file: is not a directory"):
        mend(full, tmp_path / "file")
    with pytest.raises(InputError, match="cannot open: No such file"):
        mend(full, tmp_path / "nothing")


def swap(store: DirectoryStore) -> None:
    path_of(store, DIGESTS[3]).write_bytes(CONTENTS[5])
    path_of(store, DIGESTS[5]).write_bytes(CONTENTS[3])


def test_swapped_objects_find_back(full: DirectoryStore) -> None:
    swap(full)
    inodes = path_of(full, DIGESTS[3]).stat().st_ino, path_of(full, DIGESTS[5]).stat().st_ino
    result = mend(full)
    assert outcomes(result) == ["replaced from a misplaced file"] * 2
    assert is_clean(full)
    assert (path_of(full, DIGESTS[5]).stat().st_ino, path_of(full, DIGESTS[3]).stat().st_ino) == inodes


def test_three_in_a_ring(full: DirectoryStore) -> None:
    for place, contents in ((3, 5), (5, 6), (6, 3)):
        path_of(full, DIGESTS[place]).write_bytes(CONTENTS[contents])
    mend(full)
    assert is_clean(full)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "there"])
@pytest.mark.parametrize("name", ["00/{rest}", "{hex}", "00/{hex}"])
def test_misplaced_objects_go_to_their_place(full: DirectoryStore, name: str, *, there: bool) -> None:
    right = path_of(full, DIGESTS[3])
    assert right.parent.name != "00"
    wrong = Path(full.path) / name.format(rest=right.name, hex=DIGESTS[3].hex())
    wrong.parent.mkdir(exist_ok=True)
    shutil.copy(right, wrong)
    if not there:
        right.unlink()
    result = mend(full)
    assert outcomes(result) == ["removed: the object also exists under its own name" if there else "moved there"]
    assert not wrong.exists()
    assert is_clean(full)


def test_a_misplaced_object_whose_own_place_is_filled_again(full: DirectoryStore, tmp_path: Path) -> None:
    """The contents move on, and those that belong there come from elsewhere."""
    path_of(full, DIGESTS[5]).write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(CONTENTS[5])
    result = mend(full, tmp_path / "tree")
    assert {problem.digest: problem.outcome for problem in result.problems} == {
        DIGESTS[3]: "replaced from a misplaced file",
        DIGESTS[5]: f"replaced from {tmp_path}/tree/file",
    }
    assert is_clean(full)


def test_two_copies_of_a_misplaced_object(full: DirectoryStore) -> None:
    right = path_of(full, DIGESTS[3])
    shutil.copy(right, Path(full.path) / DIGESTS[3].hex())
    os.link(Path(full.path) / DIGESTS[3].hex(), Path(full.path) / f"{DIGESTS[3].hex()}.bak")
    right.unlink()
    assert outcomes(mend(full)) == ["moved there", "moved there"]
    assert is_clean(full)


def test_misplaced_objects_that_cannot_be_linked(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    swap(full)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    result = mend(full)
    assert outcomes(result) == [None, None]
    assert all(problem.what.endswith("; cannot link it there: Operation not permitted") for problem in result.problems)
    # Misplaced contents are not damaged: they are not removed as such.
    assert outcomes(mend(full, remove_damaged=True)) == [None, None]


def test_adopted_contents_are_looked_at_once_more(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    swap(full)
    first = path_of(full, DIGESTS[3])
    real = Workbench.adopt

    def changing(self: Workbench, directory: int, name: bytes) -> object:
        if name == os.fsencode(first.name):
            first.write_bytes(b"changed under the hands")
        return real(self, directory, name)

    monkeypatch.setattr(Workbench, "adopt", changing)
    mend(full)
    # What is gone is gone, but nothing false was put in its place.
    assert not path_of(full, DIGESTS[5]).exists()
    assert first.read_bytes() == CONTENTS[3]
    assert not any(name.startswith(".mkcfs-tmp") for name in os.listdir(full.path))


def test_adopting_closes_up_after_itself(full: DirectoryStore) -> None:
    bench = Workbench(full, mode=0o644, fs_verity="off", params=Params())
    (Path(full.path) / "link").symlink_to("nowhere")
    with pytest.raises(OSError, match="symbolic"):
        bench.adopt(full.fd, b"link")
    bench.close()
    assert "link" in os.listdir(full.path)
    assert not any(name.startswith(".mkcfs-tmp") for name in os.listdir(full.path))


def test_a_directory_with_contents_stays(full: DirectoryStore, tmp_path: Path) -> None:
    path = path_of(full, DIGESTS[3])
    path.unlink()
    path.mkdir()
    (path / "mine").write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(CONTENTS[3])
    result = mend(full, tmp_path / "tree", replace=True, remove_damaged=True)
    assert outcomes(result) == [None]
    assert result.problems[0].what.endswith("; cannot replace it: Directory not empty")
    assert (path / "mine").read_bytes() == b"x"
    assert not any(name.startswith(".mkcfs-tmp") for name in os.listdir(full.path))


def test_what_is_no_directory_of_objects_stays(full: DirectoryStore) -> None:
    free = next(name for name in (f"{number:02x}" for number in range(256)) if not (Path(full.path) / name).exists())
    (Path(full.path) / free).write_bytes(b"x")
    assert outcomes(mend(full, replace=True, remove_damaged=True)) == [None]


def test_removing_what_is_damaged(full: DirectoryStore) -> None:
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    path_of(full, DIGESTS[5]).unlink()
    path_of(full, DIGESTS[5]).symlink_to("x")
    (Path(full.path) / "README").write_bytes(b"x")
    result = mend(full, remove_damaged=True)
    assert sorted(map(str, outcomes(result))) == ["None", "removed", "removed"]
    assert [problem.fault for problem in result.problems if problem.remains] == [Fault.FOREIGN]
    assert not path_of(full, DIGESTS[3]).exists()
    assert not path_of(full, DIGESTS[5]).is_symlink()


def test_removing_fails_with_the_name(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path_of(full, DIGESTS[3]).write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StoreError, match=f"{DIGESTS[3].hex()[2:]}: cannot remove the object: Operation not permitted"):
        mend(full, remove_damaged=True)
    monkeypatch.undo()
    path_of(full, DIGESTS[3]).write_bytes(CONTENTS[3])
    shutil.copy(path_of(full, DIGESTS[3]), Path(full.path) / DIGESTS[3].hex())
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StoreError, match=f"{DIGESTS[3].hex()}: cannot remove the wrong name"):
        mend(full)


def test_problems_are_looked_at_again(full: DirectoryStore) -> None:
    """Between the check and the lock somebody else may have mended, removed or broken things."""
    for number in (3, 5, 6, 7):
        path_of(full, DIGESTS[number]).write_bytes(b"x")
    path_of(full, DIGESTS[3]).chmod(0o600)
    result = fsck(full, now=NOW)
    path_of(full, DIGESTS[3]).write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[5]).unlink()
    path_of(full, DIGESTS[6]).unlink()
    path_of(full, DIGESTS[6]).mkdir()
    repair(full, result, RepairOptions(remove_damaged=True), now=NOW)
    faults = {problem.path: (problem.fault, problem.outcome) for problem in result.problems}
    relative = {number: os.fsencode(path_of(full, DIGESTS[number]).relative_to(full.path)) for number in (3, 6, 7)}
    assert faults == {
        relative[3]: (Fault.MODE, None),
        relative[6]: (Fault.ODD, None),
        relative[7]: (Fault.DAMAGED, "removed"),
    }


def test_a_misplaced_file_that_became_something_else(full: DirectoryStore) -> None:
    wrong = Path(full.path) / DIGESTS[3].hex()
    path_of(full, DIGESTS[3]).rename(wrong)
    result = fsck(full, now=NOW)
    wrong.unlink()
    wrong.mkdir()
    repair(full, result, REPAIR, now=NOW)
    assert [(problem.fault, problem.remains) for problem in result.problems] == [(Fault.FOREIGN, True)]
    assert wrong.is_dir()


def test_temporaries(full: DirectoryStore) -> None:
    root = Path(full.path)
    stale, mixed = root / ".mkcfs-tmp-0123456789abcdef", root / ".mkcfs-tmp-aaaaaaaaaaaaaaaa"
    for place in (stale, mixed):
        place.mkdir()
        (place / "0").write_bytes(b"part")
    (mixed / "directory").mkdir()
    with full.locked():
        result = fsck(full, now=NOW)
    assert {problem.fault for problem in result.problems} == {Fault.IN_USE}
    late = root / ".mkcfs-tmp-bbbbbbbbbbbbbbbb"
    late.mkdir()
    young = root / ".tmpAbC012"
    young.write_bytes(b"part")
    repair(full, result, RepairOptions(remove_temporaries=True), now=young.stat().st_ctime + 60)
    found = {problem.path.decode(): (problem.fault, problem.outcome) for problem in result.problems}
    assert found == {
        stale.name: (Fault.TEMPORARY, "removed"),
        mixed.name: (Fault.TEMPORARY, None),
        late.name: (Fault.TEMPORARY, "removed"),
    }
    assert young.exists()
    assert not stale.exists()
    repair(full, result, RepairOptions(remove_temporaries=True), now=young.stat().st_ctime + 1e6)
    assert not young.exists()


def test_temporaries_that_cannot_be_removed(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(full.path) / ".mkcfs-tmp-0123456789abcdef"
    place.mkdir()
    result = fsck(full, now=NOW)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(StoreError, match="cannot remove temporaries: Operation not permitted"):
        repair(full, result, RepairOptions(remove_temporaries=True), now=NOW)

    def vanished(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "rmdir", vanished)
    repair(full, result, RepairOptions(remove_temporaries=True), now=NOW)
    assert outcomes(result) == ["removed"]


def test_a_repair_needs_the_store_for_itself(full: DirectoryStore) -> None:
    result = fsck(full, now=NOW)
    with DirectoryStore(full.path) as other, other.locked(), pytest.raises(StoreBusy):
        repair(full, result, RepairOptions(remove_damaged=True), now=NOW, waiting=Waiting(timeout=0))


@pytest.mark.root
def test_an_ordinary_user_cannot_repair(full: DirectoryStore, tmp_path: Path) -> None:
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(CONTENTS[3])
    with as_nobody(tmp_path), pytest.raises(StoreError, match="cannot lock the store: Permission"):
        mend(full, tmp_path / "tree")
    assert path_of(full, DIGESTS[3]).read_bytes() == b"x"


def test_a_full_disk(full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[3]).write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "reflink", lambda *_: False)
    monkeypatch.setattr(Temporary, "write", refuse)
    with pytest.raises(StoreError, match="cannot write an object: No space left"):
        mend(full, tmp_path / "tree")
    monkeypatch.undo()
    monkeypatch.setattr(files, "syncfs", refuse)
    with pytest.raises(StoreError, match="cannot bring objects to stable storage: No space left"):
        mend(full, tmp_path / "tree")
    assert path_of(full, DIGESTS[3]).read_bytes() == b"x"
    assert not any(name.startswith(".mkcfs-tmp") for name in os.listdir(full.path))


def test_no_more_is_written_than_there_is_room_for(tmp_path: Path) -> None:
    """A donor that is larger than the disk leaves it as it was, and the other objects are replaced."""
    (tmp_path / "tree").mkdir()
    large = b"large" * (1 << 20)
    (tmp_path / "tree/large").write_bytes(large)
    (tmp_path / "tree/small").write_bytes(CONTENTS[3])
    for where in loop_mount(tmp_path, "ext4", 4 << 20, "-O", "^has_journal", "-m", "0"):
        with DirectoryStore(str(where / "store"), create=True) as store:
            digest = digest_bytes(large)
            for name in (digest, DIGESTS[3]):
                path_of(store, name).parent.mkdir(exist_ok=True)
                path_of(store, name).write_bytes(b"x")
            free = os.statvfs(where).f_bavail
            result = mend(store, tmp_path / "tree")
            by_digest = {problem.digest: problem for problem in result.problems}
            assert by_digest[digest].outcome is None
            assert "cannot replace it: it needs 5242880 bytes, but only " in by_digest[digest].what
            assert by_digest[DIGESTS[3]].outcome is not None
            assert os.statvfs(where).f_bavail >= free - 64


def test_a_donor_in_an_objects_place_is_hashed_before_it_is_copied(
    full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    with DirectoryStore(str(tmp_path / "donor"), create=True) as donor:
        path_of(donor, DIGESTS[3]).parent.mkdir()
        path_of(donor, DIGESTS[3]).write_bytes(b"y" * (3 << 20))
    monkeypatch.setattr(repairing, "copy_contents", lambda *_: pytest.fail("it was copied"))
    assert outcomes(mend(full, tmp_path / "donor")) == [None]


@pytest.mark.parametrize("change", ["grow", "cut", "rewrite"])
def test_a_donor_that_changes_before_it_is_copied(
    full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """One that only grew is still good, as far as it was hashed; no more than that is ever written."""
    (tmp_path / "tree").mkdir()
    file = tmp_path / "tree/file"
    file.write_bytes(CONTENTS[3])
    path_of(full, DIGESTS[3]).write_bytes(b"x")
    real = files.reflink

    def late(source: int, target: int) -> bool:
        if change == "grow":
            with file.open("ab") as more:
                more.truncate(1 << 40)
        elif change == "cut":
            os.truncate(file, 10)
        else:
            file.write_bytes(b"z" * len(CONTENTS[3]))
        return False

    monkeypatch.setattr(files, "reflink", late)
    result = mend(full, tmp_path / "tree")
    monkeypatch.setattr(files, "reflink", real)
    assert [outcome is not None for outcome in outcomes(result)] == [change == "grow"]
    if change == "grow":
        assert path_of(full, DIGESTS[3]).read_bytes() == CONTENTS[3]
    assert not any(name.startswith(".mkcfs-tmp") for name in os.listdir(full.path))


@pytest.mark.parametrize("sparse", [True, False], ids=["holes", "no clones"])
def test_terabytes_of_holes_are_checked_and_copied_quickly(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sparse: bool
) -> None:
    """A good sparse object, a bad one, and a donor of which little is data."""
    if not sparse:
        monkeypatch.setattr(files, "reflink", lambda *_: False)
    (tmp_path / "tree").mkdir()
    file = tmp_path / "tree/sparse"
    with file.open("wb") as made:
        made.write(b"data")
        made.truncate(3 << 40)
    with file.open("rb") as made:
        digest = hash_fd(made.fileno())[0]
    other = bytes(32)
    for name in (digest, other):
        path_of(store, name).parent.mkdir()
        path_of(store, name).touch()
    os.truncate(path_of(store, other), 15 << 40)
    started = time.process_time()
    result = mend(store, tmp_path / "tree")
    assert time.process_time() - started < 5
    assert {problem.digest: problem.outcome is not None for problem in result.problems} == {digest: True, other: False}
    made_anew = path_of(store, digest).stat()
    assert (made_anew.st_size, made_anew.st_blocks * 512 < 1 << 20) == (3 << 40, True)


def test_what_had_fs_verity_gets_it_again(
    full: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    for number in (3, 5, 6):
        (tmp_path / f"tree/{number}").write_bytes(CONTENTS[number])
        path_of(full, DIGESTS[number]).write_bytes(b"x")
    sealed_inode, broken_inode = (path_of(full, DIGESTS[number]).stat().st_ino for number in (3, 6))
    enabled = []

    def measure(fd: int) -> tuple[int, bytes] | None:
        inode = os.fstat(fd).st_ino
        if inode == broken_inode:
            raise OSError(errno.EIO, "broken")
        return (1, bytes(32)) if inode == sealed_inode else None

    def enable(fd: int, *_: object) -> None:
        enabled.append(os.fstat(fd).st_size)

    monkeypatch.setattr(kernel_verity, "measure", measure)
    monkeypatch.setattr(kernel_verity, "enable", enable)
    mend(full, tmp_path / "tree")
    assert enabled == [len(CONTENTS[3])]
    assert is_clean(full)


@pytest.mark.root
def test_contents_are_cloned_where_the_file_system_can(tmp_path: Path) -> None:
    for mounted in loop_mount(tmp_path, "xfs", 320 << 20):
        with DirectoryStore(str(mounted / "store"), create=True) as store:
            fill(store)
            (mounted / "tree").mkdir()
            (mounted / "tree/file").write_bytes(CONTENTS[12])
            path_of(store, DIGESTS[12]).write_bytes(b"x" * len(CONTENTS[12]))
            assert outcomes(mend(store, mounted / "tree")) == [f"replaced from {mounted}/tree/file"]
            assert is_clean(store)


# Repairs until it is killed at the N-th rename.
PROGRAM = """
import os, signal, sys
from cfstools.store import DirectoryStore
from cfstools.store.care.fsck import fsck
from cfstools.store.care.repair import RepairOptions, repair
path, number, donors = sys.argv[1], int(sys.argv[2]), [os.fsencode(donor) for donor in sys.argv[3:]]
real = {name: getattr(os, name) for name in ("rename", "unlink", "rmdir", "link")}
count = 0
def counted(name):
    def call(*args, **named):
        global count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real[name](*args, **named)
    return call
for name in real:
    setattr(os, name, counted(name))
with DirectoryStore(path) as store:
    result = fsck(store, now=0.0, threads=1)
    repair(store, result, RepairOptions(replace=True, donors=donors, remove_temporaries=True), now=0.0)
"""


@pytest.mark.parametrize("number", range(1, 40, 2))
def test_killed(full: DirectoryStore, tmp_path: Path, number: int) -> None:
    """Nothing is lost whenever a repair is killed: no good object, and no contents in a wrong place."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for index in (7, 8):
        (tree / str(index)).write_bytes(CONTENTS[index])
        path_of(full, DIGESTS[index]).write_bytes(b"x")
    swap(full)
    right = path_of(full, DIGESTS[9])
    right.rename(Path(full.path) / DIGESTS[9].hex())
    good = [digest for index, digest in enumerate(DIGESTS) if index not in (3, 5, 7, 8, 9)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, full.path, str(number), str(tree)], check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    for digest in good:
        assert digest_bytes(path_of(full, digest).read_bytes()) == digest
    held = {digest_bytes(data) for data in listing(full.path).values()}
    assert {DIGESTS[3], DIGESTS[5], DIGESTS[9]} <= held
    mend(full, tree, replace=True, remove_temporaries=True)
    assert is_clean(full)
