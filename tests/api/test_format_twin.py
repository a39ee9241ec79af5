"""Every verb serves an image format that it has never heard of."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.diff import diff
from cfstools.api.expect import expect
from cfstools.api.inspect import inspect, layout, tree
from cfstools.api.listing import ls, objects
from cfstools.api.store_gc import gc
from cfstools.api.verify import Outcome, verify
from cfstools.errors import ImageError
from cfstools.formats import registry
from cfstools.report import to_json
from cfstools.sources.image_search import Doubt
from cfstools.verity import ObjectId
from tests.formats.lines import LINES

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/large").write_bytes(CONTENT)
    (tmp_path / "source/small").write_bytes(b"small")
    return tmp_path


@pytest.fixture
def image(place: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The path of an image in the made-up format, which is known from here on."""
    monkeypatch.setattr(registry, "FORMATS", [*registry.FORMATS, LINES])
    path = bytes(place / "images/image")
    (place / "images").mkdir()
    report = build(bytes(place / "source"), path, stores=[bytes(place / "store")], format=LINES)
    assert (report.format, report.inodes, report.objects_new) == ("lines0-sha256", 4, 1)
    return path


def test_it_is_built_and_inspected(place: Path, image: bytes) -> None:
    assert Path(image.decode()).read_bytes().startswith(b"lines ")
    report = inspect(image)
    assert report.format == "lines0-sha256"
    facts = report.contents
    assert (facts.composefs_version, facts.objects, facts.inline_files) == (None, 1, 1)
    json.dumps(to_json(report))
    assert [line.name for line in tree(image)] == ["/", "small", "sub", "large"]
    assert [(region.kind.value, region.end) for region in layout(image)] == [("image", report.contents.size)]
    assert b"".join(ls([image])).count(b"\n") == 3
    assert b"".join(ls([image], filters=[b"sub"])).count(b"\n") == 2


def test_it_is_verified(place: Path, image: bytes) -> None:
    report = verify(image, stores=[bytes(place / "store")])
    assert not report.problems
    assert (report.ok, report.format, report.objects_needed) == (True, "lines0-sha256", 1)
    assert (report.structure, report.objects) == (Outcome.OK, Outcome.OK)
    [payload] = objects([image])
    (place / "store" / payload.decode()).unlink()
    assert not verify(image, stores=[bytes(place / "store")]).ok


def test_it_is_compared_and_built_from(place: Path, image: bytes) -> None:
    other = bytes(place / "other.cfs")
    build(image, other, stores=[bytes(place / "store")])
    assert build(bytes(place / "source"), None).digest == inspect(other).digest
    report = diff(image, other)
    assert (report.a.format, report.b.format) == ("lines0-sha256", "v0-sha256-12")
    assert not report.changes
    assert [reason.rule.value for reason in report.reasons] == ["image format"]


def test_a_source_is_compared_and_expected_in_it(place: Path, image: bytes) -> None:
    source = bytes(place / "source")
    report = diff(source, image, format=LINES)
    assert (report.a.format, report.a.digest, report.reasons) == ("lines0-sha256", report.b.digest, ())
    wanted = ObjectId.parse(f"sha256:{report.b.digest}")
    assert expect(source, wanted, format=LINES).format == "lines0-sha256"
    assert not expect(source, wanted).found


def test_gc_keeps_its_objects(place: Path, image: bytes) -> None:
    store = bytes(place / "store")
    report = gc(store, keep_dirs=[bytes(place / "images")], now=time.time() + 1e6)
    assert (report.removed, report.kept) == ((), 1)
    assert report.images == (image.decode(),)


def test_gc_stops_for_a_format_that_is_not_known(place: Path, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format of the first composefs patches, and versions of ours that are to come."""
    store, known = bytes(place / "store"), bytes(place / "known.cfs")
    build(bytes(place / "source"), known, stores=[store])
    strange = place / "images/image"
    strange.write_bytes(b"\x01\0\0\0\x9a\x62\x78\xc0" + bytes(120))
    with pytest.raises(Doubt, match="looks like an image in the format of the first composefs patches"):
        gc(store, keep=[known], keep_dirs=[bytes(place / "images")], now=time.time() + 1e6)
    later = bytearray(Path(known.decode()).read_bytes())
    later[12] = 2
    strange.write_bytes(later)
    with pytest.raises(ImageError, match="unknown composefs version 2"):
        gc(store, keep_dirs=[bytes(place / "images")], now=time.time() + 1e6)
    assert verify(known, stores=[store]).ok
