"""Contents: one test body over a directory, an archive, memory, and a dictionary that knows no layout."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cfstools.errors import CheckFailed, LimitExceeded, OciError
from cfstools.oci.archive import index_archive
from cfstools.oci.content import Content, LayoutContent, Resolved, check_there, read_checked
from cfstools.oci.descriptor import Descriptor, Digest
from cfstools.oci.files import DirectoryFiles, MemoryFiles, missing
from cfstools.oci.images import OciImages, layout_images
from cfstools.oci.manifest import parse_index
from cfstools.oci.select import Selector
from cfstools.sources.oci import read_oci
from cfstools.streams.buffered import Read, read_up_to
from cfstools.streams.spool import Replayable
from cfstools.transport.base import Open, Span
from tests.oci import making
from tests.oci.making import Layout, hello, link, tar

FILES = making.image([hello(), tar(link("a/b", "../c"))], "+gzip")


class Blobs:
    """A content made up here: a dictionary, as a registry would be, which has tags and no index of all images."""

    places = 1
    at_once = 3

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.blobs = {Digest(*path.split("/")[1:3]): data for path, data in files.items() if path.startswith("blobs/")}
        index = parse_index(files["index.json"])
        self.tags = {"latest": index.manifests[0]}
        self.closed = False

    def resolve(self, name: str | None) -> Resolved:
        found = self.tags.get(name or "latest")
        if found is None:
            raise OciError(f"no image {name}")
        return Resolved(f"tag {name}", found)

    def size(self, descriptor: Descriptor) -> int | None:
        blob = self.blobs.get(descriptor.digest)
        return None if blob is None else len(blob)

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        with self.open(descriptor) as read:
            data = read_up_to(read, limit + 1)
        if len(data) > limit:
            raise OciError(f"longer than {limit} bytes")
        return data

    @contextmanager
    def open(self, descriptor: Descriptor) -> Iterator[Read]:
        if descriptor.digest not in self.blobs:
            raise missing(str(descriptor.digest))
        stream = io.BytesIO(self.blobs[descriptor.digest])
        yield lambda count: stream.read(min(count, 7))

    def spans(self, descriptor: Descriptor) -> Sequence[Open]:
        data = self.blobs[descriptor.digest]
        return [lambda span: nullcontext(io.BytesIO(data[span.start : span.end]).read)]

    def referrers(self, subject: Descriptor) -> Iterator[bytes]:
        del subject
        yield from ()

    def close(self) -> None:
        self.closed = True


def in_directory(files: Mapping[str, bytes], tmp_path: Path) -> Content:
    for name, data in files.items():
        path = tmp_path / "layout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return LayoutContent(DirectoryFiles(str(tmp_path / "layout")))


def in_archive(files: Mapping[str, bytes], tmp_path: Path, compression: str = "") -> Content:
    path = tmp_path / "archive"
    path.write_bytes(making.COMPRESSORS[compression](making.archive(files)))

    def make_file() -> int:
        return os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)

    found = index_archive(Replayable(os.open(path, os.O_RDONLY), make_file), make_file)
    assert found is not None
    return LayoutContent(found)


MAKERS: dict[str, Callable[[Mapping[str, bytes], Path], Content]] = {
    "directory": in_directory,
    "archive": in_archive,
    "compressed archive": lambda files, tmp_path: in_archive(files, tmp_path, "+gzip"),
    "memory": lambda files, _: LayoutContent(MemoryFiles(files)),
    "dictionary": lambda files, _: Blobs(files),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Mapping[str, bytes]], Content]:
    maker = MAKERS[request.param]
    return lambda files: maker(files, tmp_path)


def some_blob(files: Mapping[str, bytes]) -> tuple[Descriptor, bytes]:
    path, data = max(
        ((path, data) for path, data in files.items() if path.startswith("blobs/")), key=lambda x: len(x[1])
    )
    return Descriptor(media_type="", digest=Digest(*path.split("/")[1:3]), size=len(data)), data


def test_blobs(make: Callable[[Mapping[str, bytes]], Content]) -> None:
    content = make(FILES)
    blob, data = some_blob(FILES)
    assert content.size(blob) == blob.size
    assert content.read(blob, blob.size) == data
    with pytest.raises(OciError, match=f"longer than {blob.size - 1} bytes"):
        content.read(blob, blob.size - 1)
    with content.open(blob) as read:
        assert read_up_to(read, 1 << 20) == data
        assert read(1) == b""
    for opened in content.spans(blob):
        for start, end in ((0, len(data)), (5, 15), (len(data) - 3, len(data)), (7, 7)):
            with opened(Span(start, end)) as read:
                assert read_up_to(read, 1 << 20) == data[start:end]
    content.close()


def test_what_is_not_there(make: Callable[[Mapping[str, bytes]], Content]) -> None:
    content = make(FILES)
    blob = Descriptor(media_type="", digest=Digest("sha256", "0" * 64), size=1)
    assert content.size(blob) is None
    with pytest.raises(OciError, match="missing from the image"):
        content.read(blob, 1)
    with pytest.raises(OciError, match="missing from the image"), content.open(blob):
        pass
    with pytest.raises(OciError, match="missing from the image"):
        check_there(content, blob)
    content.close()


def test_nothing_is_read_that_does_not_hold(make: Callable[[Mapping[str, bytes]], Content]) -> None:
    blob, data = some_blob(FILES)
    path = f"blobs/{blob.digest.algorithm}/{blob.digest.encoded}"
    content = make({**FILES, path: data[:-1] + b"?"})
    with pytest.raises(CheckFailed):
        read_checked(content, blob)
    with pytest.raises(LimitExceeded):
        read_checked(content, blob, blob.size - 1)
    longer = Descriptor(media_type="", digest=blob.digest, size=blob.size + 1)
    with pytest.raises(OciError, match=f"{blob.size} bytes long, its descriptor says {blob.size + 1}"):
        read_checked(content, longer)
    embedded = Descriptor(media_type="", digest=blob.digest, size=4, data=b"here")
    assert read_checked(content, embedded) == b"here"
    content.close()


def test_every_content_serves_the_same_image(make: Callable[[Mapping[str, bytes]], Content]) -> None:
    expected = read_oci(layout_images(MemoryFiles(FILES)))
    images = OciImages(make(FILES))
    found = read_oci(images)
    assert repr(found.root) == repr(expected.root)
    assert found.report.manifest == expected.report.manifest
    assert found.report.layers == expected.report.layers
    images.close()


def test_a_damaged_layer_is_told_whatever_delivers_it(make: Callable[[Mapping[str, bytes]], Content]) -> None:
    layout = Layout()
    layout.tag(layout.manifest([hello()]))
    files = dict(layout.files())
    blob, data = some_blob(files)
    files[f"blobs/sha256/{blob.digest.encoded}"] = data[:-1] + b"\1"
    images = OciImages(make(files))
    with pytest.raises(CheckFailed, match="layer"):
        read_oci(images)
    images.close()


def test_an_image_is_found_by_what_the_content_resolves() -> None:
    content = Blobs(FILES)
    images = OciImages(content, "registry", "latest")
    assert (images.kind, len(images.image().layers)) == ("registry", 2)
    manifest = images.image().manifest
    assert manifest is not None
    assert images.image(Selector(digest=manifest.digest)).manifest == manifest
    images.close()
    assert content.closed
    with pytest.raises(OciError, match="no image other"):
        OciImages(content, "registry", "other")
