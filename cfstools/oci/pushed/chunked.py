"""What podman looks for in a zstd layer to pull only parts of it: table of contents, tar-split, footer.

The table of contents (TOC) has an entry for each member and says where its contents are in the blob; tar-split has all
the bytes of the tar but contents. Both stand in skippable frames behind the data (docs/distribution.md, "Data layers").
Our own readers need neither; each entry of the TOC also names the file's fs-verity digest, for whoever reads both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cfstools.formats.tar.writer import device_parts
from cfstools.oci.pushed.layout import (
    CHUNKED_CHECKSUM,
    CHUNKED_FOOTER,
    CHUNKED_MAGIC,
    CHUNKED_OLD_CHECKSUM,
    CHUNKED_OLD_POSITION,
    CHUNKED_POSITION,
    CHUNKED_TAR_SPLIT,
    CHUNKED_TYPE,
    MAX_TOC,
    SKIP,
    SKIP_MAGIC,
)
from cfstools.streams.compress import GrowingFrame
from cfstools.tree.model import Device, Directory, Leaf, RegularFile, Symlink

_LEVEL = 9
_TYPES = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SEGMENT, _FILE = 2, 1


class NotChunked(Exception):
    """The tree has what a TOC cannot say; without one the layer is an ordinary one."""


class Part(NamedTuple):
    """One chunk of a file: where its frame begins in the blob, its size when decompressed, and its SHA-256 in hex."""

    offset: int
    size: int
    sha256: str


class _JsonStream(GrowingFrame):
    """JSON texts on their way through zstd."""

    def text(self, text: str) -> None:
        """Append a text. Raises :class:`NotChunked` when there is more than podman reads."""
        self.write(text.encode())
        if self.size > MAX_TOC:
            raise NotChunked(f"a table of contents of more than {MAX_TOC} bytes")


class ChunkedIndex:
    """Collects TOC and tar-split of one layer; members come in the order of the tar."""

    def __init__(self) -> None:
        self._toc = _JsonStream(_LEVEL)
        self._split = _JsonStream(_LEVEL)
        self._position = 0
        self._separator = ""
        self._toc.text('{"version":1,"entries":[')

    # tar-split

    def member(self, headers: bytes, name: bytes, size: int, crc: int) -> None:
        """A member: the bytes since the contents before it, its name, and size and CRC-64 of its contents."""
        self._record({"type": _SEGMENT, "payload": _base64(headers)})
        record: dict[str, Any] = {"type": _FILE, "name": text_of(name)}
        if size:
            record["size"] = size
        record["payload"] = _base64(crc.to_bytes(8, "big")) if size else None
        self._record(record)

    def end(self, rest: bytes) -> None:
        """The bytes behind the last contents."""
        self._record({"type": _SEGMENT, "payload": _base64(rest)})

    def _record(self, record: dict[str, Any]) -> None:
        self._split.text(_compact({**record, "position": self._position}) + "\n")
        self._position += 1

    # TOC

    def add_entries(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Entries of the TOC, as :func:`entry_of` makes them."""
        for entry in entries:
            self._toc.text(self._separator + _compact(entry))
            self._separator = ","

    def finish(self, offset: int) -> tuple[bytes, dict[str, str]]:
        """The frames to append to the *offset* bytes of the blob so far, and the annotations of its descriptor."""
        split = self._split.finish()
        self._toc.text('],"tarSplitDigest":"sha256:' + hashlib.sha256(split).hexdigest() + '"}')
        toc = self._toc.finish()
        toc_at = offset + SKIP.size
        split_at = toc_at + len(toc) + SKIP.size
        toc_place = (toc_at, len(toc), self._toc.size)
        split_place = (split_at, len(split), self._split.size)
        footer = CHUNKED_FOOTER.pack(*toc_place, CHUNKED_TYPE, *split_place, CHUNKED_MAGIC)
        frames = b"".join(SKIP.pack(SKIP_MAGIC, len(data)) + data for data in (toc, split, footer))
        checksum = "sha256:" + hashlib.sha256(toc).hexdigest()
        position = ":".join(map(str, (*toc_place, CHUNKED_TYPE)))
        annotations = {
            CHUNKED_CHECKSUM: checksum,
            CHUNKED_OLD_CHECKSUM: checksum,
            CHUNKED_POSITION: position,
            CHUNKED_OLD_POSITION: position,
            CHUNKED_TAR_SPLIT: ":".join(map(str, split_place)),
        }
        return frames, annotations


def entry_of(name: bytes, inode: Directory | Leaf, link: bytes | None = None) -> dict[str, Any]:
    """The TOC's entry for *name*, a hard link to *link* if that is given, without what is said of contents.

    Raises :class:`NotChunked` for names that are not UTF-8 and times that RFC 3339 cannot say.
    """
    entry: dict[str, Any] = {"type": "hardlink" if link is not None else _TYPES[stat.S_IFMT(inode.mode)]}
    entry["name"] = text_of(name)
    target = link if link is not None else inode.target if isinstance(inode, Symlink) else None
    if target is not None:
        entry["linkName"] = text_of(target)
    numbers = {"mode": inode.mode & 0o7777, "uid": inode.uid, "gid": inode.gid}
    if isinstance(inode, RegularFile) and link is None:
        numbers["size"] = inode.size
    if isinstance(inode, Device) and link is None:
        numbers["devMajor"], numbers["devMinor"] = device_parts(inode.rdev)
    entry.update({key: value for key, value in numbers.items() if value})
    entry["modtime"] = _timestamp(inode.mtime_sec, inode.mtime_nsec)
    if inode.xattrs and link is None:
        entry["xattrs"] = {text_of(key): _base64(value) for key, value in sorted(inode.xattrs.items())}
    return entry


def add_contents(entry: dict[str, Any], sha256: str, parts: list[Part], end: int) -> list[dict[str, Any]]:
    """Say in a file's *entry* where its contents are, up to *end*. Returns the entries of further chunks."""
    entry |= {"digest": f"sha256:{sha256}", "offset": parts[0].offset, "endOffset": end}
    if len(parts) == 1:
        return []
    entry |= {"chunkSize": parts[0].size, "chunkDigest": f"sha256:{parts[0].sha256}"}
    chunks = []
    start = parts[0].size
    for part in parts[1:]:
        chunk = {"type": "chunk", "name": entry["name"], "offset": part.offset, "chunkSize": part.size}
        chunks.append({**chunk, "chunkOffset": start, "chunkDigest": f"sha256:{part.sha256}"})
        start += part.size
    return chunks


def text_of(name: bytes) -> str:
    """A name as JSON can hold it. Raises :class:`NotChunked` where it is not UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise NotChunked("a name that is not UTF-8") from None


def _timestamp(seconds: int, nanoseconds: int) -> str:
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        raise NotChunked("a time before the year 1 or after 9999") from None
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + fraction + "Z"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
