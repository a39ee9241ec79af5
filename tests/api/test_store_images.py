"""Which images are found below a directory, and which objects they need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.store_gc import gc
from cfstools.errors import ImageError, InputError, UsageError
from cfstools.formats.dump.parse import parse_dump
from cfstools.sources.image_file import image_needs
from cfstools.sources.image_search import Search
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.formats.images import write_image
from tests.store.conftest import as_nobody

LARGE, OTHER, LINKED = b"large " * 100, b"other " * 100, b"linked " * 100


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source, its image, its store."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "large").write_bytes(LARGE)
    (source / "below/linked").write_bytes(LINKED)
    os.link(source / "below/linked", source / "again")
    (source / "inline").write_bytes(b"inline")
    (tmp_path / "images").mkdir()
    make(tmp_path, "images/image.cfs")
    return tmp_path


def make(place: Path, name: str, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    image = place / name
    build(
        bytes(place / "source"),
        bytes(image),
        stores=[bytes(place / "store")],
        options=BuildOptions(algorithm=algorithm),
    )
    return image


def found(*places: Path) -> list[Path]:
    search = Search([bytes(place) for place in places])
    return [Path(os.fsdecode(image.path)) for image in search.images.values()]


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_needed_digests(place: Path, algorithm: Algorithm) -> None:
    params = Params(algorithm=algorithm)
    assert image_needs(bytes(make(place, "image", algorithm))).objects == {
        digest_bytes(LARGE, params): len(LARGE),
        digest_bytes(LINKED, params): len(LINKED),
    }


def test_the_place_and_the_digest_both_count(tmp_path: Path) -> None:
    """An image may name an object by its place, its digest, or two different ones; and places that are no object's."""
    one, two = "11" * 32, "22" * 32
    text = (
        "/ 4096 40755 2 0 0 0 0.0 - - -\n"
        f"/both 100 100644 1 0 0 0 0.0 {one[:2]}/{one[2:]} - {two}\n"
        f"/slashes 100 100644 1 0 0 0 0.0 33//{one[2:]} - -\n"
        f"/elsewhere 100 100644 1 0 0 0 0.0 some/file - -\n"
        f"/deep 100 100644 1 0 0 0 0.0 a/33/{one[2:]} - -\n"
    )
    image = tmp_path / "image"
    image.write_bytes(bytes(write_image(parse_dump(text.encode()))))
    wanted = {bytes.fromhex(one), bytes.fromhex(two), bytes.fromhex("33" + one[2:])}
    assert set(image_needs(bytes(image)).objects) == wanted


def test_errors_name_the_image(place: Path) -> None:
    image = place / "images/image.cfs"
    data = bytearray(image.read_bytes())
    data[8] = 99
    image.write_bytes(data)
    with pytest.raises(ImageError, match=str(image)):
        image_needs(bytes(image))
    with pytest.raises(InputError, match="nothing: cannot read"):
        image_needs(bytes(place / "nothing"))


def test_images_are_told_by_content(place: Path) -> None:
    images = place / "images"
    (images / "deep/er").mkdir(parents=True)
    data = (images / "image.cfs").read_bytes()
    (images / "deep/er/no suffix").write_bytes(data)
    with open(os.path.join(bytes(images), b"n\xff\n"), "wb") as file:
        file.write(data)
    (images / "text").write_bytes(b"text")
    os.mkfifo(images / "fifo")
    (images / f".image.cfs.{'0' * 16}.tmp").write_bytes(data[:5000])
    names = sorted(bytes(path.relative_to(images)) for path in found(images))
    assert names == [b"deep/er/no suffix", b"image.cfs", b"n\xff\n"]
    passed = Search([bytes(images)]).passed_over.values()
    assert [os.path.basename(path)[:7] for path in passed] == [b".image.", b"fifo", b"text"]


