"""Large objects of pushed images in parts: what is written for that, and what a reader makes of it or refuses."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import ContentsWrong, FormatError, NotFound, OciError, StoreError
from cfstools.formats.registry import open_image
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.ranges import CHUNK
from cfstools.oci.pushed.layer import PIECE
from cfstools.oci.pushed.layout import RANGES_HEADER, RANGES_MAGIC, RangesRow
from cfstools.oci.pushed.ranges import RangeTable, frames_size, parse_ranges
from cfstools.oci.pushed.source import object_places, object_source, read_pushed
from cfstools.store import DirectoryStore
from cfstools.streams.decompress import Compression
from cfstools.transport.base import BytesBody, Span
from cfstools.transport.packs import PackSource
from cfstools.tree import Directory, RegularFile
from cfstools.tree.objects import object_sizes
from cfstools.verity import Params
from cfstools.verity.merkle import leaves_size
from cfstools.verity.object_id import LARGE
from tests.mount.lazy.making import QUICK, leaves_of
from tests.oci.pushed.test_publish import _outgoing, _Place
from tests.oci.pushed.trees import CONTENTS, external, plain_of, write

SIZE = LARGE + 3 * PIECE + 5000


@cache
def data_of(seed: bytes, size: int) -> bytes:
    data = hashlib.shake_128(seed).digest(size // 2)
    return data + bytes(size - len(data))


def large(seed: bytes, size: int = SIZE) -> RegularFile:
    """A file that compresses a little."""
    return RegularFile(mode=0o100644, size=size, content=external(data_of(seed, size)))


def tree(*names: bytes, size: int = SIZE) -> Directory:
    """Large files and a small one; the first byte of a name says which contents it has."""
    root = Directory(mode=0o40755, entries={b"small": large(b"small", 5000)})
    for name in names:
        root.entries[name] = large(name[:1], size)
    return root


def sources(place: _Place) -> tuple[PackSource, Mapping[bytes, int]]:
    content, image = place.image()
    pushed = read_pushed(content, image)
    sizes = object_sizes(open_image(pushed.data).tree())
    return object_source(content, pushed, object_places(pushed, sizes), "memory"), sizes


def digest_of(name: bytes) -> bytes:
    content = large(name).content
    return content.digest  # type: ignore[union-attr,return-value]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as opened:
        yield opened


def pushed(root: Directory, compression: Compression = Compression.ZSTD) -> _Place:
    place = _Place()
    place.push(_outgoing(root), compression=compression)
    return place


def test_lengths_and_leaves_lie_behind_the_frames() -> None:
    blob, layer = write(tree(b"a", b"b", b"a2"))
    assert set(layer.frames) == {digest_of(b"a"), digest_of(b"b")}
    for digest, at in layer.frames.items():
        offset, length = layer.objects[digest]
        assert at == offset + length + 8
        count = -(-SIZE // PIECE)
        lengths = struct.unpack_from(f"<{count}I", blob, at)
        assert sum(lengths) == length
        assert plain_of(blob[offset : offset + lengths[0]]) == CONTENTS[digest][:PIECE]
        leaves = blob[at + 4 * count : at + frames_size(SIZE, PIECE, Params())]
        assert leaves == leaves_of(digest, CONTENTS[digest])
    assert write(tree(b"a", b"b", b"a2"), threads=3)[0] == blob
    assert not write(tree(b"a"), compression=Compression.GZIP)[1].frames
    assert not write(tree(b"a", size=LARGE))[1].frames


def test_parts_of_a_pushed_object() -> None:
    source, sizes = sources(pushed(tree(b"a", b"b")))
    for name in (b"a", b"b"):
        digest = digest_of(name)
        data = CONTENTS[digest]
        with source.leaves(digest, SIZE, leaves_size(SIZE, Params())) as read:
            leaves = read_exactly(read, 1 << 20)
        assert leaves == leaves_of(digest, data)
        for start, end in ((0, 1), (PIECE - 1, PIECE + 1), (5, 3 * PIECE), (SIZE - 1, SIZE), (0, SIZE)):
            with source.part(digest, SIZE, Span(start, end)) as read:
                assert read_exactly(read, end - start) == data[start:end]
    small = next(digest for digest, size in sizes.items() if size == 5000)
    with pytest.raises(NotFound), source.leaves(small, 5000, 64):
        pass
    with pytest.raises(NotFound), source.part(small, 5000, Span(0, 1)):
        pass


def read_exactly(read: object, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := read(count - len(data))):  # type: ignore[operator]
        data += piece
    return data


def test_a_lazy_store_reads_parts_and_no_more(store: DirectoryStore) -> None:
    place = pushed(tree(b"a", b"b"))
    source, sizes = sources(place)
    digest = digest_of(b"a")
    with Filler([source], sizes, local=[store], store=store, options=QUICK) as lazy:
        found = lazy.open(digest)
        assert found.read(20 * CHUNK + 5, 9) == CONTENTS[digest][20 * CHUNK + 5 : 20 * CHUNK + 14]
        assert lazy.counters.objects == 0
        assert lazy.counters.part_bytes <= 4 * CHUNK
        assert found.read(0, SIZE) == CONTENTS[digest]
        found.close()
    assert list(store.objects()) == [digest]


def test_a_delta_keeps_the_ranges_of_its_base(store: DirectoryStore) -> None:
    place = pushed(tree(b"a", b"b"))
    done = place.push(_outgoing(tree(b"a", b"b", b"c")), place.base())
    assert done.delta
    source, sizes = sources(place)
    with Filler([source], sizes, local=[store], store=store, options=QUICK) as lazy:
        for name in (b"a", b"b", b"c"):
            found = lazy.open(digest_of(name))
            assert found.read(7, 7) == CONTENTS[digest_of(name)][7:14]
            found.close()
        assert lazy.counters.objects == 0


def test_images_pushed_without_ranges_come_whole(store: DirectoryStore) -> None:
    source, sizes = sources(pushed(tree(b"a"), compression=Compression.GZIP))
    with Filler([source], sizes, local=[store], store=store, options=QUICK) as lazy:
        found = lazy.open(digest_of(b"a"))
        assert found.read(7, 7) == CONTENTS[digest_of(b"a")][7:14]
        found.close()
        assert lazy.counters.objects == 1


def test_frames_that_lie(store: DirectoryStore) -> None:
    place = pushed(tree(b"a"))
    layer = place.pushed().layers[0]
    name = f"blobs/sha256/{layer.digest.encoded}"
    blob = b"".join(place._pieces(name))
    ranges = place.pushed().ranges
    assert ranges is not None
    (row,) = ranges.rows
    count = -(-SIZE // PIECE)
    digest = digest_of(b"a")
    first, second = struct.unpack_from("<2I", blob, row.offset)
    shifted = struct.pack("<2I", first - 5, second + 5)
    for at, spoiled in (
        (row.offset, b"\xff\xff\xff\xff"),  # a length
        (row.offset, shifted),  # the right sum
        (row.offset + 4 * count + 9, bytes([blob[row.offset + 4 * count + 9] ^ 1])),  # a leaf
    ):
        bad = bytearray(blob)
        bad[at : at + len(spoiled)] = spoiled
        place.target.put(name, BytesBody(bytes(bad)), replace=True)
        source, sizes = sources(place)
        log: list[str] = []
        with Filler([source], sizes, local=[store], store=store, options=QUICK, log=log.append) as lazy:
            with pytest.raises(StoreError) as caught:
                lazy.open(digest).read(0, PIECE)
            assert isinstance(caught.value, ContentsWrong)
            assert log
    assert not list(store.objects())
    # Whoever fetches the whole does not need them.
    source, sizes = sources(place)
    (request,) = source.plan({digest: SIZE})
    taken = []

    class Taker:
        def take(self, _key: bytes, size: int, read: object) -> None:
            taken.append(read_exactly(read, size))

        def lost(self, key: bytes, error: Exception) -> None:
            raise error

    source.fetch(request, Taker())
    assert taken == [CONTENTS[digest]]


def test_a_table_that_points_behind_the_layer_is_refused() -> None:
    place = pushed(tree(b"a"))
    image = place.pushed()
    assert image.ranges is not None
    size = image.layers[0].size
    bad = image.ranges._replace(rows=[row._replace(offset=size - 10) for row in image.ranges.rows])
    with pytest.raises(OciError, match=r"ranges: object .* the layer has"):
        object_places(image._replace(ranges=bad), object_sizes(open_image(image.data).tree()))


ROWS = st.lists(st.integers(0, 999), unique=True, max_size=20).map(
    lambda numbers: [RangesRow(number, bytes(4), number * 7) for number in sorted(numbers)]
)


@given(ROWS, st.sampled_from([4096, PIECE]))
def test_a_table_is_read_as_it_was_written(rows: list[RangesRow], piece: int) -> None:
    table = RangeTable(piece=piece, rows=rows)
    assert parse_ranges(table.pack(), 1000) == table


@given(st.binary(max_size=100))
def test_any_bytes_are_a_table_or_a_named_error(data: bytes) -> None:
    for text in (data, RANGES_HEADER.pack(RANGES_MAGIC, 1, len(data) // 16, PIECE, bytes(12)) + data):
        try:
            found = parse_ranges(text, 1000)
        except FormatError:
            continue
        assert found.pack() == text


@pytest.mark.parametrize(
    ("header", "rows", "text"),
    [
        ((b"cfs:map\n", 1, 0, PIECE, bytes(12)), b"", "magic"),
        ((RANGES_MAGIC, 2, 0, PIECE, bytes(12)), b"", "version 2"),
        ((RANGES_MAGIC, 1, 1 << 23, PIECE, bytes(12)), b"", "rows, allowed"),
        ((RANGES_MAGIC, 1, 0, 0, bytes(12)), b"", "pieces of 0"),
        ((RANGES_MAGIC, 1, 0, 5000, bytes(12)), b"", "pieces of 5000"),
        ((RANGES_MAGIC, 1, 0, 1 << 30, bytes(12)), b"", "pieces of"),
        ((RANGES_MAGIC, 1, 0, PIECE, b"x" * 12), b"", "not zero"),
        ((RANGES_MAGIC, 1, 1, PIECE, bytes(12)), b"", "32 bytes instead of the 48"),
        ((RANGES_MAGIC, 1, 0, PIECE, bytes(12)), bytes(16), "48 bytes instead of the 32"),
        ((RANGES_MAGIC, 1, 1, PIECE, bytes(12)), struct.pack("<I4xQ", 5, 0), "object 5 of 5"),
        ((RANGES_MAGIC, 1, 1, PIECE, bytes(12)), struct.pack("<I4sQ", 1, b"xxxx", 0), "not zero"),
        ((RANGES_MAGIC, 1, 2, PIECE, bytes(12)), struct.pack("<I4xQ", 1, 0) * 2, "out of order"),
    ],
)
def test_what_is_no_table(header: tuple[bytes, int, int, int, bytes], rows: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        parse_ranges(RANGES_HEADER.pack(*header) + rows, 5)


def test_too_short_for_a_table() -> None:
    with pytest.raises(OciError, match="31 bytes are no table"):
        parse_ranges(bytes(31), 5)
