"""Find everything that is wrong with an image, not only the first error (composefs format, section 10.2).

The reader refuses what would mislead a program. This check also finds what the kernel and most readers overlook: bytes
that should be zero, name filters that mask xattrs, wrong link counts, overlapping and unreachable inodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.base import Finding, Severity
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.dirents import parse_dirents
from cfstools.formats.erofs.reader import DIRECTORY, SYMLINK, DiskInode, Image, Xattr
from cfstools.formats.erofs.regions import ExtentMap, Owner, nonzero_bytes
from cfstools.formats.erofs.walk import Step, Walk
from cfstools.formats.erofs.xattrs import filter_bit, split_key
from cfstools.formats.escape import show_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_FINDINGS = 10_000
_SHARED = (Owner.SHARED_XATTR, Owner.UNREFERENCED)

Rules = Callable[[Step, Sequence[Xattr]], Iterable[str]]
"""Additional rules: called with the first name of each inode and its xattrs, yields what is wrong, in words."""


def check_image(data: Buffer, *, allow_tail: bool = False, rules: Rules | None = None) -> list[Finding]:
    """List all problems of an image; the list is empty if there are none.

    The check skips what is broken and continues. Rules about the whole tree (link counts, the number of inodes, one
    owner for every byte) are checked only if all of the tree could be read. A wrong link count of a file is a warning,
    because the reference takes it from its input (section 2.3). *rules* adds findings for each inode. The check stops
    after MAX_FINDINGS errors, with a last finding that says so; at most as many warnings are kept.
    """
    findings = _Findings()
    try:
        image = Image(data, allow_tail=allow_tail)
        _Check(image, findings, rules=rules).run()
    except ImageError as error:
        findings.add(error)
    except _TooMany:
        findings.items.append(
            Finding(severity=Severity.ERROR, what=f"more than {MAX_FINDINGS} problems, stopped here", where=None)
        )
    return findings.items


class _TooMany(Exception):
    """MAX_FINDINGS was reached."""


class _Findings:
    def __init__(self) -> None:
        self.items: list[Finding] = []
        self._counts = dict.fromkeys(Severity, 0)

    def add(self, error: ImageError, severity: Severity = Severity.ERROR) -> None:
        self._counts[severity] += 1
        if self._counts[severity] > MAX_FINDINGS:
            if severity is Severity.WARNING:
                return  # warnings must not stop the search for errors
            raise _TooMany
        self.items.append(Finding(severity=severity, what=error.what, where=error.where))


class _OpenDirectory:
    """A directory whose entries are being visited."""

    __slots__ = ("inode", "name", "subdirectories")

    def __init__(self, inode: DiskInode, name: bytes) -> None:
        self.inode = inode
        self.name = name
        self.subdirectories = 0


class _Links:
    """A file whose link count or number of names is not 1."""

    __slots__ = ("names", "nlink")

    def __init__(self, nlink: int, names: int = 1) -> None:
        self.nlink = nlink
        self.names = names


class _Check:
    def __init__(self, image: Image, findings: _Findings, *, rules: Rules | None) -> None:
        self._image = image
        self._findings = findings
        self._rules = rules
        self._walk = Walk(image, report=self._broken)
        self._map = ExtentMap(image)
        self._complete = True
        self._inodes = 0
        self._open: list[_OpenDirectory] = []
        self._links: dict[int, _Links] = {}
        self._filter_bits: dict[bytes, int] = {}
        self._deferred: list[ImageError] = []

    def run(self) -> None:
        self._check_heads()
        for step in self._walk:
            if step.first:
                self._visit(step)
            self._count(step)
        self._close_directories(0)
        if self._complete:
            self._judge_whole()

    def _broken(self, error: ImageError) -> None:
        """Report that a part of the tree could not be read."""
        self._complete = False
        self._findings.add(error)

    def _wrong(self, what: str, inode: DiskInode) -> None:
        self._findings.add(ImageError(what, where=f"{inode.where} ({self._walk.path()})"))

    def _check_heads(self) -> None:
        data = self._image.data
        superblock = self._image.superblock
        where = f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"
        if nonzero_bytes(data[16 : fmt.COMPOSEFS_HEADER.size]):
            self._findings.add(ImageError("reserved bytes are not zero", where="composefs header at offset 0x0"))
        start = fmt.SUPERBLOCK_OFFSET
        unused = superblock._replace(checksum=0, uuid=bytes(16), volume_name=bytes(16))
        if fmt.SUPERBLOCK.pack(*unused) != data[start : start + fmt.SUPERBLOCK.size]:
            self._findings.add(ImageError("fields that composefs does not use are not zero", where=where))
        if superblock.feature_compat != fmt.FEATURE_COMPAT:
            what = f"compatible features {superblock.feature_compat:#x}; composefs has {fmt.FEATURE_COMPAT:#x}"
            self._findings.add(ImageError(what, where=where))

    def _visit(self, step: Step) -> None:
        inode = step.inode
        self._inodes += 1
        self._check_record(inode)
        try:
            xattrs = self._image.xattrs(inode)
            if inode.kind == SYMLINK:
                self._image.symlink_target(inode)
        except ImageError as error:
            self._walk.fail(error)
            return
        self._map.add(inode)
        if xattrs:
            self._check_area(inode, xattrs)
        if inode.kind == DIRECTORY:
            self._check_blocks(inode)
        if self._rules is not None:
            for what in self._rules(step, xattrs):
                self._wrong(what, inode)

    def _check_record(self, inode: DiskInode) -> None:
        record = fmt.COMPACT_INODE if inode.compact else fmt.EXTENDED_INODE
        stored = self._image.data[inode.offset : inode.xattr_start]
        if record.pack(*record.unpack(stored)) != stored:
            self._wrong("reserved bytes of the inode are not zero", inode)
        if inode.compact:
            return
        superblock = self._image.superblock
        if (inode.mtime_sec, inode.mtime_nsec) < (superblock.build_time_sec, superblock.build_time_nsec):
            self._wrong("the mtime is before the build time of the superblock, which is the smallest", inode)

    def _check_area(self, inode: DiskInode, xattrs: Sequence[Xattr]) -> None:
        """Check name filter, reserved bytes and padding of an xattr area (section 4.4)."""
        data = self._image.data
        expected = 0xFFFFFFFF
        for key, _, _ in xattrs:
            expected &= ~self._filter_bit(key)
        stored, count = fmt.XATTR_HEADER.unpack_from(data, inode.xattr_start)
        if stored != expected:
            self._wrong(f"the xattr name filter is {stored:#010x}, the names give {expected:#010x}", inode)
        position = inode.xattr_start + fmt.XATTR_HEADER.size
        if nonzero_bytes(data[position - 7 : position]):
            self._wrong("reserved bytes of the xattr area are not zero", inode)
        position += count * fmt.XATTR_UNIT
        while position < inode.tail_start:
            position = self._check_entry_padding(position, inode.where)

    def _filter_bit(self, key: bytes) -> int:
        bit = self._filter_bits.get(key)
        if bit is None:
            bit = filter_bit(*split_key(key))
            if len(self._filter_bits) < MAX_FINDINGS:
                self._filter_bits[key] = bit
        return bit

    def _check_entry_padding(self, start: int, where: str) -> int:
        name_length, _, value_length = fmt.XATTR_ENTRY.unpack_from(self._image.data, start)
        used: int = start + fmt.XATTR_ENTRY.size + name_length + value_length
        end = -(-used // fmt.XATTR_UNIT) * fmt.XATTR_UNIT
        if nonzero_bytes(self._image.data[used:end]):
            self._findings.add(ImageError(f"the padding of the xattr at {start:#x} is not zero", where=where))
        return end

    def _check_blocks(self, inode: DiskInode) -> None:
        """Check reserved bytes and padding of directory blocks (section 3.3); the walk reports unreadable ones."""
        for start, length in self._image.directory_blocks(inode):
            block = bytes(self._image.data[start : start + length])
            try:
                entries, used = parse_dirents(block)
            except ImageError:
                return
            if any(block[fmt.DIRENT.size - 1 : len(entries) * fmt.DIRENT.size : fmt.DIRENT.size]):
                self._wrong(f"reserved bytes of directory entries at {start:#x} are not zero", inode)
            if any(block[used:]):
                self._wrong(f"the padding of directory entries at {start:#x} is not zero", inode)

    def _count(self, step: Step) -> None:
        """Count subdirectories and names, for the comparison with link counts."""
        inode = step.inode
        self._close_directories(step.depth)
        if inode.kind == DIRECTORY:
            if self._open:
                self._open[-1].subdirectories += 1
            self._open.append(_OpenDirectory(inode, step.name))
        elif not step.first:
            self._links.setdefault(inode.nid, _Links(inode.nlink)).names += 1
        elif inode.nlink != 1:
            self._links[inode.nid] = _Links(inode.nlink)

    def _close_directories(self, depth: int) -> None:
        while len(self._open) > depth:
            directory = self._open.pop()
            inode = directory.inode
            links = directory.subdirectories + 2
            # Paths in a deep tree take much memory, so keep no more than it takes to exceed the limit.
            if inode.nlink != links and len(self._deferred) <= MAX_FINDINGS:
                what = f"link count {inode.nlink} of a directory with {directory.subdirectories} subdirectories"
                path = show_path(one.name for one in chain((directory,), reversed(self._open)))
                self._deferred.append(ImageError(what, where=f"{inode.where} ({path})"))

    def _judge_whole(self) -> None:
        """Check the rules that need the whole tree."""
        for error in self._deferred:
            self._findings.add(error)
        self._judge_links()
        if self._inodes != self._image.superblock.inode_count:
            what = f"the superblock counts {self._image.superblock.inode_count} inodes, the tree has {self._inodes}"
            self._findings.add(ImageError(what, where=f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"))
        for start, end, owner, _ in self._map.cover():
            if owner in _SHARED:
                self._check_entry_padding(start, "shared xattrs")
            elif owner is Owner.NOBODY and nonzero_bytes(self._image.data[start:end]):
                what = f"bytes up to {end:#x} belong to nothing and are not zero"
                self._findings.add(ImageError(what, where=f"offset {start:#x}"))

    def _judge_links(self) -> None:
        """Compare link counts of files with the number of names; a second walk finds the paths of the wrong ones."""
        wrong = ((nid, links) for nid, links in self._links.items() if links.nlink != links.names)
        sought = dict(islice(wrong, MAX_FINDINGS + 1))
        if not sought:
            return
        walk = Walk(self._image)
        for step in walk:
            links = sought.pop(step.inode.nid, None)
            if links is not None:
                what = f"link count {links.nlink}, but the number of names is {links.names}"
                error = ImageError(what, where=f"{step.inode.where} ({walk.path()})")
                self._findings.add(error, Severity.WARNING)
