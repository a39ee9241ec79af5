"""A sample image with one of everything, and ways to find and patch places in images."""

from __future__ import annotations

import stat
import struct
from collections.abc import Collection
from itertools import pairwise

from cfstools.errors import ImageError
from cfstools.formats.base import Finding, PlanOptions, Severity
from cfstools.formats.erofs.reader import DiskInode, Image
from cfstools.formats.registry import COMPOSEFS, open_image, read_tree
from cfstools.tree import (
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    RegularFile,
    Socket,
    Symlink,
)
from cfstools.verity import Algorithm

DIGEST = bytes(range(32))
OBJECT = b"00/" + DIGEST.hex().encode()[2:]
LABEL = {b"security.selinux": b"system_u:object_r:usr_t:s0\0"}


def write_image(
    root: Directory, *, min_version: int = 0, max_version: int = 1, algorithm: Algorithm = Algorithm.SHA256
) -> bytes:
    """The composefs image of *root*."""
    return b"".join(
        COMPOSEFS.plan(
            root, PlanOptions(algorithm=algorithm, min_version=min_version, max_version=max_version)
        ).chunks()
    )


def read_image(data: bytes, *, filters: Collection[bytes] = (), allow_tail: bool = False) -> Directory:
    """The tree of an image; with *filters* only these children of its root."""
    return read_tree(data, filters, allow_tail=allow_tail)


def findings_of(data: bytes, *, allow_tail: bool = False) -> list[Finding]:
    """All that is wrong with an image; one finding for what cannot be opened."""
    try:
        image = open_image(data, allow_tail=allow_tail)
    except ImageError as error:
        return [Finding(severity=Severity.ERROR, what=error.what, where=error.where)]
    return image.findings()


def regular(content: bytes, **inode: object) -> RegularFile:
    return RegularFile(mode=stat.S_IFREG | 0o644, size=len(content), content=content, **inode)  # type: ignore[arg-type]


def external(size: int = 70000, digest: bytes | None = DIGEST, payload: bytes | None = OBJECT) -> RegularFile:
    return RegularFile(mode=stat.S_IFREG | 0o600, size=size, content=External(digest, payload), xattrs=LABEL)


def directory(entries: dict[bytes, Entry] | None = None, **inode: object) -> Directory:
    return Directory(mode=stat.S_IFDIR | 0o755, entries=entries or {}, **inode)  # type: ignore[arg-type]


def sample_tree() -> Directory:
    shared = regular(b"linked", nlink=2)
    many: dict[bytes, Entry] = {b"entry-%03d" % number: regular(b"") for number in range(200)}
    return directory(
        {
            b"block": regular(b"b" * 3000),
            b"blk": Device(mode=stat.S_IFBLK | 0o600, rdev=0x801),
            b"dir": directory({b"link": HardLink(shared), b"sub": directory()}, xattrs={b"user.d": b"1"}),
            b"ext": external(),
            b"ext2": external(80000, None, None),
            b"fifo": Fifo(mode=stat.S_IFIFO | 0o600),
            b"inline": regular(b"hello", mtime_sec=5, xattrs={**LABEL, b"user.x": b"y" * 5, b"user.z": b""}),
            b"long": Symlink(mode=stat.S_IFLNK | 0o777, target=b"t" * 4095),
            b"many": directory(many),
            b"null": Device(mode=stat.S_IFCHR | 0o666, rdev=0x103),
            b"shared": shared,
            b"socket": Socket(mode=stat.S_IFSOCK | 0o600),
            b"symlink": Symlink(mode=stat.S_IFLNK | 0o777, target=b"/usr/bin/env"),
            b"two": regular(b"2" * 5000),
            b"white": directory({b"gone": Device(mode=stat.S_IFCHR | 0o600, rdev=0)}),
        },
        xattrs=LABEL,
    )


SAMPLE = bytes(write_image(sample_tree()))
SAMPLE_SHA512 = bytes(
    write_image(directory({b"ext": external(digest=bytes(64), payload=b"00/11")}), algorithm=Algorithm.SHA512)
)


def find(data: bytes, path: bytes, *, allow_tail: bool = False) -> DiskInode:
    """The inode at *path* (no leading slash, empty for the root)."""
    image = Image(data, allow_tail=allow_tail)
    inode = image.root
    for part in path.split(b"/") if path else ():
        nids = {name: nid for name, nid, _ in image.dirents(inode)}
        inode = image.inode(nids[part])
    return inode


def dirent_offset(data: bytes, path: bytes, name: bytes) -> int:
    """Where the 12-byte entry *name* of the directory at *path* is."""
    image = Image(data)
    for start, length in image.directory_blocks(find(data, path)):
        block = data[start : start + length]
        first = struct.unpack_from("<H", block, 8)[0]
        offsets = [struct.unpack_from("<H", block, at + 8)[0] for at in range(0, first, 12)] + [length]
        for index, (low, high) in enumerate(pairwise(offsets)):
            if block[low:high].rstrip(b"\0") == name:
                return start + 12 * index
    raise KeyError(name)


def patch(data: bytes, offset: int, form: str, *values: object) -> bytes:
    """*data* with *values* packed little-endian at *offset*."""
    changed = bytearray(data)
    struct.pack_into("<" + form, changed, offset, *values)
    return bytes(changed)
