"""Maps of sparse files: old GNU and PAX 0.0, 0.1, 1.0 (docs/oci.md, "Headers of tar archives")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cfstools.errors import TarError
from cfstools.formats.tar import layout
from cfstools.formats.tar.layout import BLOCK
from cfstools.formats.tar.member import SparseMap
from cfstools.formats.tar.numbers import parse_decimal, parse_number
from cfstools.formats.tar.pax import Extension
from cfstools.streams.limits import TarLimits

Extents = list[tuple[int, int]]
_NUMBER_MAX = 21  # digits and newline of one number in a 1.0 map


def old_gnu_map(header: bytes, next_block: Callable[[], bytes], packed: int, limits: TarLimits) -> SparseMap:
    """Map of an old GNU sparse file from its *header* block and the extension blocks that follow it."""
    if header[257:265] != layout.MAGIC_GNU:
        raise TarError("a GNU sparse file without GNU magic")
    try:
        size = parse_number(header[layout.SPARSE_REAL_SIZE : layout.SPARSE_REAL_SIZE + 12])
        extents = list(_old_pairs(header[layout.SPARSE_OFFSET :], layout.SPARSE_COUNT))
        more = header[layout.SPARSE_MORE]
        while more:
            block = next_block()
            extents += _old_pairs(block, layout.SPARSE_BLOCK_COUNT)
            _check_count(len(extents), limits)
            more = block[layout.SPARSE_BLOCK_MORE]
    except ValueError:
        raise TarError("a number of the sparse map is damaged") from None
    return check_map(extents, size, packed)


def _old_pairs(fields: bytes, count: int) -> Iterator[tuple[int, int]]:
    for at in range(0, count * layout.SPARSE_PAIR, layout.SPARSE_PAIR):
        if fields[at] == 0:
            return
        yield parse_number(fields[at : at + 12]), parse_number(fields[at + 12 : at + 24])


def pax_version(extension: Extension) -> int | None:
    """0 for maps in the extended header (0.0, 0.1), 1 for maps before the data (1.0), ``None`` for other files."""
    keys = extension.sparse
    version = keys.get(b"major", b""), keys.get(b"minor", b"")
    if version == (b"1", b"0"):
        return 1
    if version in {(b"0", b"0"), (b"0", b"1")}:
        return 0
    if version != (b"", b""):
        raise TarError("unknown version of the GNU sparse format")
    if b"map" in keys or extension.sparse_list or b"numblocks" in keys:
        return 0
    if keys:
        raise TarError("GNU.sparse records without a version or a map")
    return None


def real_size(extension: Extension) -> int:
    """Size of the expanded file: ``GNU.sparse.size`` (0.0, 0.1) or ``GNU.sparse.realsize`` (1.0)."""
    texts = [extension.sparse[key] for key in (b"size", b"realsize") if key in extension.sparse]
    if len(set(texts)) > 1:
        raise TarError("GNU.sparse.size and GNU.sparse.realsize disagree")
    text = texts[0] if texts else b""
    if not text:
        raise TarError("GNU.sparse records without the file's size")
    return _decimal(text)


def pax_header_map(extension: Extension, packed: int, limits: TarLimits) -> SparseMap:
    """Map of a version 0.0 (pairs of records) or 0.1 (one comma-separated record) sparse file.

    The number of regions must be stated, as Go's reader (that of container engines) requires.
    """
    numbers = extension.sparse_list
    text = extension.sparse.get(b"map")
    if text is not None:
        if numbers:
            raise TarError("two sparse maps for one file")
        numbers = text.split(b",") if text else []
    stated = _decimal(extension.sparse.get(b"numblocks", b""))
    if len(numbers) % 2 or stated != len(numbers) // 2:
        raise TarError("the sparse map does not have the number of entries it states")
    _check_count(len(numbers) // 2, limits)
    return check_map(_pairs(numbers), real_size(extension), packed)


def pax_data_map(
    extension: Extension, next_block: Callable[[], bytes], packed: int, limits: TarLimits
) -> tuple[SparseMap, int]:
    """Map of a version 1.0 sparse file, read from the blocks before its data, and the size of these blocks.

    The map is decimal lines: the number of regions, then offset and length of each, padded to a block.
    """
    text = bytearray()
    found = 0
    wanted = 1
    while found < wanted:
        if len(text) > wanted * _NUMBER_MAX + BLOCK or len(text) + BLOCK > packed:
            raise TarError("the sparse map before the data is truncated or damaged")
        block = next_block()
        text += block
        found += block.count(b"\n")
        if wanted == 1 and found:
            count = _decimal(bytes(text.partition(b"\n")[0]))
            _check_count(count, limits)
            wanted = 1 + 2 * count
    numbers = bytes(text).split(b"\n", wanted)[1:wanted]
    return check_map(_pairs(numbers), real_size(extension), packed - len(text)), len(text)


def _pairs(numbers: Iterable[bytes]) -> Extents:
    values = [_decimal(number) for number in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


def _decimal(text: bytes) -> int:
    try:
        return parse_decimal(text)
    except ValueError:
        raise TarError("a number of the sparse map is damaged") from None


def _check_count(count: int, limits: TarLimits) -> None:
    if count > limits.sparse_extents:
        raise TarError(f"a sparse file has {count} regions, allowed are {limits.sparse_extents}")


def check_map(extents: Extents, size: int, packed: int) -> SparseMap:
    """The map, if its regions ascend, stay below *size* and have *packed* bytes in all. Raises :class:`TarError`."""
    end = 0
    total = 0
    for offset, length in extents:
        if offset < end or length < 0 or offset + length > size:
            raise TarError("the sparse map is not in order or leaves the file")
        end = offset + length
        total += length
    if size < 0 or total != packed:
        raise TarError(f"the sparse map covers {total} bytes, the archive holds {packed}")
    return SparseMap(tuple(extents), size)
