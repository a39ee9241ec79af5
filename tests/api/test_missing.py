"""When an object counts as there: the same for ``objects --missing``, ``build`` and a shallow ``verify``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.listing import dump, objects
from cfstools.api.verify import verify
from cfstools.sources.image_file import load_image
from cfstools.store import chain
from cfstools.store.chain import missing_objects
from cfstools.tree import Entry
from cfstools.tree.objects import payload_sizes
from cfstools.verity import Algorithm, object_path
from tests.formats.images import directory, external, write_image

DATA = b"contents " * 100


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An image of one file, and two stores that have its object."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(DATA)
    for store in ("one", "two"):
        build(bytes(tmp_path / "source"), bytes(tmp_path / "image"), stores=[bytes(tmp_path / store)])
    (tmp_path / "dump").write_bytes(b"".join(dump([bytes(tmp_path / "image")])))
    return tmp_path


def object_in(place: Path, store: str) -> Path:
    (found,) = (place / store).glob("??/*")
    return found


def missing(place: Path, *stores: str) -> int:
    """How many objects the three say are missing, which must be the same."""
    paths = [bytes(place / store) for store in stores]
    listed = objects([bytes(place / "image")], missing_from=paths)
    shallow = verify(bytes(place / "image"), stores=paths, deep=False)
    built = build(bytes(place / "dump"), bytes(place / "x"), stores=paths, options=BuildOptions(from_file=True))
    assert len(listed) == shallow.problem_count == built.objects_missing
    return len(listed)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    """To good contents, which no reader follows."""
    (path.parent.parent / "good").write_bytes(DATA)
    path.symlink_to(path.parent.parent / "good")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _empty(path: Path) -> None:
    path.touch()


def _cut(path: Path) -> None:
    path.write_bytes(DATA[:-1])


def _longer(path: Path) -> None:
    path.write_bytes(DATA + b"x")


def _no_directory(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def _linked_directory(path: Path) -> None:
    path.parent.rename(path.parent.parent / "elsewhere")
    (path.parent.parent / "elsewhere" / path.name).write_bytes(DATA)
    path.parent.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "replace", [_fifo, _directory, _link, _dangling, _empty, _cut, _longer, _no_directory, _linked_directory]
)
def test_only_a_regular_file_of_the_right_size_is_an_object(place: Path, replace: Callable[[Path], None]) -> None:
    assert missing(place, "one") == 0
    there = object_in(place, "one")
    there.unlink()
    assert missing(place, "one") == 1
    assert missing(place, "one", "two") == 0
    replace(there)
    assert missing(place, "one") == 1
    # The kernel takes what the first store has; so nothing else counts.
    assert missing(place, "one", "two") == 1
    assert missing(place, "two", "one") == 0


def test_images_that_contradict_each_other_about_a_size(place: Path) -> None:
    """The object has one size, so one of the two images is not served."""
    (place / "other").write_bytes((place / "dump").read_bytes().replace(b" 900 ", b" 901 "))
    build(bytes(place / "other"), bytes(place / "wrong"), options=BuildOptions(from_file=True))
    images = [bytes(place / "image"), bytes(place / "wrong")]
    for order in (images, images[::-1]):
        assert len(objects(order, missing_from=[bytes(place / "one")])) == 1


def test_paths_that_are_no_objects_places(place: Path) -> None:
    name = object_in(place, "one")
    payload = b"%b/%b" % (os.fsencode(name.parent.name), os.fsencode(name.name))
    for path in (
        b"/" + payload,
        b"//" + payload.replace(b"/", b"//"),
        b"a/b/c",
        b"plain",
        b"n" * 300,
        b"d/" * 2000 + b"e",
    ):
        text = (place / "dump").read_bytes().replace(b" " + payload + b" ", b" " + path + b" ")
        (place / "named").write_bytes(text)
        build(bytes(place / "named"), bytes(place / "other"), options=BuildOptions(from_file=True))
        wanted = objects([bytes(place / "other")])
        gone = objects([bytes(place / "other")], missing_from=[bytes(place / "one")])
        assert gone == ([] if payload in path.replace(b"//", b"/") else wanted)


def test_a_store_that_is_not_there_has_nothing(place: Path) -> None:
    assert len(objects([bytes(place / "image")], missing_from=[bytes(place / "nowhere")])) == 1


def plainly(images: list[bytes], stores: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What ``objects`` lists of *images*, and with *stores*, found without packing."""
    sizes: dict[bytes, int | None] = {}
    for image in images:
        payload_sizes(load_image(image), sizes)
    return sorted(sizes), missing_objects(stores, sizes)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("algorithm", [Algorithm.SHA256, Algorithm.SHA512], ids=str)
def test_several_images_and_stores(
    tmp_path: Path, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch, *, threads: bool
) -> None:
    """Objects where digests say, elsewhere, of two sizes, in no store, in the first, in the second, in both."""
    if threads:
        monkeypatch.setattr(chain, "_AT_ONCE", 7)
    entries: list[dict[bytes, Entry]] = [{}, {}, {}]
    stores = [tmp_path / "one", tmp_path / "two"]
    for number in range(60):
        digest = hashlib.new(algorithm.value, b"%d" % number).digest()
        lengths = [100 + number, 100 + number + (number % 5 == 0)]
        for image, length in zip((number % 2, 1), lengths, strict=True):
            payload = b"elsewhere/%d" % number if number % 7 == 0 and image else object_path(digest)
            entries[image][b"f%d" % number] = external(payload=payload, digest=digest, size=length)
        for place, there in zip(stores, (number % 3, number % 4), strict=True):
            path = place / os.fsdecode(object_path(digest))
            path.parent.mkdir(parents=True, exist_ok=True)
            if there == 1:
                path.write_bytes(bytes(100 + number))
    images = [bytes(tmp_path / f"image{number}") for number in range(3)]
    for image_path, contents in zip(images, entries, strict=True):
        Path(os.fsdecode(image_path)).write_bytes(write_image(directory(contents), algorithm=algorithm))
    for some in ([images[0]], [images[1]], images, images[::-1]):
        for places in ([stores[0]], stores, stores[::-1], [tmp_path / "none"], []):
            paths = list(map(bytes, places))
            assert (objects(some), objects(some, missing_from=paths)) == plainly(some, paths)
