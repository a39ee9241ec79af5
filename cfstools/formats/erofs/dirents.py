"""How the names of a directory fill its blocks (composefs format, section 3.2).

Names are packed greedily and never reordered: a group of entries takes one block, the last group may stay
behind the inode as its tail if it is no longer than half a block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cfstools.formats.erofs.layout import BLOCK_SIZE, DIRENT, TAIL_MAX

_ENTRY_COST = DIRENT.size


def group_names(names: Sequence[bytes]) -> list[tuple[int, int]]:
    """Split *names* into the groups that share a block, as (start, end) index ranges.

    *names* are all names of the directory in byte order, ``b"."`` and ``b".."`` among them.
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
    """Whole blocks and tail bytes of a directory whose sorted *names* :func:`group_names` split into *groups*."""
    last = _packed_size(names[groups[-1][0] :])
    full = len(groups) - 1
    return (full, last) if last <= TAIL_MAX else (full + 1, 0)


def directory_extent(names: Collection[bytes]) -> tuple[int, int]:
    """Whole blocks and tail bytes that a directory with these names takes, before its inode is placed.

    *names* are all names of the directory, ``b"."`` and ``b".."`` among them, in any order. Placement never
    changes the result for directories: a tail of at most half a block always finds room.
    """
    ordered = sorted(names)
    return groups_extent(ordered, group_names(ordered))


def directory_size(names: Collection[bytes]) -> int:
    """Bytes stored as the size of a directory with these names (as for :func:`directory_extent`)."""
    blocks, tail = directory_extent(names)
    return blocks * BLOCK_SIZE + tail


def _packed_size(names: Collection[bytes]) -> int:
    """Bytes the entries of *names* take when no block border comes between them."""
    return _ENTRY_COST * len(names) + len(b"".join(names))
