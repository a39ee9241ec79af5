"""The blocks of a directory: how names fill them, and names read from one (composefs format, sections 3.2 and 3.3).

The writer packs names greedily, in order: each group of entries fills one block. The last group becomes the tail of
the inode if it takes at most half a block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from operator import lt

from cfstools.errors import ImageError
from cfstools.formats.erofs.layout import BLOCK_SIZE, DIRENT, NAME_MAX, TAIL_MAX
from cfstools.formats.escape import escape_text

DirentTuple = tuple[bytes, int, int]  # name, nid, file type

_ENTRY_COST = DIRENT.size


def group_names(names: Sequence[bytes]) -> list[tuple[int, int]]:
    """Split *names* into the groups that share a block, as (start, end) index ranges.

    *names* are all names of the directory in byte order, including ``b"."`` and ``b".."``.
    """
    if _packed_size(names) <= BLOCK_SIZE:
        return [(0, len(names))]
    groups = []
    start = used = 0
    for index, name in enumerate(names):
        cost = _ENTRY_COST + len(name)
        if used + cost > BLOCK_SIZE:
            groups.append((start, index))
            start, used = index, 0
        used += cost
    groups.append((start, len(names)))
    return groups


def groups_extent(names: Sequence[bytes], groups: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The number of blocks and tail bytes of a directory, from its sorted *names* and :func:`group_names` of them."""
    last = _packed_size(names[groups[-1][0] :])
    full = len(groups) - 1
    return (full, last) if last <= TAIL_MAX else (full + 1, 0)


def directory_extent(names: Collection[bytes]) -> tuple[int, int]:
    """The number of blocks and the tail bytes of a directory, before its inode is placed.

    *names* are all names of the directory, including ``b"."`` and ``b".."``, in any order. Placing the inode does not
    change the result: a tail of at most half a block always fits behind it.
    """
    ordered = sorted(names)
    return groups_extent(ordered, group_names(ordered))


def directory_size(names: Collection[bytes]) -> int:
    """The size of a directory in bytes, as its inode states it; *names* as for :func:`directory_extent`."""
    blocks, tail = directory_extent(names)
    return blocks * BLOCK_SIZE + tail


def parse_dirents(block: bytes) -> tuple[list[DirentTuple], int]:
    """Parse one directory block or tail: its entries, and the offset where the last name ends (section 3.3).

    Raises ImageError for offsets, names and orders that section 10.2 forbids.
    """
    if len(block) < DIRENT.size:
        raise ImageError(f"directory block of {len(block)} bytes")
    first = DIRENT.unpack_from(block)[1]
    if not first or first % DIRENT.size or first > len(block):
        raise ImageError(f"the first name is at {first}, in a block of {len(block)} bytes")
    nids, offsets, types = zip(*DIRENT.iter_unpack(block[:first]), strict=True)
    end = block.find(b"\0", offsets[-1])
    if end < 0:
        end = len(block)
    bounds = (*offsets, end)
    if not all(map(lt, bounds, bounds[1:])):
        raise ImageError("name offsets do not rise inside of the block, or a name is empty")
    names = [block[start:stop] for start, stop in pairwise(bounds)]
    text = block[first:end]
    if b"/" in text or b"\0" in text or max(map(len, names)) > NAME_MAX:
        bad = next(name for name in names if b"/" in name or b"\0" in name or len(name) > NAME_MAX)
        raise ImageError(f"{escape_text(bad)} cannot be a file name")
    if not all(map(lt, names, names[1:])):
        late = next(right for left, right in pairwise(names) if left >= right)
        raise ImageError(f"name {escape_text(late)} is not in order")
    return list(zip(names, nids, types, strict=True)), end


def _packed_size(names: Collection[bytes]) -> int:
    """The size of the entries of *names* if they all fit into one block."""
    return _ENTRY_COST * len(names) + len(b"".join(names))
