"""A collection stops for whatever might be an image, and for images that are gone since the last one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.store_gc import StoreGcReport
from cfstools.api.store_gc import gc as collect
from cfstools.errors import CfsError, ImageError, InputError, SourceChanged, StoreError
from cfstools.signing.attach import make_trailer
from cfstools.sources.image_file import image_needs
from cfstools.sources.image_search import Doubt
from cfstools.store import DirectoryStore
from cfstools.store.care.kept import KeptImage, kept_text, parse_kept
from tests.mkcfs import mkcfs
from tests.store.conftest import as_nobody

EROFS_MAGIC_AT = 1024


class Place:
    """Two images that need an object each, in one directory, and their store."""

    def __init__(self, top: Path) -> None:
        self.top, self.images, self.store = top, top / "images", top / "store"
        self.images.mkdir()
        for name in ("first", "second"):
            (top / name).mkdir()
            (top / name / "file").write_bytes(name.encode() * 100)
            self.build(name)
        self.image = self.images / "second.cfs"
        self.bytes = self.image.read_bytes()

    def build(self, name: str) -> None:
        build(
            bytes(self.top / name),
            bytes(self.images / f"{name}.cfs"),
            stores=[bytes(self.store)],
        )

    def gc(self, **options: object) -> StoreGcReport:
        words = {"keep_dirs": [bytes(self.images)], "now": 0.0, "grace": 0.0, **options}
        return collect(bytes(self.store), **words)  # type: ignore[arg-type]

    def objects(self) -> int:
        with DirectoryStore(bytes(self.store)) as store:
            return len(list(store.objects()))

    def rename(self, name: str) -> None:
        self.image = self.image.rename(self.images / name)

    def replace(self, data: bytes) -> None:
        self.image.unlink()
        self.image.write_bytes(data)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def flipped(data: bytes, offset: int, *bits: int) -> bytes:
    changed = bytearray(data)
    for bit in bits:
        changed[offset + bit // 8] ^= 1 << bit % 8
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda data: data[:1],
    "three bytes": lambda data: data[:3],
    "all zeros": lambda data: bytes(len(data)),
    "a short run of zeros": lambda _: bytes(7),
    "the first block zero": lambda data: bytes(4096) + data[4096:],
    "the first byte": lambda data: b"X" + data[1:],
    "the fourth byte": lambda data: flipped(data, 0, *range(24, 32)),
    "both magics, a few bits": lambda data: flipped(flipped(data, 0, 1, 9, 17, 25), EROFS_MAGIC_AT, 3, 12, 20, 31),
    "the first 1024 bytes": lambda data: b"\xaa" * 1024 + data[1024:],
    "the magic and the superblock, signed": lambda data: (
        b"\xaa" * 2048 + data[2048:] + make_trailer(len(data), b'{"payload":"x"}')
    ),
    "the same with the end cut off": lambda data: (
        b"\xaa" * 2048 + data[2048:] + make_trailer(len(data), b'{"payload":"x"}')[:100]
    ),
    "the same with zeros behind": lambda data: (
        b"\xaa" * 2048 + data[2048:] + make_trailer(len(data), b'{"payload":"x"}') + bytes(4096)
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_image_of_any_name_stops(place: Place, damage: str) -> None:
    place.rename("second")
    place.replace(DAMAGE[damage](place.bytes))
    for dry_run in (True, False):
        with pytest.raises(CfsError, match="images/second: "):
            place.gc(dry_run=dry_run)
    assert place.objects() == 2
    assert len(place.gc(no_images=[bytes(place.image)]).removed) == 1


@pytest.mark.parametrize("cut", [4, 100, 1024, 1100, 2000, 4096, 8191])
def test_a_cut_image_stops(place: Place, cut: int) -> None:
    place.rename("second")
    place.replace(place.bytes[:cut])
    with pytest.raises(ImageError):
        place.gc()
    assert place.objects() == 2


@pytest.mark.parametrize("offset", [4, 12, 1024 + 12, 1024 + 80])
def test_a_format_that_is_not_known_stops(place: Place, offset: int) -> None:
    """A newer version, unknown features: never garbage because they are unknown."""
    place.rename("second")
    changed = bytearray(place.bytes)
    changed[offset] = 77
    place.replace(bytes(changed))
    with pytest.raises(ImageError):
        place.gc()
    assert place.objects() == 2


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _text(path: Path) -> None:
    path.write_text("moved to tape\n", encoding="ascii")


def _random(path: Path) -> None:
    path.write_bytes(b"\xa5" * 8192)


def _null_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def _elsewhere(path: Path) -> None:
    (path.parent.parent / "note").write_text("moved to tape\n", encoding="ascii")
    path.symlink_to(path.parent.parent / "note")


REPLACED = [_fifo, _directory, _loop, _dangling, _text, _random, _null_device, _elsewhere]


@pytest.mark.parametrize("name", ["second.cfs", "SECOND.CFS", "second.composefs", "second.erofs", "composefs.blob"])
@pytest.mark.parametrize("replace", REPLACED)
def test_what_has_the_name_of_an_image_and_is_none_stops(
    place: Place, name: str, replace: Callable[[Path], None]
) -> None:
    place.rename(name)
    place.image.unlink()
    replace(place.image)
    with pytest.raises(InputError):
        place.gc()
    assert place.objects() == 2


@pytest.mark.parametrize("replace", [_text, _random, _fifo, _elsewhere])
def test_what_has_a_signature_beside_it_stops(place: Place, replace: Callable[[Path], None]) -> None:
    place.rename("second")
    (place.images / "second.sig").write_bytes(b"{}")
    place.image.unlink()
    replace(place.image)
    with pytest.raises(Doubt, match="has a signature beside it"):
        place.gc()


def test_a_signature_without_its_image_stops(place: Place) -> None:
    place.image.unlink()
    (place.images / "second.cfs.sig").write_bytes(b"{}")
    with pytest.raises(Doubt, match=r"second\.cfs\.sig: is the signature of an image that is not there"):
        place.gc()
    assert len(place.gc(no_images=[bytes(place.images / "second.cfs.sig")]).removed) == 1


@pytest.mark.root
def test_unreadable_and_io_errors_stop(place: Place, tmp_path: Path) -> None:
    os.chmod(place.store, 0o777)
    os.chmod(place.store / ".mkcfs-lock", 0o666)
    place.image.chmod(0)
    with as_nobody(tmp_path), pytest.raises(InputError, match=r"second\.cfs: cannot open: Permission denied"):
        place.gc()


def test_files_that_are_no_images_are_counted_and_told(place: Place) -> None:
    (place.images / "README").write_bytes(b"text")
    (place.images / "second.cfs.sig").write_bytes(b"{}")
    (place.images / "disk.img").write_bytes(b"\xeb\x63" * 4096)
    os.mkfifo(place.images / "queue")
    (place.images / f".image.cfs.{'0' * 16}.tmp").write_bytes(b"")
    report = place.gc()
    assert len(report.passed_over) == 5
    words: list[str | Path] = ["store", "gc", "--store", place.store, "--keep-dir", place.images, "--dry-run"]
    said = mkcfs(*words).stdout.decode()
    assert "passed over 5 files that are no images" in said
    assert "README" not in said
    assert f"{place.images}/README: is no image\n" in mkcfs("-v", *words).stdout.decode()


def test_objects_and_locks_of_stores_are_no_images_and_in_no_doubt(place: Place) -> None:
    """A store below the directory: its objects may be of any kind, and it is not read for what is in them."""
    (place.top / "first/zeros").write_bytes(bytes(70000))
    (place.top / "first/erofs").write_bytes(bytes(1024) + place.bytes[1024:])
    place.build("first")
    for name in ("first", "second"):
        shutil.rmtree(place.top / name)
    report = place.gc(keep_dirs=[bytes(place.top)])
    assert (len(report.images), report.removed, report.passed_over) == (2, (), ())
    # An image that is kept as an object, and met under a name of its own, has to be whole.
    found = next(path for path in place.store.glob("??/*") if path.stat().st_size == len(place.bytes))
    (place.images / "deployed").symlink_to(found)
    with pytest.raises(Doubt, match="images/deployed: has the marks"):
        place.gc(keep_dirs=[bytes(place.top)])


def test_all_doubts_are_told_at_once(place: Place) -> None:
    for number in range(3):
        (place.images / f"{number}.cfs").touch()
    with pytest.raises(Doubt, match=r"0\.cfs: is empty.*\(and 2 more in doubt: .*1\.cfs: is empty.*2\.cfs: is empty"):
        place.gc()


# What the last collection kept


def _gone(image: Path) -> None:
    image.unlink()


def _unmounted(image: Path) -> None:
    shutil.rmtree(image.parent)
    image.parent.mkdir()


def _overwritten(image: Path) -> None:
    image.write_bytes(b"\xa5" * 8192)


def _made_a_directory(image: Path) -> None:
    image.unlink()
    image.mkdir()


def _made_a_link(image: Path) -> None:
    image.unlink()
    image.symlink_to(image.parent.parent.parent / "first/file")


LOST = [_gone, _unmounted, _overwritten, _made_a_directory, _made_a_link]


@pytest.fixture
def collected(place: Place) -> Place:
    """The same where the second image lies deeper, under a name that tells nothing, after a collection."""
    (place.images / "deep").mkdir()
    place.rename("deep/second")
    place.gc()
    return place


@pytest.mark.parametrize("lose", LOST)
def test_an_image_that_is_lost_stops_the_next_collection(collected: Place, lose: Callable[[Path], None]) -> None:
    lose(collected.image)
    for options in ({}, {"dry_run": True}, {"keep_nothing": True}, {"forget": [b"/other"]}):
        with pytest.raises(InputError, match="deep/second: was kept by the last collection, and is") as caught:
            collected.gc(**options)
        assert caught.value.hint is not None
        assert "forget_missing=True" in caught.value.hint
    assert collected.objects() == 2
    report = collected.gc(forget=[bytes(collected.image)])
    assert (report.forgotten, len(report.removed)) == ((str(collected.image),), 1)
    assert collected.gc().forgotten == ()  # it is not asked for again


def test_all_that_is_lost_may_be_forgotten_at_once(collected: Place) -> None:
    shutil.rmtree(collected.images / "deep")
    report = collected.gc(forget_missing=True, dry_run=True)
    assert len(report.removed) == len(report.forgotten) == 1
    with pytest.raises(InputError):
        collected.gc()
    assert len(collected.gc(forget_missing=True).removed) == 1


def test_what_is_only_elsewhere_or_new_is_not_lost(collected: Place) -> None:
    collected.rename("renamed")
    assert collected.gc().removed == ()
    # Another image in its place.
    shutil.copyfile(collected.images / "first.cfs", collected.image)
    assert len(collected.gc().removed) == 1
    assert collected.gc(keep_dirs=[], keep=[bytes(collected.image)]).left_out == ()


def test_an_image_that_is_left_out_is_told(collected: Place) -> None:
    report = collected.gc(keep_dirs=[], keep=[bytes(collected.images / "first.cfs")])
    assert (report.left_out, len(report.removed)) == ((str(collected.image),), 1)


def test_a_trial_remembers_nothing(place: Place) -> None:
    place.gc(dry_run=True)
    assert not (place.store / ".mkcfs-images").exists()
    place.image.unlink()
    assert len(place.gc().removed) == 1


def test_the_record_is_for_those_who_may_write(collected: Place) -> None:
    record = collected.store / ".mkcfs-images"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    before = record.stat().st_ino
    collected.gc()
    assert record.stat().st_ino == before  # nothing has changed
    unfinished = collected.store / ".mkcfs-images.new"
    unfinished.write_bytes(b"mkcfs ima")
    collected.gc()
    assert not unfinished.exists()


def test_names_of_any_bytes_are_remembered() -> None:
    images = [KeptImage(b"/" + bytes(range(1, 256)), bytes(32), 4096), KeptImage(b"/a b\n%41", b"\xff" * 32, 0)]
    assert parse_kept(kept_text(images), "record") == sorted(images)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


PLANTED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "other": lambda path: path.write_bytes(b"hello\n"),
    "cut": lambda path: path.write_bytes(kept_text([KeptImage(b"/x", bytes(32), 1)])[:-1]),
    "bad digest": lambda path: path.write_bytes(b"mkcfs images 1\nzz 1 /x\n"),
    "bad size": lambda path: path.write_bytes(b"mkcfs images 1\n%b -1 /x\n" % (b"0" * 64)),
    "newer": lambda path: path.write_bytes(b"mkcfs images 2\n"),
    "fifo": _fifo,
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "directory": _directory,
    "huge": _huge,
    "an image nobody has": lambda path: path.write_bytes(kept_text([KeptImage(b"/nowhere", bytes(32), 1)])),
    "a device": lambda path: path.write_bytes(kept_text([KeptImage(b"/dev/zero", bytes(32), 1)])),
    "a name that is none": lambda path: path.write_bytes(b"mkcfs images 1\n%b 1 %%00\n" % (b"0" * 64)),
}


@pytest.mark.parametrize("plant", list(PLANTED))
def test_a_planted_record_only_stops(place: Place, plant: str) -> None:
    PLANTED[plant](place.store / ".mkcfs-images")
    with pytest.raises((StoreError, InputError)) as caught:
        place.gc()
    assert caught.value.hint is not None
    assert place.objects() == 2
    if plant != "directory":
        assert place.gc(forget_missing=True).removed == ()
        assert place.gc().removed == ()


def test_an_image_that_is_replaced_while_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes to a name that was read already, and goes from one that was not read yet."""
    real = image_needs
    moved: list[bytes] = []

    def moving(path: bytes) -> object:
        if not moved:
            moved.append(path)
            (place.images / "0.cfs").write_bytes(place.image.read_bytes())
            place.image.unlink()
            shutil.copyfile(place.images / "first.cfs", place.image)
        return real(path)

    monkeypatch.setattr("cfstools.sources.marking.image_needs", moving)
    report = place.gc()
    assert report.removed == ()
    assert len(report.images) == 3


