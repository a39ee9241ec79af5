"""Every verb serves an image with contents inside blobs, or says why it cannot, and gc keeps the blobs."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.cat import cat
from cfstools.api.diff import diff
from cfstools.api.inspect import inspect
from cfstools.api.listing import dump, entries, ls, objects
from cfstools.api.store_gc import gc
from cfstools.api.verify import verify
from cfstools.errors import InputError, TreeError
from cfstools.formats import registry
from cfstools.formats.base import PlanOptions
from cfstools.report import to_json
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.tree import Blob, Directory, External, Located, Piece, RegularFile
from cfstools.verity import digest_bytes, object_path
from tests.formats.lines import PARTS

TAR = bytes(range(256)) * 40
DIGEST = digest_bytes(TAR)
NAME = object_path(DIGEST)
BLOB = Blob(1, len(TAR), DIGEST, NAME)


def file(content: bytes | External | Located, size: int) -> RegularFile:
    return RegularFile(mode=stat.S_IFREG | 0o644, size=size, content=content)


def image_of(path: Path, *pieces: Piece) -> bytes:
    located = Located(pieces)
    entries = {b"in": file(b"inline", 6), b"out": file(External(None, b"x"), 3), b"part": file(located, located.size)}
    root = Directory(mode=stat.S_IFDIR | 0o755, entries={**entries})
    path.write_bytes(b"".join(PARTS.plan(root, PlanOptions()).chunks()))
    return bytes(path)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The path of an image whose file /part is pieces of a tar in the store, which has another object as well."""
    monkeypatch.setattr(registry, "FORMATS", [*registry.FORMATS, PARTS])
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store, StoreWriter(store) as writer:
        writer.add_bytes(TAR)
        writer.add_bytes(TAR[1:])
        writer.commit()
    return image_of(tmp_path / "image", Piece(1000, BLOB, 512), Piece(4096, None))


def test_it_is_built_from_inspected_and_listed(tmp_path: Path, image: bytes) -> None:
    again = bytes(tmp_path / "again")
    build(image, again, stores=[bytes(tmp_path / "store")], format=PARTS)
    assert Path(again.decode()).read_bytes() == Path(image.decode()).read_bytes()
    facts = inspect(again).contents
    assert (facts.inline_files, facts.external_files) == (1, 1)
    assert (facts.located_files, facts.located_bytes) == (1, 5096)
    assert (facts.objects, facts.object_bytes) == (2, len(TAR) + 3)
    assert list(objects([image])) == sorted([NAME, b"x"])
    assert b"".join(ls([image])) == b"/in\n/out\t@ x\n/part\n"
    entry = json.loads(json.dumps(to_json(list(entries([image]))[-1])))
    assert (entry["path"], entry["size"], entry["content"], entry["payload"]) == ("/part", 5096, None, None)
    assert entry["pieces"] == [
        {"length": 1000, "blob": 1, "offset": 512, "payload": NAME.decode(), "digest": DIGEST.hex()},
        {"length": 4096, "blob": None, "offset": None, "payload": None, "digest": None},
    ]


def test_it_is_compared(tmp_path: Path, image: bytes) -> None:
    other = image_of(tmp_path / "other", Piece(1000, BLOB, 513), Piece(4096, None))
    assert not diff(image, image).changes
    [change] = diff(image, other).changes
    [difference] = change.differences
    assert (change.path, difference.aspect) == ("/part", "payload")
    assert difference.before == f"{NAME.decode()} 512+1000, hole 4096"
    longer = image_of(tmp_path / "longer", Piece(1001, BLOB, 512), Piece(4096, None))
    [change] = diff(image, longer).changes
    [difference] = change.differences
    assert (difference.aspect, difference.before, difference.after) == ("content", "located", "located")
    assert (difference.size_before, difference.size_after) == (5096, 5097)


def test_its_blobs_are_verified_and_kept(tmp_path: Path, image: bytes) -> None:
    store = tmp_path / "store"
    (store / "x").write_bytes(b"abc")
    report = verify(image, stores=[bytes(store)])
    assert report.objects_needed == 2
    assert NAME.decode() not in {problem.subject for problem in report.problems}
    kept = gc(bytes(store), keep=[image], now=time.time() + 1e6)
    assert (len(kept.removed), kept.kept) == (1, 1)
    blob = store / NAME.decode()
    blob.chmod(0o644)
    blob.write_bytes(TAR[:-1] + b"!")
    [problem] = [problem for problem in verify(image, stores=[bytes(store)]).problems if "/part" in problem.paths]
    assert "fs-verity digest is" in problem.what
    blob.unlink()
    problems = verify(image, stores=[bytes(store)]).problems
    assert [problem.kind.value for problem in problems if problem.paths == ("/part",)] == ["missing"]


def test_what_cannot_hold_or_read_it_says_so(tmp_path: Path, image: bytes) -> None:
    store = bytes(tmp_path / "store")
    with pytest.raises(TreeError, match=f"/part: contents lie in pieces of {NAME.decode()}; a composefs image can"):
        build(image, bytes(tmp_path / "out.cfs"), stores=[store])
    assert not (tmp_path / "out.cfs").exists()
    with pytest.raises(TreeError, match=f"/part: the contents lie in pieces of {NAME.decode()}, which a dump text"):
        list(dump([image]))
    with pytest.raises(InputError, match=f"/part: its contents lie in pieces of {NAME.decode()}"):
        list(cat(image, b"/part", stores=[store]))
