"""Files that a walk need not read, nor ask for attributes: what the records of a digest cache say of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cfstools import native
from cfstools.sources.inodes import InodeReader, SourceRoot
from cfstools.store.cache.recall import Recall
from cfstools.tree import NO_XATTRS, External, RegularFile, Stamp, Unread
from cfstools.tree.model import KINDS
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import object_path

_native = pytest.importorskip("cfstools.native._native")

NAMES = [b"file%d" % number for number in range(5)]


class Files(NamedTuple):
    """An open directory with files of 100 bytes, and the number of its device."""

    fd: int
    device: int

    def look(
        self, names: list[bytes], records: bytes, *, xattrs: bool = True, device: int | None = None, **changes: int
    ) -> tuple[list[Any], Recall]:
        words = {"digest_size": 32, "inline_threshold": 64, "seen": 10, "bare": 7} | changes
        recall = Recall(records, self.device if device is None else device, **words)
        reader = InodeReader(SourceRoot(b""), policy=XattrPolicy.ALL, use_epoch=False)
        return _native.stat_names(self.fd, names, xattrs, b"a/", reader.maker(1, recall.words)), recall

    def records(self, **changes: int) -> bytes:
        """A record for each file, with *changes* of what it says."""
        found = []
        for number, name in enumerate(NAMES):
            status = os.stat(name, dir_fd=self.fd)
            fields = {"inode": status.st_ino, "size": 100, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns}
            fields |= {"seen": 10, "bare": 7}
            for field, change in changes.items():
                fields[field] += change
            found.append(native.KNOWN_RECORD.pack(*fields.values()) + bytes([number]) * 32)
        return native.merge_records(b"", b"".join(found), 32, 0)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    for number in range(5):
        (tmp_path / f"file{number}").write_bytes(bytes(100))
    os.setxattr(tmp_path / "file4", "user.x", b"y")
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    yield Files(fd, tmp_path.stat().st_dev)
    os.close(fd)


def test_files_that_records_know(files: Files) -> None:
    made, recall = files.look([b"empty", *NAMES], files.records())
    assert made[0].content == b""
    # That file4 has no attributes is believed: it is not asked for them.
    for number, file in enumerate(made[1:]):
        digest = bytes([number]) * 32
        assert (file.size, file.content.digest, file.content.payload) == (100, digest, object_path(digest))
        assert file.xattrs is NO_XATTRS
    taken = recall.take()
    assert (len(taken), taken.size, len(recall)) == (5, 500, 0)
    assert taken.digests == b"".join(bytes([number]) * 32 for number in range(5))
    assert memoryview(taken.ends).cast("Q").tolist() == [100, 200, 300, 400, 500]
    status = os.stat(b"file3", dir_fd=files.fd)
    stamp = Stamp(files.device, status.st_ino, 100, status.st_mtime_ns, status.st_ctime_ns)
    assert taken.stamp(files.device, 3) == stamp
    assert recall.take().size == 0


@pytest.mark.parametrize("field", ["size", "mtime", "ctime"])
@pytest.mark.parametrize("change", [-1, 1, 10**9])
def test_files_that_are_not_as_their_records_say(files: Files, field: str, change: int) -> None:
    made, recall = files.look(NAMES[:4], files.records(**{field: change}))
    assert [type(file.content) for file in made] == [Unread] * 4
    assert len(recall) == 0


def test_records_of_other_inodes(files: Files) -> None:
    size = native.KNOWN_RECORD.size + 32
    records = files.records()
    others = b"".join(
        native.KNOWN_RECORD.pack(number + 10**12, *rest) + bytes(32)
        for number, *rest in (native.KNOWN_RECORD.unpack_from(records, at) for at in range(0, len(records), size))
    )
    made, recall = files.look(NAMES[:4], others)
    assert [type(file.content) for file in made] == [Unread] * 4
    assert len(recall) == 0


@pytest.mark.parametrize(
    ("words", "xattrs", "count"),
    [
        ({}, True, 4),
        ({}, False, 4),
        ({"seen": 11}, True, 0),
        ({"inline_threshold": 99}, True, 4),
        ({"inline_threshold": 100}, True, 0),
        ({"digest_size": 64}, True, 0),
        ({"digest_size": 24}, True, 0),
        ({"device": 1}, True, 0),
        ({"bare": 8}, True, 4),
        ({"bare": 0}, True, 4),
    ],
)
def test_records_that_do_not_count(files: Files, words: dict[str, int], xattrs: bool, count: int) -> None:
    made, recall = files.look(NAMES[:4], files.records(), xattrs=xattrs, **words)
    assert [type(file.content) for file in made] == [External if count else Unread] * 4
    assert len(recall) == count


@pytest.mark.parametrize(("bare", "is_asked"), [(7, False), (8, True), (0, True)])
def test_attributes_are_asked_for_where_records_do_not_tell(files: Files, bare: int, is_asked: bool) -> None:
    made, recall = files.look([b"file4", b"file0"], files.records(), bare=bare)
    # What has attributes that were not met before is left to the caller, and so is its record.
    assert [type(one) for one in made] == [tuple if is_asked else RegularFile, RegularFile]
    assert len(recall) == (1 if is_asked else 2)


def test_wrong_words_are_refused(files: Files) -> None:
    good: tuple[Any, ...] = (b"", 1, 32, 64, 0, 0, bytearray(), bytearray(), bytearray())
    for place, bad in ((0, "x"), (1, "x"), (6, b""), (7, []), (8, None)):
        words = (*good[:place], bad, *good[place + 1 :])
        with pytest.raises(TypeError):
            _native.stat_names(files.fd, [b"file0"], True, b"", (KINDS, Stamp, {}, {}, False, 0, words))
    others: tuple[Any, ...] = ((), good[1:], 5, [*good])
    for words in others:
        with pytest.raises((TypeError, SystemError)):
            _native.stat_names(files.fd, [b"file0"], True, b"", (KINDS, Stamp, {}, {}, False, 0, words))
