"""From dump text to a tree (composefs format, sections 6.2, 6.3 and 10.1).

Plain lines take a fast path: fields are looked up in caches of recent ones, the parent directory by the text of its
path. Everything else (escapes, odd slashes, errors) takes a slower path with the same rules.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Callable, Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from cfstools import native
from cfstools.errors import DumpError
from cfstools.formats.dump.fields import (
    CONTENT,
    COUNT,
    DIGEST,
    GID,
    MODE,
    MTIME,
    NAMES,
    NLINK,
    PATH,
    PAYLOAD,
    RDEV,
    SIZE,
    U32_MAX,
    UID,
    XATTRS,
    Remembered,
    T,
    parse_decimal,
    parse_octal,
    parse_text,
    parse_time,
    parse_u32,
    parse_xattrs,
    show,
)
from cfstools.formats.dump.links import Links
from cfstools.formats.erofs.layout import CHUNK_BITS_MAX, CHUNK_ENTRIES_MAX, INLINE_MAX, NAME_MAX, PAYLOAD_MAX
from cfstools.formats.escape import unescape
from cfstools.tree.model import (
    KINDS,
    NO_XATTRS,
    Device,
    Directory,
    External,
    Fifo,
    HardLink,
    Leaf,
    RegularFile,
    Socket,
    Symlink,
    Xattrs,
)
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE = 1 << 20
_UNSET = b"-"
_TYPE_BITS = 0o170000
_MODE_BITS = 0xFFFF  # all that an image stores
_TYPES = frozenset((S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK))
_EXTERNAL_MAX = CHUNK_ENTRIES_MAX << CHUNK_BITS_MAX


def parse_dump(data: Buffer, *, algorithm: Algorithm = Algorithm.SHA256, strict: bool = False) -> Directory:
    """Parse the dump text *data*, which may be a memory map: it is never copied as a whole.

    *algorithm* decides the length of digests. Without *strict* everything that the reference tool accepts is accepted,
    except what makes the image undefined or unusable: malformed digests and impossible sizes of external files, and
    hard links to directories. *strict* also refuses what the reference refuses in its strict mode, and malformed GID
    and RDEV fields. Raises :class:`DumpError` with the line and the field.
    """
    parser = _Parser(algorithm, strict=strict)
    with memoryview(data) as whole, whole.cast("B") as view:
        for piece in _pieces(view):
            parser.feed(piece)
        if strict and len(view) and view[-1] != ord("\n"):
            raise DumpError("the text does not end with a newline", where=f"line {parser.number}")
    return parser.finish()


def _pieces(view: memoryview) -> Iterator[bytes]:
    """Yield the text in pieces of whole lines, each without its last newline."""
    start, size, length = 0, _PIECE, len(view)
    while start < length:
        piece = bytes(view[start : start + size])
        end = piece.rfind(b"\n") if start + size < length else len(piece.removesuffix(b"\n"))
        if end < 0:  # a line longer than the piece
            size *= 2
            continue
        start += end + 1
        yield piece[:end]


class _Mode(NamedTuple):
    """A parsed MODE field."""

    bits: int  # as an image stores it
    kind: int  # the type among them
    is_link: bool


# SIZE, NLINK, UID, GID, RDEV and the two halves of MTIME.
_Numbers = tuple[int, int, int, int, int, int, int]


class _Parser:
    """Parses line after line, and keeps the state between them."""

    def __init__(self, algorithm: Algorithm, *, strict: bool) -> None:
        self.number = 0  # of the line last read, from 1
        self._strict = strict
        self._digits = 2 * algorithm.digest_size
        # Every directory by its plain path, the root being b"".
        self._directories: dict[bytes, Directory] = {}
        self._links = Links()
        self._modes = Remembered(_parse_mode, entries=1 << 12, length=16)
        self._u32 = Remembered(parse_u32, entries=1 << 16, length=32)
        self._times = Remembered(parse_time, entries=1 << 16, length=64)
        self._xattrs = Remembered(parse_xattrs, entries=1 << 12, length=1 << 10)

    def feed(self, lines: bytes) -> None:
        """Parse the next lines."""
        try:
            self._add_lines(lines)
        except DumpError as error:
            error.where = f"line {self.number}, {error.where}" if error.where else f"line {self.number}"
            raise

    def _add_all(self, lines: list[bytes]) -> None:
        for line in lines:
            self.number += 1
            self._add(line)

    def _add_lines(self, lines: bytes) -> None:
        """As :meth:`_add_all`, but let the native function parse each run of plain lines."""
        start = 0
        while True:
            parsed = native.parse_lines(
                lines, start, KINDS, self._directories, self._xattrs, NO_XATTRS, self._digits, self._strict
            )
            if parsed is None:
                self._add_all(lines[start:].split(b"\n"))
                return
            start, count = parsed
            self.number += count
            if start > len(lines):
                return
            end = lines.find(b"\n", start)
            end = end if end >= 0 else len(lines)
            self._add_all([lines[start:end]])
            if end == len(lines):
                return
            start = end + 1

    def finish(self) -> Directory:
        """The tree. Call it after the last line."""
        if not self._directories:
            raise DumpError("the text is empty, its first line must describe the root directory")
        self._links.resolve(self._directories)
        return self._directories[b""]

    def _add(self, line: bytes) -> None:
        """Add the entry that *line* describes to the tree."""
        if b"\0" in line:
            raise DumpError(f"there is a NUL byte at position {line.index(0) + 1}")
        fields = line.split(b" ", COUNT)
        if len(fields) < COUNT:
            fields.extend([b""] * (COUNT - len(fields)))
        path = fields[PATH]
        prefix, _, name = path.rpartition(b"/")
        parent = self._directories.get(prefix)
        if parent is None or not name or b"\\" in path:
            self._add_unusual(fields)
        else:
            self._add_below(parent, prefix, name, fields)

    def _add_unusual(self, fields: list[bytes]) -> None:
        """Add the root, or an entry whose path has escapes or unusual slashes."""
        path = _field(PATH, parse_text, fields)
        if not path:
            raise _refusal(PATH, "the path is empty")
        mode = self._mode(fields)
        if path == b"/" or not self._directories:
            self._add_root(path, mode, fields)
            return
        *parents, name = path.split(b"/")
        prefix = b"".join([b"/" + part for part in parents if part])
        parent = self._directories.get(prefix)
        if parent is None:
            raise _refusal(PATH, f"{show(prefix)} is not a directory that an earlier line describes")
        self._add_below(parent, prefix, name, fields)

    def _add_root(self, path: bytes, mode: _Mode, fields: list[bytes]) -> None:
        if self._directories:
            raise _refusal(PATH, "the root was described before")
        if path != b"/":
            raise _refusal(PATH, f"the first line must describe the root directory '/', not {show(path)}")
        if mode.kind != S_IFDIR or mode.is_link:
            raise _refusal(MODE, "the root must be a directory")
        self._directories[b""] = self._directory(mode.bits, fields)

    def _add_below(self, parent: Directory, prefix: bytes, name: bytes, fields: list[bytes]) -> None:
        """Add the entry *name* of *parent*, whose plain path is *prefix*."""
        bits, kind, is_link = self._modes.get(fields[MODE]) or self._mode(fields)
        entries = parent.entries
        if name in entries or not 0 < len(name) <= NAME_MAX or name in (b".", b".."):
            raise _refusal(PATH, _name_complaint(name))
        if is_link:
            entries[name] = self._link(kind, fields)
        elif kind == S_IFDIR:
            entries[name] = self._directories[b"%b/%b" % (prefix, name)] = self._directory(bits, fields)
        else:
            entries[name] = self._leaf(bits, kind, fields)

    def _mode(self, fields: list[bytes]) -> _Mode:
        return _field(MODE, self._modes.__getitem__, fields)

    def _link(self, kind: int, fields: list[bytes]) -> HardLink:
        """A hard link; the remaining fields of its line are ignored."""
        if kind == S_IFDIR:
            raise _refusal(MODE, "a directory cannot be a hard link")
        if fields[PAYLOAD] == _UNSET:
            raise _refusal(PAYLOAD, "a hard link needs the path of its target")
        return self._links.add(self.number, _field(PAYLOAD, parse_text, fields))

    def _directory(self, bits: int, fields: list[bytes]) -> Directory:
        size, _, uid, gid, _, sec, nsec = self._numbers(fields)
        if self._strict:
            _check_rdev(S_IFDIR, fields)
        _content(size, INLINE_MAX, fields)
        _payload(fields)
        xattrs = self._xattrs_of(fields)
        return Directory(mode=bits, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)

    def _leaf(self, bits: int, kind: int, fields: list[bytes]) -> Leaf:
        """The inode of a line that describes neither a directory nor a hard link."""
        size, nlink, uid, gid, rdev, sec, nsec = self._numbers(fields)
        if self._strict:
            _check_rdev(kind, fields)
        # Symlinks ignore CONTENT, so its length is not limited there.
        limit = size if kind == S_IFLNK else INLINE_MAX
        inline = b"" if fields[CONTENT] == _UNSET else _content(size, limit, fields)
        payload = _payload(fields)
        if kind == S_IFREG:
            return RegularFile(
                size=size,
                content=inline if inline or not size else self._external(size, payload, fields),
                mode=bits,
                uid=uid,
                gid=gid,
                mtime_sec=sec,
                mtime_nsec=nsec,
                xattrs=self._xattrs_of(fields),
                nlink=nlink,
            )
        if kind == S_IFLNK:
            self._check_symlink(size, payload, inline)
        common: _Common = {
            "mode": bits,
            "uid": uid,
            "gid": gid,
            "mtime_sec": sec,
            "mtime_nsec": nsec,
            "xattrs": self._xattrs_of(fields),
            "nlink": nlink,
        }
        if kind == S_IFLNK:
            return Symlink(target=payload, **common)
        return _special(kind, size, rdev, common)

    def _numbers(self, fields: list[bytes]) -> _Numbers:
        u32 = self._u32
        try:
            return (
                parse_decimal(fields[SIZE]),
                u32[fields[NLINK]],
                u32[fields[UID]],
                u32[fields[GID]],
                u32[fields[RDEV]],
                *self._times[fields[MTIME]],
            )
        except DumpError:
            return self._numbers_one_by_one(fields)

    def _numbers_one_by_one(self, fields: list[bytes]) -> _Numbers:
        """Parse them in the order in which errors are to be reported, as leniently as the reference."""
        size = _field(SIZE, parse_decimal, fields)
        nlink = _field(NLINK, parse_u32, fields)
        uid = _field(UID, parse_decimal, fields)
        # With a UID other than 0, the reference reads a malformed GID or RDEV as 0 (section 10.3, Q6).
        parse = _zero_if_malformed if uid and not self._strict else parse_u32
        gid = _field(GID, parse, fields)
        rdev = _field(RDEV, parse, fields)
        return size, nlink, uid & U32_MAX, gid, rdev, *_field(MTIME, parse_time, fields)

    def _external(self, size: int, payload: bytes, fields: list[bytes]) -> External:
        # Near 2^64 the reference accepts sizes again, because of an overflow; no kernel reads such files (10.3, Q9).
        if size > _EXTERNAL_MAX:
            raise _refusal(SIZE, f"{size} bytes are more than an external file may have")
        return External(self._digest(fields), payload or None)

    def _digest(self, fields: list[bytes]) -> bytes | None:
        """The digest of an external file; surplus digits are ignored."""
        field = fields[DIGEST]
        if field == _UNSET:
            return None
        if len(field) == self._digits and field.isalnum():
            digits = field
        else:
            digits = _field(DIGEST, parse_text, fields)[: self._digits]
        try:
            digest = unhexlify(digits)
        except ValueError:
            digest = b""
        if len(digest) * 2 != self._digits:
            raise _refusal(DIGEST, f"{show(field)} does not begin with {self._digits} hexadecimal digits")
        return digest

    def _check_symlink(self, size: int, target: bytes, content: bytes) -> None:
        if not target:
            raise _refusal(PAYLOAD, "a symbolic link needs a target")
        if self._strict and size != len(target):
            raise _refusal(SIZE, f"the target of the symbolic link is {len(target)} bytes long, not {size}")
        if self._strict and content:
            raise _refusal(CONTENT, "a symbolic link has no content")

    def _xattrs_of(self, fields: list[bytes]) -> Xattrs:
        """The extended attributes. The DIGEST in front of them must be well-formed even if it is not used."""
        if b"\\" in fields[DIGEST]:
            _field(DIGEST, unescape, fields)
        if len(fields) == COUNT:
            return NO_XATTRS
        return self._xattrs.get(fields[XATTRS]) or _field(XATTRS, self._xattrs.__getitem__, fields)


class _Common(TypedDict):
    """Arguments for every kind of leaf."""

    mode: int
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Xattrs
    nlink: int


def _parse_mode(field: bytes) -> _Mode:
    is_link = field.startswith(b"@")
    bits = parse_octal(field[is_link:]) & _MODE_BITS
    if bits & _TYPE_BITS not in _TYPES:
        raise DumpError(f"{show(field)} is the mode of no type of file")
    return _Mode(bits, bits & _TYPE_BITS, is_link)


def _zero_if_malformed(field: bytes) -> int:
    try:
        return parse_u32(field)
    except DumpError:
        return 0


def _content(size: int, limit: int, fields: list[bytes]) -> bytes:
    """The inline content, empty if unset; it must be SIZE bytes long, whatever the kind of file."""
    field = fields[CONTENT]
    if field == _UNSET:
        return b""
    content = _field(CONTENT, unescape, fields)
    if len(content) != size:
        raise _refusal(CONTENT, f"the content is {len(content)} bytes long, but SIZE says {size}")
    if size > limit:
        raise _refusal(CONTENT, f"{size} bytes of inline content, at most {limit} are allowed")
    return content


def _payload(fields: list[bytes]) -> bytes:
    """The payload or symlink target, empty if unset."""
    field = fields[PAYLOAD]
    if field == _UNSET:
        return b""
    payload = _field(PAYLOAD, parse_text, fields) if b"\\" in field else field
    if len(payload) > PAYLOAD_MAX:
        raise _refusal(PAYLOAD, f"{len(payload)} bytes, at most {PAYLOAD_MAX} are allowed")
    return payload


def _special(kind: int, size: int, rdev: int, common: _Common) -> Device | Fifo | Socket:
    if kind == S_IFIFO:
        return Fifo(size=size, **common)
    if kind == S_IFSOCK:
        return Socket(size=size, **common)
    return Device(rdev=rdev, size=size, **common)


def _check_rdev(kind: int, fields: list[bytes]) -> None:
    """Strict rule: only devices have a device number. The whole field counts, not its low 32 bits."""
    if kind not in (S_IFCHR, S_IFBLK) and parse_decimal(fields[RDEV]):
        raise _refusal(RDEV, f"{show(fields[RDEV])} is the number of a device, but this is none")


def _name_complaint(name: bytes) -> str:
    if not name:
        return "the path ends in a slash"
    if name in (b".", b".."):
        return f"{show(name)} cannot be the name of a file"
    if len(name) > NAME_MAX:
        return f"the name is {len(name)} bytes long, at most {NAME_MAX} are allowed"
    return f"there is an entry {show(name)} already"


def _field(index: int, parse: Callable[[bytes], T], fields: list[bytes]) -> T:
    """Apply *parse* to one field; errors name the field."""
    try:
        return parse(fields[index])
    except DumpError as error:
        raise _refusal(index, error.what) from None


def _refusal(index: int, what: str) -> DumpError:
    return DumpError(what, where=f"field {NAMES[index]}")
