"""``push`` to files elsewhere and ``store push``: what is there afterwards, in which order it comes, and refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cfstools import api
from cfstools.errors import CfsError, ContentsWrong, InputError, SignatureInvalid, StoreError, UsageError
from tests.api.places import FILES, Made, contents, make, stored


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """A copy that a test may change."""
    place = tmp_path / "made"
    shutil.copytree(original.place, place)
    return original._replace(place=place)


def push(made: Made, place: Path, **words: object) -> api.FilesPushReport:
    return api.push_files(made.image, bytes(place) + b"/", stores=[made.store], **words)  # type: ignore[arg-type]


def test_what_a_place_has_afterwards(made: Made, tmp_path: Path) -> None:
    there = tmp_path / "there"
    report = push(made, there)
    assert sorted(os.listdir(there)) == ["app.cfs", "app.cfs.sig", "objects"]
    assert contents(there / "objects") == contents(made.place / "objects")
    for name in ("app.cfs", "app.cfs.sig"):
        assert (there / name).read_bytes() == (made.place / name).read_bytes()
    assert (report.objects, report.objects_sent) == (len(made.objects), len(made.objects))
    assert report.bytes == report.bytes_sent == sum(map(len, FILES.values()))
    assert report.signed
    again = push(made, there)
    assert (again.objects, again.objects_sent, again.bytes_sent) == (len(made.objects), 0, 0)
    # It is a store like any other.
    assert api.fsck(bytes(there / "objects"), now=0).ok
    assert api.verify(bytes(there / "app.cfs"), keys=[made.key], stores=[bytes(there / "objects")]).ok


def test_what_the_store_has_for_other_images_stays_there(made: Made, tmp_path: Path) -> None:
    source = made.place / "source"
    (source / "more").write_bytes(b"more" * 100)
    api.build(bytes(source), bytes(made.place / "next.cfs"), stores=[made.store])
    report = push(made, tmp_path / "there")
    assert report.objects == len(made.objects)
    assert stored(tmp_path / "there/objects") == made.objects
    following = api.push_files(bytes(made.place / "next.cfs"), bytes(tmp_path / "there/"), stores=[made.store])
    assert (following.objects_sent, following.signed) == (1, False)


def test_objects_come_before_the_signature_and_that_before_the_image(made: Made, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "app.cfs.sig").mkdir(parents=True)
    with pytest.raises(InputError, match="not a regular file"):
        push(made, there)
    assert stored(there / "objects") == made.objects
    assert not (there / "app.cfs").exists()
    (there / "app.cfs.sig").rmdir()
    (there / "app.cfs").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        push(made, there)
    assert (there / "app.cfs.sig").is_file()


def test_nothing_is_sent_for_an_image_that_is_not_whole(made: Made, tmp_path: Path) -> None:
    first = min(made.objects)
    (made.place / "objects" / first).unlink()
    with pytest.raises(InputError, match=f"1 object of {len(made.objects)} are missing .* first {first}"):
        push(made, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(InputError, match=f"first {first}"):
        api.push_objects([made.store], bytes(tmp_path / "there"), [made.image])
    assert not (tmp_path / "there").exists()


def test_a_damaged_object_does_not_travel(made: Made, tmp_path: Path) -> None:
    first = min(made.objects)
    path = made.place / "objects" / first
    path.write_bytes(b"!" + path.read_bytes()[1:])
    there = tmp_path / "there"
    for attempt in (lambda: push(made, there), lambda: api.push_objects([made.store], bytes(there / "objects"))):
        with pytest.raises(ContentsWrong) as caught:
            attempt()
        assert caught.value.subject == str(path)
        assert first not in stored(there / "objects")
        assert not (there / "app.cfs").exists()


def test_a_signature_that_does_not_fit(made: Made, tmp_path: Path) -> None:
    other = make(tmp_path / "other", {"one": b"1" * 100})
    with pytest.raises(SignatureInvalid, match="does not fit"):
        push(made, tmp_path / "there", signature=bytes(other.place / "app.cfs.sig"))
    assert not (tmp_path / "there").exists()


def test_an_image_without_a_signature_does_not_get_that_of_another(made: Made, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push(made, there)
    before = contents(there / "objects"), (there / "app.cfs").read_bytes()
    (made.place / "app.cfs.sig").unlink()
    with pytest.raises(UsageError, match="this image has none") as caught:
        push(made, there)
    assert "app.cfs.sig" in str(caught.value)
    assert (contents(there / "objects"), (there / "app.cfs").read_bytes()) == before
    (there / "app.cfs.sig").unlink()
    assert not push(made, there).signed


def test_places_that_cannot_be_written_to(made: Made, tmp_path: Path) -> None:
    cases: dict[bytes, type[CfsError]] = {
        b"https://h.example/a/": InputError,
        bytes(tmp_path / "none/there") + b"/": InputError,
        b"file://host/there": UsageError,
    }
    for place, kind in cases.items():
        with pytest.raises(kind):
            api.push_files(made.image, place, stores=[made.store])
    with pytest.raises(InputError, match="web servers take no uploads"):
        api.push_objects([made.store], b"http://127.0.0.1:1/objects")


def test_all_of_a_store_or_what_images_need(made: Made, tmp_path: Path) -> None:
    source = made.place / "source"
    (source / "more").write_bytes(b"more" * 100)
    api.build(bytes(source), bytes(made.place / "next.cfs"), stores=[made.store])
    some = api.push_objects([made.store], bytes(tmp_path / "some"), [made.image])
    assert (some.objects, some.objects_sent) == (len(made.objects),) * 2
    assert stored(tmp_path / "some") == made.objects
    every = api.push_objects([made.store], bytes(tmp_path / "some"))
    assert (every.objects, every.objects_sent, every.bytes_sent) == (len(made.objects) + 1, 1, 400)
    both = api.push_objects([bytes(tmp_path / "some"), made.store], bytes(tmp_path / "both"))
    assert both.objects_sent == len(made.objects) + 1
    same = api.push_objects([made.store], made.store)
    assert same.objects_sent == 0


def test_a_store_that_is_being_collected_is_waited_for(made: Made, tmp_path: Path) -> None:
    from cfstools.store.directory import DirectoryStore

    options = api.SendOptions(waiting=api.Waiting(timeout=0))
    with DirectoryStore(made.store) as store, store.locked(exclusive=True), pytest.raises(StoreError):
        api.push_objects([made.store], bytes(tmp_path / "there"), options=options)
