"""Collecting garbage: what goes, what stays, who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from cfstools.errors import InputError, StoreBusy, StoreError
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care import gc as gc_module
from cfstools.store.care.gc import GcReport, gc
from cfstools.store.care.scan import UNLOCKED_STALE_AGE, listings
from cfstools.store.locking import PATIENT, Waiting
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.object_id import leaves_name
from tests.store.conftest import as_nobody, listing

SHA512 = Params(algorithm=Algorithm.SHA512)
CONTENTS = [b"object %d " % number * (50 + 400 * number) for number in range(20)]
DIGESTS = [digest_bytes(data) for data in CONTENTS]


SIZES = dict(zip(DIGESTS, map(len, CONTENTS), strict=True))


def path_of(store: DirectoryStore, digest: bytes) -> Path:
    return Path(store.describe(digest))


@pytest.fixture
def full(store: DirectoryStore) -> DirectoryStore:
    with StoreWriter(store) as writer:
        for data in CONTENTS:
            writer.add_bytes(data)
    return store


def collect(
    store: DirectoryStore,
    keep: Collection[bytes] = (),
    *,
    now: float = 0.0,
    grace: float = 0.0,
    dry_run: bool = False,
    waiting: Waiting = PATIENT,
) -> GcReport:
    return gc(
        store,
        lambda: {digest: SIZES.get(digest, 0) for digest in keep},
        now=now,
        grace=grace,
        dry_run=dry_run,
        waiting=waiting,
    )


def left(store: DirectoryStore) -> list[bytes]:
    return list(store.objects())


def test_what_is_not_kept_goes(full: DirectoryStore) -> None:
    missing = digest_bytes(b"nowhere")
    report = collect(full, {*DIGESTS[:5], missing})
    assert report == GcReport(
        dry_run=False,
        kept=5,
        bytes_kept=sum(map(len, CONTENTS[:5])),
        missing=1,
        young=0,
        bytes_young=0,
        removed=tuple(sorted(DIGESTS[5:])),
        bytes_removed=sum(map(len, CONTENTS[5:])),
        temporaries_removed=0,
    )
    assert left(full) == sorted(DIGESTS[:5])


def test_leaves_go_with_their_object(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_module, "LARGE", 0)
    leaves = Path(full.path, "leaves")
    for digest in (*DIGESTS[:2], digest_bytes(b"nowhere")):
        path = Path(full.path, leaves_name(digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"leaves")
    collect(full, DIGESTS[:1], dry_run=True)
    assert len(list(leaves.glob("*/*"))) == 3
    report = collect(full, DIGESTS[:1])
    assert len(report.removed) == len(DIGESTS) - 1
    assert Path(full.path, leaves_name(DIGESTS[0])).exists()
    assert not Path(full.path, leaves_name(DIGESTS[1])).exists()
    # Through a link nothing is removed.
    elsewhere = Path(full.path).parent / "elsewhere"
    (leaves / DIGESTS[0].hex()[:2]).rename(elsewhere)
    (leaves / DIGESTS[0].hex()[:2]).symlink_to(elsewhere)
    assert len(collect(full, ()).removed) == 1
    assert [path.read_bytes() for path in elsewhere.iterdir()] == [b"leaves"]


def test_both_algorithms(full: DirectoryStore) -> None:
    with StoreWriter(full, params=SHA512) as writer:
        long = [writer.add_bytes(data).digest for data in CONTENTS[:4]]
    collect(full, {*long[:2], DIGESTS[3]})
    assert set(left(full)) == {*long[:2], DIGESTS[3]}


def test_directories_stay_for_those_who_have_them_open(full: DirectoryStore) -> None:
    before = sorted(os.listdir(full.path))
    collect(full)
    assert sorted(os.listdir(full.path)) == before
    assert left(full) == []
    with StoreWriter(full) as writer:
        writer.add_bytes(CONTENTS[0])
    assert left(full) == [DIGESTS[0]]


def test_young_objects_stay(full: DirectoryStore) -> None:
    newest = max(path_of(full, digest).stat().st_ctime for digest in DIGESTS)
    oldest = min(path_of(full, digest).stat().st_ctime for digest in DIGESTS)
    report = collect(full, DIGESTS[:2], now=oldest + 99, grace=100)
    assert (report.kept, report.young, report.removed) == (2, len(DIGESTS) - 2, ())
    assert report.bytes_young == sum(map(len, CONTENTS[2:]))
    # A clock that was set back makes objects young, not old.
    assert collect(full, now=oldest - 1000, grace=100).young == len(DIGESTS)
    os.utime(path_of(full, DIGESTS[4]), (0, 0))  # what was copied with its old time is as young as its name
    assert collect(full, now=oldest + 99, grace=100).young == len(DIGESTS)
    report = collect(full, DIGESTS[:2], now=max(newest, path_of(full, DIGESTS[4]).stat().st_ctime) + 101, grace=100)
    assert (report.young, len(report.removed)) == (0, len(DIGESTS) - 2)


def test_no_grace_takes_no_account_of_age(full: DirectoryStore) -> None:
    assert len(collect(full, now=0.0, grace=0.0).removed) == len(DIGESTS)


def test_a_trial_removes_nothing(full: DirectoryStore) -> None:
    stage = Path(full.path) / ".mkcfs-tmp-0123456789abcdef"
    stage.mkdir()
    young = Path(full.path) / ".tmpAbC012"
    young.write_bytes(b"part")
    before = listing(full.path)
    with DirectoryStore(full.path) as other, other.locked():
        report = collect(full, DIGESTS[:5], now=young.stat().st_ctime + UNLOCKED_STALE_AGE + 60, dry_run=True)
    assert report.dry_run
    assert report.removed == tuple(sorted(DIGESTS[5:]))
    assert report.temporaries_removed == 1
    assert listing(full.path) == before
    assert stage.exists()


def test_temporaries_nobody_writes_go(full: DirectoryStore) -> None:
    root = Path(full.path)
    stage = root / ".mkcfs-tmp-0123456789abcdef"
    stage.mkdir()
    (stage / "0").write_bytes(b"part")
    young = root / ".tmpAbC012"
    young.write_bytes(b"part")
    report = collect(full, DIGESTS, now=young.stat().st_ctime + 7200)
    assert report.temporaries_removed == 1
    assert young.exists()
    report = collect(full, DIGESTS, now=young.stat().st_ctime + UNLOCKED_STALE_AGE + 1)
    assert report.temporaries_removed == 1
    assert not young.exists()
    assert left(full) == sorted(DIGESTS)


def test_what_is_no_object_stays(full: DirectoryStore, tmp_path: Path) -> None:
    root = Path(full.path)
    prefix = path_of(full, DIGESTS[0]).parent
    (root / "README").write_bytes(b"mine")
    (prefix / "note").write_bytes(b"mine")
    (root / ".mkcfs").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ("a" * 62)).write_bytes(b"mine")
    free = next(name for name in (f"{number:02x}" for number in range(256)) if not (root / name).exists())
    (root / free).symlink_to(elsewhere)
    path_of(full, DIGESTS[1]).unlink()
    path_of(full, DIGESTS[1]).symlink_to(elsewhere / ("a" * 62))
    collect(full)
    assert sorted(data for data in listing(elsewhere).values()) == [b"mine"]
    assert (prefix / "note").exists()
    assert path_of(full, DIGESTS[1]).is_symlink()
    assert left(full) == []


def test_marking_happens_under_the_lock_and_its_errors_stop_everything(full: DirectoryStore) -> None:
    def mark() -> dict[bytes, int]:
        with DirectoryStore(full.path) as other, pytest.raises(StoreBusy), other.locked(wait=False):
            pass
        raise InputError("cannot read the image")

    with pytest.raises(InputError):
        gc(full, mark, now=0.0, grace=0.0)
    assert left(full) == sorted(DIGESTS)


@pytest.mark.parametrize("second", [False, True], ids=["first store", "second store"])
def test_waits_for_a_build_and_sees_what_it_made(full: DirectoryStore, tmp_path: Path, *, second: bool) -> None:
    """A build counts on objects of every store it was given, not only of the one it writes."""
    first = DirectoryStore(str(tmp_path / "first"), create=True)
    writer = StoreWriter(first, others=[DirectoryStore(full.path)]) if second else StoreWriter(full)
    keep: dict[bytes, int] = {}
    waiting = threading.Event()
    reports = []

    def run() -> None:
        with DirectoryStore(full.path) as own:
            reports.append(gc(own, lambda: keep, now=0.0, grace=0.0, waiting=Waiting(on_wait=lambda *_: waiting.set())))

    with pytest.raises(StoreBusy, match="in use by another process"):
        collect(full, waiting=Waiting(timeout=0))
    thread = threading.Thread(target=run)
    thread.start()
    assert waiting.wait(60)
    assert not writer.add_bytes(CONTENTS[7]).new
    keep[DIGESTS[7]] = SIZES[DIGESTS[7]]  # the image is in place
    writer.commit()
    writer.close()
    thread.join(60)
    assert reports[0].kept == 1
    assert left(full) == [DIGESTS[7]]


def test_a_build_waits_for_the_collection(full: DirectoryStore) -> None:
    started = threading.Event()
    added = []

    def build() -> None:
        started.set()
        with DirectoryStore(full.path) as own, StoreWriter(own) as writer:
            added.append(writer.add_bytes(CONTENTS[7]))

    thread = threading.Thread(target=build)

    def mark() -> dict[bytes, int]:
        thread.start()
        assert started.wait(60)
        return {}

    gc(full, mark, now=0.0, grace=0.0)
    thread.join(60)
    assert added[0].new
    assert left(full) == [DIGESTS[7]]


def test_where_there_are_no_locks_nothing_is_removed(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="no locks") as caught:
        collect(full)
    assert caught.value.hint is not None
    assert len(collect(full, dry_run=True).removed) == len(DIGESTS)
    assert left(full) == sorted(DIGESTS)


@pytest.mark.root
def test_an_ordinary_user_is_refused(full: DirectoryStore, tmp_path: Path) -> None:
    with as_nobody(tmp_path):
        with pytest.raises(StoreError, match="cannot lock the store: Permission denied"):
            collect(full)
        assert len(collect(full, dry_run=True).removed) == len(DIGESTS)
    path_of(full, DIGESTS[0]).parent.chmod(0o700)
    with as_nobody(tmp_path), pytest.raises(StoreError, match="cannot list the objects: Permission denied"):
        collect(full, DIGESTS, dry_run=True)
    assert left(full) == sorted(DIGESTS)


def test_objects_that_vanish_meanwhile(full: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.unlink

    def twice(path: bytes, *, dir_fd: int) -> None:
        real(path, dir_fd=dir_fd)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", twice)
    assert len(collect(full).removed) == len(DIGESTS)


def _garbage(_place: Path) -> None:
    """Nothing but objects."""


def _note(place: Path) -> None:
    (place / "note").write_bytes(b"mine")


def _capitals(place: Path) -> None:
    name = "A" * 62
    (place / name).write_bytes(b"mine")


def _space(place: Path) -> None:
    """``bytes.fromhex`` passes over spaces."""
    (place / ("1" * 61 + " ")).write_bytes(b"mine")
    (place / ("1" * 60 + " 1")).write_bytes(b"mine")


def _longer(place: Path) -> None:
    (place / ("1" * 126)).write_bytes(b"an object of sha512")


def _not_text(place: Path) -> None:
    (place / os.fsdecode(b"\xff" * 62)).write_bytes(b"mine")


def _directory(place: Path) -> None:
    """In place of an object, needed or not."""
    one, *_, other = sorted(place.iterdir())
    for path in (one, other):
        path.unlink()
        path.mkdir()


def _link(place: Path) -> None:
    one = min(place.iterdir())
    one.rename(place / "note")
    one.symlink_to("note")


@pytest.mark.parametrize("change", [_garbage, _note, _capitals, _space, _longer, _not_text, _directory, _link])
@pytest.mark.parametrize("garbage", [0, 1, 4, 12])
def test_listings_tell_the_same_of_known_objects(
    store: DirectoryStore, change: Callable[[Path], None], garbage: int
) -> None:
    place = Path(store.path) / "ab"
    place.mkdir()
    names = ["ab" + digest_bytes(b"%d" % number).hex()[2:] for number in range(12)]
    for number, name in enumerate(names):
        (place / name[2:]).write_bytes(bytes(number))
    change(place)
    known = {bytes.fromhex(name): 5 for name in names[garbage:]} | {digest_bytes(b"nowhere"): 5}
    plain, told = list(listings(store)), list(listings(store, known))
    assert [list(listing.others) for listing in told] == [list(listing.others) for listing in plain]
    for one, other in zip(told, plain, strict=True):
        assert set(one.known) <= known.keys()
        assert sorted([*one.digests, *one.known]) == [*other.digests]
        assert {*zip(*one[:4], strict=True)} <= {*zip(*other[:4], strict=True)}
    if change is _garbage and garbage < 4:
        assert len(told[0].known) == 12 - garbage
