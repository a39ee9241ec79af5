"""A tree as a data layer: read back it is the same tree, and each object is a range of the blob."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings

from cfstools.errors import OciError, TarError
from cfstools.oci.pushed.layout import CHUNKED_CHECKSUM, CHUNKED_POSITION, CHUNKED_TAR_SPLIT
from cfstools.streams.decompress import Compression
from cfstools.tree import Device, Directory, External, HardLink, RegularFile, Socket
from cfstools.tree.walk import iter_inodes
from tests.oci.pushed.trees import CONTENTS, external, layer_trees, plain_of, read, write
from tests.strategies import describe

FORMS = [Compression.ZSTD, Compression.GZIP]


def _tree(*files: tuple[bytes, bytes]) -> Directory:
    entries: dict[bytes, Any] = {}
    for name, data in files:
        content = external(data) if len(data) > 64 else data
        entries[name] = RegularFile(mode=0o100644, size=len(data), content=content)
    return Directory(mode=0o40755, entries=entries)


@settings(max_examples=60)
@given(root=layer_trees)
def test_a_layer_reads_back_as_its_tree(root: Directory) -> None:
    for compression in FORMS:
        blob, layer = write(root, compression=compression)
        assert describe(read(blob)) == describe(root)
        assert layer.size == len(blob)
        assert layer.sha256 == hashlib.sha256(blob).digest()
        plain = plain_of(blob)
        assert layer.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
        assert layer.uncompressed_size == len(plain)


@settings(max_examples=30)
@given(root=layer_trees)
def test_the_range_of_each_object_is_the_object(root: Directory) -> None:
    wanted = {
        inode.content.digest
        for inode in iter_inodes(root)
        if isinstance(inode, RegularFile) and isinstance(inode.content, External)
    }
    for compression in FORMS:
        blob, layer = write(root, compression=compression)
        assert layer.objects.keys() == wanted
        for digest, (offset, length) in layer.objects.items():
            assert plain_of(blob[offset : offset + length]) == CONTENTS[digest]


def test_the_blob_does_not_depend_on_the_threads() -> None:
    root = _tree(*((b"%d" % number, bytes([number]) * 50_000 * number) for number in range(1, 40)))
    blobs = {write(root, threads=threads)[0] for threads in (1, 2, 8)}
    assert len(blobs) == 1


def test_contents_at_the_borders_of_pieces() -> None:
    sizes = [1, 64, 65, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18]
    root = _tree(*((b"f%d" % size, bytes(size)) for size in sizes))
    blob, layer = write(root)
    assert describe(read(blob)) == describe(root)
    assert len(layer.objects) == sum(size > 64 for size in sizes)


def _toc(blob: bytes, annotations: dict[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """TOC and tar-split where the annotations say that they are."""
    offset, length, size, kind = map(int, annotations[CHUNKED_POSITION].split(":"))
    packed = blob[offset : offset + length]
    assert kind == 1
    assert annotations[CHUNKED_CHECKSUM] == "sha256:" + hashlib.sha256(packed).hexdigest()
    toc = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    assert len(toc) == size
    offset, length, size = map(int, annotations[CHUNKED_TAR_SPLIT].split(":"))
    packed = blob[offset : offset + length]
    value = json.loads(toc)
    assert value["tarSplitDigest"] == "sha256:" + hashlib.sha256(packed).hexdigest()
    split = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    assert len(split) == size
    return value, [json.loads(line) for line in split.splitlines()]


def test_tar_split_and_contents_make_the_tar_again() -> None:
    import base64

    data = {b"a": b"a" * 100, b"b": b"", b"c": bytes(range(256)) * 3000}
    root = _tree(*data.items())
    root.entries[b"d"] = HardLink(root.entries[b"a"])  # type: ignore[arg-type]
    blob, layer = write(root)
    toc, split = _toc(blob, layer.annotations)
    made = b""
    for position, record in enumerate(split):
        assert record["position"] == position
        if record["type"] == 2:
            made += base64.b64decode(record["payload"])
        elif record.get("size"):
            made += data[record["name"].encode()]
    assert made == plain_of(blob)
    entries = toc["entries"]
    assert [entry["name"] for entry in entries] == ["./", "a", "b", "c", "c", "c", "d"]
    assert [entry["type"] for entry in entries] == ["dir", "reg", "reg", "reg", "chunk", "chunk", "hardlink"]
    assert entries[1]["digest"] == "sha256:" + hashlib.sha256(data[b"a"]).hexdigest()
    content = root.entries[b"a"].content  # type: ignore[union-attr]
    assert entries[1]["composefs.fsverity-sha256-12"] == content.digest.hex()  # type: ignore[union-attr]
    assert blob[entries[1]["offset"] :].startswith(b"\x28\xb5\x2f\xfd")
    chunks = entries[3:6]
    assert sum(chunk["chunkSize"] for chunk in chunks) == len(data[b"c"])
    for chunk, end in zip(chunks, [*(c["offset"] for c in chunks[1:]), chunks[0]["endOffset"]], strict=True):
        part = plain_of(blob[chunk["offset"] : end])
        assert chunk["chunkDigest"] == "sha256:" + hashlib.sha256(part).hexdigest()


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3"])
def test_names_that_json_cannot_hold_leave_an_ordinary_layer(name: bytes) -> None:
    root = _tree((b"a", b"a" * 70), (name, b"b" * 70))
    blob, layer = write(root)
    assert not layer.annotations
    assert len(layer.notes) == 1
    assert "not UTF-8" in layer.notes[0]
    assert describe(read(blob)) == describe(root)
    assert len(layer.objects) == 2


def test_times_that_the_table_of_contents_cannot_say() -> None:
    root = _tree((b"a", b"a" * 70))
    root.mtime_sec = 1 << 40
    _, layer = write(root)
    assert not layer.annotations
    assert "after 9999" in layer.notes[0]


def test_many_empty_members_are_cut_into_frames() -> None:
    root = _tree(*((b"%07d" % number, b"") for number in range(20_000)))
    blob, _ = write(root)
    assert describe(read(blob)) == describe(root)


def test_what_a_layer_cannot_hold() -> None:
    for name in (b".wh.a", b".wh..wh..opq"):
        with pytest.raises(OciError, match="would remove another"):
            write(_tree((name, b"")))
    with pytest.raises(TarError, match="socket"):
        write(Directory(mode=0o40755, entries={b"s": Socket(mode=0o140644)}))
    file = RegularFile(mode=0o100644, size=70, content=External(None, b"ab/cd"))
    with pytest.raises(OciError, match="nothing is known of the contents"):
        write(Directory(mode=0o40755, entries={b"f": file}))
    with pytest.raises(TarError, match="attribute"):
        write(Directory(mode=0o40755, xattrs={b"user.a=b": b""}))


def test_what_is_told() -> None:
    root = Directory(mode=0o40755, entries={b"s": Socket(mode=0o140644), b"w": Device(mode=0o20000, rdev=0)})
    blob, layer = write(root, sockets=False)
    assert layer.notes == ("a socket is left out", "a character device 0:0, which overlayfs takes for a removed name")
    assert b"s" not in read(blob).entries


def test_contents_shorter_than_the_file() -> None:
    root = _tree((b"a", b"a" * 70))
    root.entries[b"a"].size = 80  # type: ignore[union-attr]
    with pytest.raises(OciError, match="70 bytes of contents instead of 80"):
        write(root)


@pytest.mark.parametrize("compression", FORMS)
def test_other_readers_see_the_same(compression: Compression) -> None:
    root = _tree((b"a", b"a" * 70), (b"long" * 50, b"b" * 70))
    blob, _ = write(root, compression=compression)
    if compression is Compression.GZIP:
        plain = gzip.decompress(blob)
    else:
        plain = subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert [member.name for member in archive] == [".", "a", "long" * 50]
