"""The table of the digest cache: a row, the *bucket*, for so many inode numbers that follow each other.

Its records, one for each file, are all of one size (``native.KNOWN_RECORD``). Files that are built together mostly have
inode numbers close to each other, so that few rows are asked for, and ``native.match_stamps`` takes their records as
they are. Whatever has not the form of a bucket is passed over. All functions raise ``sqlite3.Error``.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cfstools import native
from cfstools.tree.model import Stamp
from cfstools.verity import Algorithm

_RECORD = native.KNOWN_RECORD
_VALUE_MAX = 64
# A full bucket fits into a page of the database.
_SHIFT = 5
# So many rows are read by one statement: more do not take less time.
_ASK_TOGETHER = 32

SCHEMA = """
CREATE TABLE buckets (
    volume INTEGER NOT NULL, algorithm INTEGER NOT NULL, bucket INTEGER NOT NULL,
    newest INTEGER NOT NULL, records BLOB NOT NULL,
    PRIMARY KEY (volume, algorithm, bucket)
)"""
# Also keeps what is read within bounds, and what one bucket lacks from shifting the records of the next.
_FORM = (
    f"typeof(records) = 'blob' AND length(records) % {_RECORD.size} = 0 AND length(records) <= {_RECORD.size << _SHIFT}"
)
# The interpreter's lock is given up for each row that comes back, after which others may keep it: so there is one.
_ASK = (
    (
        "SELECT cast(group_concat(records, '') AS BLOB) FROM buckets "
        "WHERE volume = ? AND algorithm = ? AND bucket IN (marks) AND form"
    )
    .replace("marks", ",".join("?" * _ASK_TOGETHER))
    .replace("form", _FORM)
)
_STORE = (
    "INSERT INTO buckets VALUES (?, ?, ?, ?, ?) ON CONFLICT (volume, algorithm, bucket) "
    "DO UPDATE SET newest = excluded.newest, records = excluded.records"
)
_COUNT = "SELECT ifnull(sum(length(records)), 0) FROM buckets WHERE form".replace("form", _FORM)
_EACH = "SELECT algorithm, bucket, CASE WHEN form THEN records END FROM buckets".replace("form", _FORM)


class Shelf(NamedTuple):
    """Which buckets are meant: those of one volume and algorithm, by their numbers."""

    volume: int
    algorithm: int


def make_record(stamp: Stamp, inlined: bool, value: bytes, day: int) -> bytes | None:  # noqa: FBT001
    """The record of a file and its contents (or digest), met on *day*; ``None`` if there can be none."""
    if len(value) > _VALUE_MAX:
        return None
    try:
        return _RECORD.pack(stamp.inode, stamp.size, stamp.mtime_ns, stamp.ctime_ns, day, inlined, len(value), value)
    except struct.error:
        return None


def read(database: sqlite3.Connection, shelf: Shelf, stamps: Sequence[Stamp]) -> bytes:
    """The records of all buckets that files with these *stamps* may be in, one after another."""
    return b"".join(_read(database, shelf, sorted({stamp.inode >> _SHIFT for stamp in stamps})))


def _read(database: sqlite3.Connection, shelf: Shelf, numbers: Sequence[int]) -> Iterator[bytes]:
    for some in _in_turn(numbers):
        # There is no bucket -1.
        marks = [*some, *[-1] * (_ASK_TOGETHER - len(some))]
        ((records,),) = database.execute(_ASK, (*shelf, *marks)).fetchall()
        if records:
            yield records


def _in_turn(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), _ASK_TOGETHER):
        yield numbers[first : first + _ASK_TOGETHER]


def merge(database: sqlite3.Connection, shelf: Shelf, made: Iterable[bytes], oldest: int) -> None:
    """Add the records *made*, the last of each inode, to what other builds remember; what is before *oldest* goes.

    Nobody else writes between what is read here and what is written.
    """
    buckets: dict[int, dict[int, bytes]] = {}
    for record in made:
        inode = _inode_of(record)
        buckets.setdefault(inode >> _SHIFT, {})[inode] = record
    with database:
        database.execute("BEGIN IMMEDIATE")
        for some in _in_turn(sorted(buckets)):
            for records in _read(database, shelf, some):
                _keep(buckets, records, oldest)
            rows = [(*shelf, number, *_joined(buckets[number].values())) for number in some]
            database.executemany(_STORE, rows)


def _keep(buckets: dict[int, dict[int, bytes]], records: bytes, oldest: int) -> None:
    for at in range(0, len(records), _RECORD.size):
        record = records[at : at + _RECORD.size]
        inode = _inode_of(record)
        bucket = buckets.get(inode >> _SHIFT)
        if bucket is not None and _day_of(record) >= oldest:
            bucket.setdefault(inode, record)


def _joined(records: Iterable[bytes]) -> tuple[int, bytes]:
    return max(map(_day_of, records)), b"".join(records)


def _inode_of(record: bytes) -> int:
    return int.from_bytes(record[:8], "little")


def _day_of(record: bytes) -> int:
    return int.from_bytes(record[32:36], "little")


def expire(database: sqlite3.Connection, oldest: int) -> None:
    """Drop the buckets of which no record was made on the day *oldest* or later."""
    with database:
        database.execute("DELETE FROM buckets WHERE newest < ?", (oldest,))


def count(database: sqlite3.Connection) -> int:
    """How many records there are."""
    (size,) = database.execute(_COUNT).fetchone()
    return int(size) // _RECORD.size


def check(database: sqlite3.Connection) -> Iterator[bool]:
    """For each record whether it can be true; a row that is no bucket counts as one that cannot."""
    sizes = {algorithm.number: algorithm.digest_size for algorithm in Algorithm}
    for algorithm, number, records in database.execute(_EACH):
        if records is None:
            yield False
            continue
        for inode, size, _, _, _, inlined, length, _ in _RECORD.iter_unpack(records):
            expected = size if inlined == 1 else sizes.get(algorithm) if inlined == 0 else None
            yield length == expected and length <= _VALUE_MAX and inode >> _SHIFT == number


__all__ = ["SCHEMA", "Shelf", "check", "count", "expire", "make_record", "merge", "read"]
