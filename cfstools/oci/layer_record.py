"""The cached form of a layer: its members in order, its report and its warnings, with objects instead of contents.

Replaying a record into a :class:`cfstools.tree.layers.Layer` has the same result as reading the layer: limits,
warnings and errors of staging come from there again.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cfstools.errors import FormatError, OciError
from cfstools.oci.layer import LayerReport, LayerStage
from cfstools.tree.layers import Layer
from cfstools.tree.model import NO_XATTRS, Device, Directory, External, Fifo, Leaf, RegularFile, Symlink, Xattrs
from cfstools.verity import object_path

MAX_PLAIN = 512 << 20
_LEVEL = 1
_LENGTH = struct.Struct("<I")
# Kind, mode, owner, group, seconds, nanoseconds, size, device; lengths of name and payload, number of attributes.
_ENTRY = struct.Struct("<BIIIqIQIHIH")
_XATTR = struct.Struct("<HI")
_DIRECTORY, _INLINE, _OBJECT, _SYMLINK, _FIFO, _CHARACTERS, _LINK = range(7)
_Entry = tuple[bytes, Directory | Leaf | bytes]


class Recorder:
    """Passes members on to *layer* and keeps them for a record."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.entries: list[_Entry] = []

    def add(self, path: bytes, inode: Directory | Leaf) -> None:
        """Stage one entry."""
        self.layer.add(path, inode)
        self.entries.append((path, inode))

    def add_link(self, path: bytes, target: bytes) -> None:
        """Stage a hard link."""
        self.layer.add_link(path, target)
        self.entries.append((path, target))


class LayerRecord(NamedTuple):
    """A layer that was read: its report, warnings and members."""

    report: LayerReport
    notes: Sequence[tuple[str, str]]
    notes_dropped: int
    entries: Sequence[_Entry]

    def objects(self) -> dict[bytes, int]:
        """Digest to size of all objects that the layer needs."""
        found = {}
        for _, inode in self.entries:
            digest = _digest(inode)
            if digest is not None:
                assert isinstance(inode, RegularFile)
                found[digest] = inode.size
        return found

    def replay(self, layer: LayerStage) -> None:
        """Stage the members in *layer*. Raises what reading the layer would raise."""
        for path, inode in self.entries:
            if isinstance(inode, bytes):
                layer.add_link(path, inode)
            else:
                layer.add(path, inode)

    def pack(self) -> bytes | None:
        """Serialize the record; ``None`` if it is larger than ``MAX_PLAIN``."""
        head = {
            "report": {name: getattr(self.report, name) for name in self.report._fields},
            "notes": list(self.notes),
            "notes_dropped": self.notes_dropped,
        }
        packer = zlib.compressobj(_LEVEL)
        text = json.dumps(head).encode()
        parts = [packer.compress(_LENGTH.pack(len(text)) + text)]
        size = 0
        for entry in self.entries:
            packed = _pack(*entry)
            size += len(packed)
            if size > MAX_PLAIN - len(text) - _LENGTH.size:
                return None
            parts.append(packer.compress(packed))
        return b"".join([*parts, packer.flush()])


def unpack(data: bytes) -> LayerRecord:
    """Parse a record. Raises :class:`FormatError`."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, MAX_PLAIN)
        if not unpacker.eof or unpacker.unused_data:
            raise OciError("a record that does not end where it should")
        (length,) = _LENGTH.unpack_from(plain)
        head = json.loads(plain[_LENGTH.size : _LENGTH.size + length])
        return LayerRecord(
            report=LayerReport(**{**head["report"], "remembered": True}),
            notes=[(str(where), str(text)) for where, text in head["notes"]],
            notes_dropped=int(head["notes_dropped"]),
            entries=list(_unpack(plain, _LENGTH.size + length)),
        )
    except (zlib.error, struct.error, ValueError, TypeError, KeyError, RecursionError) as error:
        raise OciError(f"not the record of a layer: {error}") from error


def _digest(inode: Directory | Leaf | bytes) -> bytes | None:
    content = inode.content if isinstance(inode, RegularFile) else None
    return content.digest if isinstance(content, External) else None


def _pack(path: bytes, inode: Directory | Leaf | bytes) -> bytes:
    if isinstance(inode, bytes):
        return _ENTRY.pack(_LINK, 0, 0, 0, 0, 0, 0, 0, len(path), len(inode), 0) + path + inode
    kind, payload, size, rdev = _contents(inode)
    words = (inode.mode, inode.uid, inode.gid, inode.mtime_sec, inode.mtime_nsec, size, rdev)
    xattrs = [_XATTR.pack(len(key), len(value)) + key + value for key, value in inode.xattrs.items()]
    return b"".join([_ENTRY.pack(kind, *words, len(path), len(payload), len(xattrs)), path, payload, *xattrs])


def _contents(inode: Directory | Leaf) -> tuple[int, bytes, int, int]:
    """Kind, payload, size and device of an inode."""
    match inode:
        case Directory():
            return _DIRECTORY, b"", 0, 0
        case RegularFile():
            if isinstance(inode.content, bytes):
                return _INLINE, inode.content, inode.size, 0
            digest = _digest(inode)
            assert digest is not None  # all contents were taken by now
            return _OBJECT, digest, inode.size, 0
        case Symlink():
            return _SYMLINK, inode.target, 0, 0
        case Device():
            return _CHARACTERS, b"", 0, inode.rdev
        case Fifo():
            return _FIFO, b"", 0, 0
        case _:  # pragma: no cover - archives have no sockets
            raise FormatError("a socket in a layer")


def _unpack(plain: bytes, at: int) -> Iterator[_Entry]:
    shared: dict[bytes, Xattrs] = {}
    while at < len(plain):
        kind, mode, uid, gid, sec, nsec, size, rdev, name, payload, count = _ENTRY.unpack_from(plain, at)
        at += _ENTRY.size
        path, contents = plain[at : at + name], plain[at + name : at + name + payload]
        at += name + payload
        if at > len(plain):
            raise ValueError("the last entry is cut")
        start = at
        xattrs = {}
        for _ in range(count):
            key, value = _XATTR.unpack_from(plain, at)
            at += _XATTR.size
            xattrs[plain[at : at + key]] = plain[at + key : at + key + value]
            at += key + value
            if at > len(plain):
                raise ValueError("the last attribute is cut")
        common = shared.setdefault(plain[start:at], MappingProxyType(xattrs)) if count else NO_XATTRS
        yield path, _inode(kind, contents, size, rdev, (mode, uid, gid, sec, nsec, common))


def _inode(
    kind: int, payload: bytes, size: int, rdev: int, words: tuple[int, int, int, int, int, Xattrs]
) -> Directory | Leaf | bytes:
    mode, uid, gid, sec, nsec, xattrs = words
    if kind == _LINK:
        return payload
    if kind == _DIRECTORY:
        return Directory(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
    if kind in {_INLINE, _OBJECT}:
        content = payload if kind == _INLINE else External(payload, object_path(payload))
        return RegularFile(
            mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, size=size, content=content
        )
    if kind == _SYMLINK:
        return Symlink(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, target=payload)
    if kind == _FIFO:
        return Fifo(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
    if kind == _CHARACTERS:
        return Device(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, rdev=rdev)
    raise ValueError(f"an entry of kind {kind}")