def test_links_are_followed_once(place: Path) -> None:
    images = place / "images"
    outside = place / "outside"
    outside.mkdir()
    outer = make(place, "outside/other.cfs")
    (images / "link").symlink_to(outer)
    (images / "directory").symlink_to(outside)
    (images / "loop").symlink_to(images)
    os.link(outer, images / "same inode")  # which some file systems claim of different files
    assert sorted(path.resolve().name for path in found(images)) == ["image.cfs", "other.cfs", "same inode"]
    assert len(found(images, images, images / "directory")) == 3


def test_what_cannot_be_followed_or_read_stops(place: Path) -> None:
    images = place / "images"
    (images / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match="dangling: cannot open: No such file"):
        found(images)
    (images / "dangling").unlink()
    with pytest.raises(InputError, match="nothing: cannot open: No such file"):
        found(place / "nothing")
    with pytest.raises(InputError, match=r"image\.cfs: is not a directory") as caught:
        found(images / "image.cfs")
    assert caught.value.hint is not None


def test_what_vanishes_meanwhile_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), b"gone"])
    assert [path.name for path in found(place / "images")] == ["image.cfs"]


@pytest.mark.root
def test_directories_and_files_one_may_not_read(place: Path) -> None:
    closed = place / "images/closed"
    closed.mkdir(mode=0o700)
    with as_nobody(place), pytest.raises(InputError, match="closed: cannot open: Permission denied"):
        found(place / "images")
    closed.rmdir()
    (place / "images/image.cfs").chmod(0o600)
    with as_nobody(place), pytest.raises(InputError, match=r"image\.cfs: cannot open: Permission denied"):
        found(place / "images")


# Collecting with images


def objects(place: Path) -> set[bytes]:
    with DirectoryStore(bytes(place / "store")) as store:
        return set(store.objects())


@pytest.fixture
def littered(place: Path) -> Path:
    """The same with an object that no image needs, and an image with the longer digests."""
    make(place, "images/long.cfs", Algorithm.SHA512)
    with DirectoryStore(bytes(place / "store")) as store, StoreWriter(store) as writer:
        writer.add_bytes(OTHER)
    return place


def test_objects_of_all_images_are_kept(littered: Path) -> None:
    before = objects(littered)
    assert len(before) == 5
    report = gc(bytes(littered / "store"), keep_dirs=[bytes(littered / "images")], now=0.0, grace=0)
    assert report.removed == (digest_bytes(OTHER),)
    assert report.images == (str(littered / "images/image.cfs"), str(littered / "images/long.cfs"))
    assert objects(littered) == before - {digest_bytes(OTHER)}
    report = gc(bytes(littered / "store"), keep=[bytes(littered / "images/long.cfs")], now=0.0, grace=0)
    assert (report.kept, len(report.removed)) == (2, 2)


def test_no_object_goes_while_in_doubt(littered: Path) -> None:
    store, images = bytes(littered / "store"), littered / "images"
    before = objects(littered)
    with pytest.raises(UsageError, match="no image to keep"):
        gc(store, now=0.0, grace=0)
    (littered / "unmounted").mkdir()
    with pytest.raises(InputError, match="unmounted: holds no composefs image"):
        gc(store, keep_dirs=[bytes(images), bytes(littered / "unmounted")], now=0.0, grace=0)
    with pytest.raises(InputError, match="missing"):
        gc(store, keep=[bytes(littered / "missing")], now=0.0, grace=0)
    with pytest.raises(InputError, match="images: is not a regular file"):
        gc(store, keep=[bytes(images)], now=0.0, grace=0)
    whole = (images / "image.cfs").read_bytes()
    for size in (4, 1000, len(whole) - 4096):
        (images / "cut").write_bytes(whole[:size])
        with pytest.raises(ImageError, match="cut: "):
            gc(store, keep_dirs=[bytes(images)], now=0.0, grace=0)
    assert objects(littered) == before


def test_everything_goes_when_that_is_said(littered: Path) -> None:
    (littered / "unmounted").mkdir()
    report = gc(
        bytes(littered / "store"), keep_dirs=[bytes(littered / "unmounted")], keep_nothing=True, now=0.0, grace=0
    )
    assert len(report.removed) == 5
    assert objects(littered) == set()
