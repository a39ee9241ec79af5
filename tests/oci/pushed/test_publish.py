"""Images pushed into memory and read back: what is sent, what the layers make, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import ContentsWrong, LimitExceeded, OciError
from cfstools.formats.base import PlanOptions
from cfstools.formats.registry import COMPOSEFS, open_image
from cfstools.oci.content import LayoutContent
from cfstools.oci.descriptor import Platform
from cfstools.oci.files import MemoryFiles
from cfstools.oci.images import ImageSource, OciImages
from cfstools.oci.pushed.documents import canonical_json
from cfstools.oci.pushed.layer import LayerForm
from cfstools.oci.pushed.layout import image_digest_key, merged_digest_key
from cfstools.oci.pushed.publish import Base, Means, Outgoing, Published, PublishOptions, publish
from cfstools.oci.pushed.source import NotPushed, PushedImage, object_places, object_source, read_pushed
from cfstools.oci.select import Selector
from cfstools.oci.sink import REF_NAME, LayoutSink
from cfstools.progress import SILENT
from cfstools.store.directory import DirectoryStore
from cfstools.store.write.arriving import ArrivingObjects
from cfstools.store.write.writer import StoreWriter
from cfstools.streams.decompress import Compression
from cfstools.transport.base import BytesBody
from cfstools.transport.fetch import FetchReport, fetch_all
from cfstools.transport.memory import MemoryTarget
from cfstools.tree import Directory, HardLink, RegularFile, Symlink
from cfstools.tree.objects import object_sizes
from cfstools.verity import Algorithm, Params, digest_bytes
from tests.oci.pushed.trees import CONTENTS, contents_of, external, plain_of, read
from tests.strategies import describe

AMD64 = Platform(os="linux", architecture="amd64")


def _no_file() -> int:
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)


def _tree(version: int, files: int = 40, size: int = 3000) -> Directory:
    """A tree of which a few files differ from version to version."""
    root = Directory(mode=0o40755)
    usr = Directory(mode=0o40755, mtime_sec=7)
    root.entries[b"usr"] = usr
    root.entries[b"run"] = Directory(mode=0o40755)
    for number in range(files):
        seed = b"%d-%d" % (number, version if number % 10 == 0 else 0)
        data = hashlib.shake_128(seed).digest(size)
        usr.entries[b"f%d" % number] = RegularFile(mode=0o100644, size=size, content=external(data))
    first = usr.entries[b"f1"]
    assert isinstance(first, RegularFile)
    usr.entries[b"link"] = HardLink(first)
    first.nlink = 2
    root.entries[b"s"] = Symlink(mode=0o120777, target=b"usr/f1")
    if version > 1:
        usr.entries.pop(b"f5", None)
    return root


def _outgoing(root: Directory, version: int = 1, algorithm: Algorithm = Algorithm.SHA256) -> Outgoing:
    plan = COMPOSEFS.plan(root, PlanOptions(algorithm=algorithm, min_version=version, max_version=version))
    data = b"".join(map(bytes, plan.chunks()))
    return Outgoing(data=data, image=open_image(data), algorithm=algorithm)


class _Place:
    """A layout in memory."""

    def __init__(self) -> None:
        self.target = MemoryTarget()

    def push(self, outgoing: Outgoing, base: Base | None = None, name: str = "app", **form: Any) -> Published:
        options = PublishOptions(form=LayerForm(**form), platform=AMD64)
        return publish(outgoing, LayoutSink(self.target, name), options, Means(contents_of, _no_file), base=base)

    def image(self, name: str = "app") -> tuple[LayoutContent, ImageSource]:
        files = {name: b"".join(self._pieces(name)) for name, _ in self.target.names()}
        content = LayoutContent(MemoryFiles(files))
        return content, OciImages(content).image(Selector(name=name))

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self.target.read(name) as get:
            yield from iter(lambda: get(1 << 20), b"")

    def pushed(self) -> PushedImage:
        return read_pushed(*self.image())

    def base(self) -> Base:
        pushed = self.pushed()
        root = open_image(pushed.data).tree()
        return Base(pushed=pushed, places=object_places(pushed, object_sizes(root)), root=root)

    def check(self, outgoing: Outgoing) -> None:
        """The image, every object, and what a reader of layers makes of it."""
        content, image = self.image()
        pushed = read_pushed(content, image)
        assert pushed.data == outgoing.data
        root = outgoing.image.tree()
        places = object_places(pushed, object_sizes(root))
        blobs = {}
        for layer in pushed.layers:
            with content.open(layer) as get:
                blobs[layer.digest] = b"".join(iter(lambda: get(1 << 20), b""))
        for digest, place in places.items():
            stored = blobs[place.blob.digest][place.offset : place.offset + place.length]
            assert plain_of(stored) == CONTENTS[digest]
        assert describe(read(*(blobs[layer.digest] for layer in pushed.layers))) == describe(root)


@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.GZIP])
@pytest.mark.parametrize("version", [0, 1])
def test_a_pushed_image_comes_back(compression: Compression, version: int) -> None:
    place, outgoing = _Place(), _outgoing(_tree(1), version)
    done = place.push(outgoing._replace(envelope=b"{}"), compression=compression)
    place.check(outgoing)
    annotations = json.loads(done.data)["annotations"]
    assert place.pushed().envelope == b"{}"
    assert not done.delta
    assert done.layers == 1
    digest = digest_bytes(outgoing.data).hex()
    assert annotations[image_digest_key(Algorithm.SHA256)] == digest
    assert (merged_digest_key(Algorithm.SHA256) in annotations) is False  # the root is not as /usr is
    assert place.push(outgoing._replace(envelope=b"{}"), compression=compression).sent == len(done.data)


def test_an_image_that_the_canonical_mapping_makes_says_so() -> None:
    root = _tree(1)
    usr = root.entries[b"usr"]
    assert isinstance(usr, Directory)
    root.mtime_sec = usr.mtime_sec
    root.entries[b"run"].mtime_sec = usr.mtime_sec  # type: ignore[union-attr]
    place = _Place()
    done = place.push(_outgoing(root))
    digest = json.loads(done.data)["annotations"][merged_digest_key(Algorithm.SHA256)]
    assert digest == digest_bytes(place.pushed().data).hex()


def test_a_delta_holds_what_changed() -> None:
    place = _Place()
    first = place.push(_outgoing(_tree(1)))
    done = place.push(_outgoing(_tree(2)), place.base())
    assert done.delta
    assert done.layers == 2
    assert done.fallback is None
    assert done.layer_bytes < first.layer_bytes / 2
    place.check(_outgoing(_tree(2)))
    third = place.push(_outgoing(_tree(3)), place.base())
    assert third.layers == 3
    place.check(_outgoing(_tree(3)))


def test_the_same_tree_needs_no_layer() -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    done = place.push(_outgoing(_tree(1), version=0), place.base())
    assert done.delta
    assert done.layers == 1
    assert done.layer_bytes == 0
    place.check(_outgoing(_tree(1), version=0))


@pytest.mark.parametrize(
    ("form", "change", "why"),
    [
        ({"compression": Compression.GZIP}, 2, "compressed otherwise"),
        ({}, 0, "more than half"),
    ],
)
def test_where_a_delta_does_not_serve(form: dict[str, Any], change: int, why: str) -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    new = _outgoing(_tree(change) if change else _tree(1, files=3))
    done = place.push(new, place.base(), **form)
    assert not done.delta
    assert done.layers == 1
    assert why in (done.fallback or "")
    place.check(new)


def test_a_delta_that_would_make_another_tree_is_not_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    base = place.base()

    def broken(old: Directory, new: Directory) -> Directory:
        from cfstools.oci.pushed.delta import delta_tree

        delta = delta_tree(old, new)
        assert delta is not None
        delta.entries[b"usr"].entries.popitem()  # type: ignore[union-attr]
        return delta

    monkeypatch.setattr("cfstools.oci.pushed.publish.delta_tree", broken)
    done = place.push(_outgoing(_tree(2)), base)
    assert not done.delta
    assert "comes out different" in (done.fallback or "")
    place.check(_outgoing(_tree(2)))


def test_digests_of_the_other_algorithm() -> None:
    def tree() -> Directory:
        data = b"x" * 100
        digest = digest_bytes(data, Params(algorithm=Algorithm.SHA512))
        CONTENTS[digest] = data
        content = external(data)
        content.digest, content.payload = digest, b"%b/%b" % (digest.hex()[:2].encode(), digest.hex()[2:].encode())
        return Directory(mode=0o40755, entries={b"f": RegularFile(mode=0o100644, size=100, content=content)})

    place = _Place()
    done = place.push(_outgoing(tree(), algorithm=Algorithm.SHA512))
    assert place.pushed().map.digest_size == 64
    assert image_digest_key(Algorithm.SHA512) in json.loads(done.data)["annotations"]


def test_other_images_are_told_apart() -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    content, image = place.image()
    for layers in (image.layers[:1], ()):
        with pytest.raises(NotPushed, match="was not pushed by mkcfs"):
            read_pushed(content, image._replace(layers=layers))
    with pytest.raises(OciError, match="not in the last layer"):
        read_pushed(content, image._replace(layers=image.layers[::-1]))
    with pytest.raises(OciError, match="more than one layer"):
        read_pushed(content, image._replace(layers=(*image.layers, image.layers[-1])))


def test_maps_of_another_image() -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    pushed = place.pushed()
    sizes = object_sizes(open_image(pushed.data).tree())
    with pytest.raises(OciError, match="objects instead of the"):
        object_places(pushed, dict(list(sizes.items())[1:]))
    rows = [row._replace(length=1 << 20) if not number else row for number, row in enumerate(pushed.map.objects)]
    big = tuple(layer._replace(size=1 << 30) for layer in pushed.map.layers)
    with pytest.raises(LimitExceeded, match="for the 3000 of object"):
        object_places(pushed._replace(map=pushed.map._replace(objects=rows, layers=big)), sizes)


def test_the_config_is_taken_over() -> None:
    place = _Place()
    given = canonical_json({"config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": []}})
    options = PublishOptions(platform=AMD64, config=given)
    publish(_outgoing(_tree(1)), LayoutSink(place.target, "app"), options, Means(contents_of, _no_file))
    _content, image = place.image()
    assert image.config is not None
    assert len(image.config.diff_ids) == 2
    assert b'"Cmd":["/bin/sh"]' in b"".join(place._pieces(f"blobs/sha256/{image.config_digest.encoded}"))  # type: ignore[union-attr]
    for bad in (b"[]", b"{", b'{"config":3}'):
        with pytest.raises(OciError):
            publish(
                _outgoing(_tree(1)),
                LayoutSink(MemoryTarget(), None),
                options._replace(config=bad),
                Means(contents_of, _no_file),
            )


def test_a_name_is_replaced_and_others_stay() -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)), name="other")
    place.push(_outgoing(_tree(2)))
    place.push(_outgoing(_tree(3)))
    assert place.pushed().data == _outgoing(_tree(3)).data
    assert place.image("other")[1].names != place.image("app")[1].names
    index = json.loads(b"".join(place._pieces("index.json")))
    assert [entry["annotations"][REF_NAME] for entry in index["manifests"]] == ["other", "app"]


def _fetched(place: _Place, store: DirectoryStore) -> FetchReport:
    """Fetch what the store lacks of the image."""
    content, image = place.image()
    pushed = read_pushed(content, image)
    sizes = object_sizes(open_image(pushed.data).tree())
    wanted = {digest: size for digest, size in sizes.items() if store.size(digest) != size}
    source = object_source(content, pushed, object_places(pushed, sizes), "memory")
    with StoreWriter(store) as writer:
        arriving = ArrivingObjects(writer)
        report = fetch_all([source], wanted, arriving, connections=3, progress=SILENT)
        arriving.finish()
    return report


@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.GZIP])
def test_objects_are_fetched_by_ranges(tmp_path: Path, compression: Compression) -> None:
    place = _Place()
    place.push(_outgoing(_tree(1, size=2 << 20, files=5)), compression=compression)
    with DirectoryStore(bytes(tmp_path), create=True) as store:
        report = _fetched(place, store)
        assert not report.failures
        assert report.objects == 5
        for digest, size in object_sizes(_tree(1, size=2 << 20, files=5)).items():
            with closing(store.open(digest)) as found:
                assert found.read(0, size + 1) == CONTENTS[digest]
        assert _fetched(place, store).requests == 0
        place.push(_outgoing(_tree(2, size=2 << 20, files=5)), place.base(), compression=compression)
        report = _fetched(place, store)
        assert (report.objects, report.requests) == (1, 1)


def test_wrong_bytes_do_not_get_into_a_store(tmp_path: Path) -> None:
    place = _Place()
    place.push(_outgoing(_tree(1)))
    layer = place.pushed().layers[0]
    name = f"blobs/sha256/{layer.digest.encoded}"
    blob = bytearray(b"".join(place._pieces(name)))
    row = place.pushed().map.objects[7]
    blob[row.offset + row.length // 2] ^= 1
    place.target.put(name, BytesBody(bytes(blob)), replace=True)
    with DirectoryStore(bytes(tmp_path), create=True) as store:
        report = _fetched(place, store)
        assert len(report.failures) == 1
        assert len(list(store.objects())) == 39
        assert isinstance(report.error(bytes.hex), ContentsWrong)
