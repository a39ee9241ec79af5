"""Headers of tar members as bytes (docs/distribution.md, "Data layers"): ustar, and PAX for what that cannot say.

The same inode under the same name always gives the same bytes. Owners have numbers only, no names.
"""

from __future__ import annotations

import stat

from cfstools.errors import TarError
from cfstools.formats.tar.layout import BLOCK, HEADER, PAX_LOCAL, Header, MemberType
from cfstools.formats.tar.member import label
from cfstools.tree.model import Device, Directory, Inode, Leaf, RegularFile, Socket, Symlink

END = bytes(2 * BLOCK)
"""The two zero blocks that end an archive."""

_MAGIC = b"ustar\x0000"
_PAX_NAME = b"././@PaxHeader"
_NAME_MAX = 100
_OCTAL_7, _OCTAL_11 = 0o7777777, 0o77777777777
_BLANK = b" " * 8
_ZERO = b"%07o" % 0
_TYPES = {
    stat.S_IFREG: MemberType.FILE,
    stat.S_IFLNK: MemberType.SYMLINK,
    stat.S_IFCHR: MemberType.CHAR,
    stat.S_IFBLK: MemberType.BLOCK,
    stat.S_IFDIR: MemberType.DIR,
    stat.S_IFIFO: MemberType.FIFO,
}


def padding(size: int) -> bytes:
    """The zeros behind contents of *size* bytes."""
    return bytes(-size % BLOCK)


def device_parts(rdev: int) -> tuple[int, int]:
    """Major and minor number in Linux' 32-bit encoding: twelve bits and twenty."""
    return rdev >> 8 & 0xFFF, (rdev & 0xFF) | (rdev >> 12 & 0xFFF00)


def member_header(name: bytes, inode: Directory | Leaf) -> bytes:
    """All blocks before the contents of the member that makes *name* this inode; a directory's name ends in ``/``.

    Raises :class:`TarError` for sockets, which tar does not know, and for attribute names with ``=``.
    """
    if isinstance(inode, Socket):
        raise TarError("tar cannot hold a socket", where=f"member {label(name)}")
    kind = _TYPES[stat.S_IFMT(inode.mode)]
    size = inode.size if isinstance(inode, RegularFile) else 0
    target = inode.target if isinstance(inode, Symlink) else b""
    device = inode.rdev if isinstance(inode, Device) else 0
    return _header(name, inode, kind, size=size, target=target, device=device)


def link_header(name: bytes, inode: Leaf, target: bytes) -> bytes:
    """All blocks of the member that makes *name* a hard link to *target*, a name in the archive. Raises `TarError`."""
    return _header(name, inode, MemberType.HARDLINK, size=0, target=target, device=0)


def _header(name: bytes, inode: Inode, kind: MemberType, *, size: int, target: bytes, device: int) -> bytes:
    major, minor = device_parts(device)
    block = Header(
        name=name[:_NAME_MAX],
        mode=b"%07o" % (inode.mode & 0o7777),
        uid=b"%07o" % _fitting(inode.uid, _OCTAL_7),
        gid=b"%07o" % _fitting(inode.gid, _OCTAL_7),
        size=b"%011o" % _fitting(size, _OCTAL_11),
        mtime=b"%011o" % _fitting(inode.mtime_sec, _OCTAL_11),
        checksum=_BLANK,
        typeflag=kind.value,
        linkname=target[:_NAME_MAX],
        magic=_MAGIC,
        devmajor=b"%07o" % major if device else b"",
        devminor=b"%07o" % minor if device else b"",
        prefix=b"",
        tail=b"",
    )
    records = _records(name, inode, kind, size, target)
    return (_extension(records) if records else b"") + _block(block)


def _fitting(value: int, most: int) -> int:
    """The number for a header field; 0 where a PAX record has it."""
    return value if 0 <= value <= most else 0


def _records(name: bytes, inode: Inode, kind: MemberType, size: int, target: bytes) -> bytes:
    records = []
    if len(name) > _NAME_MAX:
        records.append(_record(b"path", name))
    if len(target) > _NAME_MAX:
        records.append(_record(b"linkpath", target))
    if inode.mtime_nsec or not 0 <= inode.mtime_sec <= _OCTAL_11:
        records.append(_record(b"mtime", _time(inode.mtime_sec, inode.mtime_nsec)))
    numbers = ((b"size", size, _OCTAL_11), (b"uid", inode.uid, _OCTAL_7), (b"gid", inode.gid, _OCTAL_7))
    records += [_record(key, b"%d" % number) for key, number, most in numbers if number > most]
    if kind is not MemberType.HARDLINK:  # the inode's first name has carried them
        for key, value in sorted(inode.xattrs.items()):
            if b"=" in key:
                raise TarError(f"tar cannot hold the attribute {label(key)}", where=f"member {label(name)}")
            records.append(_record(b"SCHILY.xattr." + key, value))
    return b"".join(records)


def _time(seconds: int, nanoseconds: int) -> bytes:
    """A time as decimal text; nanoseconds count up from the seconds, the text's fraction away from zero."""
    if seconds < 0 and nanoseconds:
        seconds, nanoseconds = seconds + 1, 1_000_000_000 - nanoseconds
        return b"-%d.%09d" % (-seconds, nanoseconds)
    return b"%d.%09d" % (seconds, nanoseconds)


def _record(key: bytes, value: bytes) -> bytes:
    """One PAX record, whose decimal length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _extension(records: bytes) -> bytes:
    header = Header(
        name=_PAX_NAME,
        mode=b"%07o" % 0o644,
        uid=_ZERO,
        gid=_ZERO,
        size=b"%011o" % len(records),
        mtime=b"%011o" % 0,
        checksum=_BLANK,
        typeflag=PAX_LOCAL,
        linkname=b"",
        magic=_MAGIC,
        devmajor=b"",
        devminor=b"",
        prefix=b"",
        tail=b"",
    )
    return _block(header) + records + padding(len(records))


def _block(header: Header) -> bytes:
    """The header with its checksum, which counts its own field as spaces."""
    return HEADER.pack(*header._replace(checksum=b"%06o\0 " % sum(HEADER.pack(*header))))