def test_an_image_that_is_replaced_while_it_is_read_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, replaced = image_needs, list[bytes]()

    def replacing(path: bytes) -> object:
        if not replaced:
            replaced.append(path)
            raise SourceChanged("changed while it was read")
        return real(path)

    monkeypatch.setattr("cfstools.sources.marking.image_needs", replacing)
    report = place.gc()
    assert report.removed == ()
    assert replaced


def test_images_that_never_rest_stop(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_needs

    def touching(path: bytes) -> object:
        os.utime(path)
        return real(path)

    monkeypatch.setattr("cfstools.sources.marking.image_needs", touching)
    with pytest.raises(InputError, match="images change while they are read"):
        place.gc()


def test_the_command(collected: Place) -> None:
    words: list[str | Path] = [
        "store",
        "gc",
        "--store",
        collected.store,
        "--keep-dir",
        collected.images,
        "--grace",
        "0",
    ]
    collected.image.unlink()
    done = mkcfs(*words, check=False)
    assert done.code == 1
    assert done.stderr.decode().startswith(f"mkcfs: {collected.image}: was kept by the last collection, and is gone\n")
    assert b"removed 1 object" in mkcfs(*words, "--forget", collected.image).stdout
    (collected.images / "empty").touch()
    assert mkcfs(*words, check=False).code == 1
    assert b"passed over 1 file " in mkcfs(*words, "--no-image", collected.images / "empty").stdout
