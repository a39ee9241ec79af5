"""``plan``: what an update would cost is what it then costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cfstools import api
from cfstools.errors import ImageError, NotFound
from tests.api.places import FILES, Made, make
from tests.mkcfs import mkcfs


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    """Two versions of an image in the same store: three files changed, one of them has two names, one is gone."""
    place = tmp_path_factory.mktemp("versions")
    first = make(place / "first")
    shutil.copytree(first.place / "objects", place / "second/objects")
    changed = {
        **FILES,
        "dir0/file3": b"3" * 5000,
        "dir1/file1": b"1" * 3000,
        "dir1/again": b"1" * 3000,
        "new/big": b"n" * 9000,
    }
    del changed["dir2/file2"]
    return first, make(place / "second", changed)


def test_the_cost_of_an_update(versions: tuple[Made, Made], tmp_path: Path) -> None:
    old, new = versions
    report = api.plan(old.image, new.image)
    assert (report.old, report.new) == (old.image.decode(), new.image.decode())
    assert (report.objects, report.size) == (len(new.objects), len(Path(report.new).read_bytes()))
    cost = report.cost
    assert (cost.objects, cost.bytes, cost.bytes_fetched, cost.requests, cost.unreachable) == (3, 17000, 17000, 3, 0)
    assert [(one.path, one.bytes) for one in cost.files] == [
        ("/new/big", 9000),
        ("/dir0/file3", 5000),
        ("/dir1/again", 3000),
    ]
    assert [(one.path, one.objects, one.bytes) for one in cost.directories] == [
        ("/new", 1, 9000),
        ("/dir0", 1, 5000),
        ("/dir1", 1, 3000),
    ]
    # As much is then fetched by whoever has the old one.
    stores = [bytes(tmp_path / "store")]
    api.pull(old.image, bytes(tmp_path / "app.cfs"), stores=stores)
    planned = api.pull(new.image, None, stores=stores)
    done = api.pull(new.image, bytes(tmp_path / "app.cfs"), stores=stores)
    assert planned.cost == cost
    assert (done.objects_fetched, done.bytes_fetched, done.requests) == (3, 17000, 3)
    assert done.cost is None


def test_what_stores_have_costs_nothing(versions: tuple[Made, Made], tmp_path: Path) -> None:
    old, new = versions
    assert api.plan(old.image, new.image, stores=[new.store]).cost.objects == 0
    big = next(name for name in new.objects if (new.place / "objects" / name).read_bytes() == b"n" * 9000)
    (tmp_path / big).parent.mkdir()
    shutil.copy(new.place / "objects" / big, tmp_path / big)
    assert api.plan(old.image, new.image, stores=[bytes(tmp_path)]).cost.bytes == 8000
    (tmp_path / big).write_bytes(b"short")
    assert api.plan(old.image, new.image, stores=[bytes(tmp_path)]).cost.bytes == 17000


def test_the_same_image_and_another_way_round(versions: tuple[Made, Made]) -> None:
    old, new = versions
    assert api.plan(old.image, old.image).cost.objects == 0
    back = api.plan(new.image, old.image).cost
    assert {one.path for one in back.files} == {"/dir0/file3", "/dir1/file1", "/dir2/file2"}


def test_how_much_is_listed(versions: tuple[Made, Made]) -> None:
    old, new = versions
    one = api.plan(old.image, new.image, options=api.PlanOptions(top=1)).cost
    assert (len(one.files), len(one.directories), one.objects) == (1, 1, 3)
    empty = make(Path(old.place) / "empty", {"small": b"x"})
    every = api.plan(empty.image, new.image, options=api.PlanOptions(top=None)).cost
    assert len(every.files) == every.objects == len(new.objects)
    assert sum(directory.objects for directory in every.directories) == every.objects
    assert sum(directory.bytes for directory in every.directories) == every.bytes


def test_objects_that_are_nowhere(versions: tuple[Made, Made], tmp_path: Path) -> None:
    old, new = versions
    shutil.copy(new.image.decode(), tmp_path / "new.cfs")
    cost = api.plan(old.image, bytes(tmp_path / "new.cfs")).cost
    assert (cost.objects, cost.unreachable, cost.requests, cost.bytes_fetched) == (3, 3, 0, 0)
    mirrored = api.plan(old.image, bytes(tmp_path / "new.cfs"), options=api.PlanOptions(mirrors=[new.store])).cost
    assert (mirrored.unreachable, mirrored.requests) == (0, 3)


def test_what_is_no_image(versions: tuple[Made, Made], tmp_path: Path) -> None:
    old, _ = versions
    (tmp_path / "text").write_bytes(b"text" * 1024)
    with pytest.raises(ImageError) as caught:
        api.plan(old.image, bytes(tmp_path / "text"))
    assert caught.value.subject == str(tmp_path / "text")
    with pytest.raises(NotFound):
        api.plan(bytes(tmp_path / "none"), old.image)


def test_containers_and_files_on_either_side(versions: tuple[Made, Made], tmp_path: Path) -> None:
    old, new = versions
    layout = tmp_path / "layout"
    mkcfs("push", old.image, "--store", old.store, f"oci:{layout}:old")
    mkcfs("push", new.image, "--store", new.store, f"oci:{layout}:new", "--base", f"oci:{layout}:old")
    sides = {"old": (old.image.decode(), f"oci:{layout}:old"), "new": (new.image.decode(), f"oci:{layout}:new")}
    for before in sides["old"]:
        for after in sides["new"]:
            cost = api.plan(before.encode(), after.encode()).cost
            assert (cost.objects, cost.bytes, cost.unreachable) == (3, 17000, 0)
            # A layer brings all three in one range, compressed.
            assert (cost.requests == 1) is after.startswith("oci:")
            assert (cost.bytes_fetched < 17000) is after.startswith("oci:")


def test_the_command(versions: tuple[Made, Made]) -> None:
    old, new = versions
    said = mkcfs("plan", old.image, new.image, "--top", "2").stdout.decode().splitlines()
    assert said == [
        f"{new.image.decode()}: 3 of {len(new.objects)} objects to fetch (16.6 KiB): 16.6 KiB in 3 requests",
        "directories:",
        "      8.8 KiB       1 object  /new",
        "      4.9 KiB       1 object  /dir0",
        "files:",
        "      8.8 KiB  /new/big",
        "      4.9 KiB  /dir0/file3",
    ]
    report = json.loads(mkcfs("plan", old.image, new.image, "--json").stdout)
    assert report == api.plan(old.image, new.image).to_dict()
    done = mkcfs("plan", old.image, new.image, "--connections", "3", check=False)
    assert (done.code, done.stderr.splitlines()[0]) == (2, b"mkcfs: --connections is only for places over a network")
    done = mkcfs("plan", old.image, new.image, "--plain-http", check=False)
    assert (done.code, b"only for an image in a registry" in done.stderr) == (2, True)
