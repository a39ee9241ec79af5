"""A strict one-pass tar reader on bytes (docs/oci.md, "Headers of tar archives")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from zlib import adler32

from cfstools.errors import Phrase, Remedy, TarError, UsageError
from cfstools.formats.tar import layout, sparse
from cfstools.formats.tar.headers import (
    LINKS,
    RawHeader,
    apply,
    bad_number,
    device_number,
    device_of,
    merge,
    odd_name,
    prefixed,
)
from cfstools.formats.tar.layout import BLOCK, HALVES, HEADER, NO_PREFIX, ZERO_BLOCK, MemberType
from cfstools.formats.tar.member import Chunk, Member, SparseMap, TarWarning, filled, label
from cfstools.formats.tar.numbers import cached_number, checksum_holds, parse_number
from cfstools.formats.tar.pax import Extension, check_global, parse_records
from cfstools.streams.buffered import READ_SIZE, BufferedReader, Read
from cfstools.streams.limits import TarLimits
from cfstools.tree.model import NO_XATTRS

_CUT_HINT = "check where it comes from; a complete archive ends with 1024 zero bytes"
_UINT32_MAX = 0xFFFFFFFF
_SLASHED = frozenset((MemberType.FILE, MemberType.HARDLINK))
_DEVICES = frozenset((MemberType.CHAR, MemberType.BLOCK))


class TarReader(BufferedReader):
    """Iterates over the members of a tar archive, each byte of the source read once and in order.

    ``read(n)`` returns 1 to *n* bytes, or none at the end. It is called, for *piece* bytes, until it returns none, even
    after the end of the archive, so that a hash below it covers the whole stream. Read the contents of a member with
    :meth:`iter_content` or :meth:`read_content` before asking for the next member; else they are skipped. With
    *skip_unknown*, members of unknown type are skipped with a warning instead of being an error.

    For a seekable source, *skip* saves reading contents that nobody asked for: called with the number of bytes to skip,
    it skips all of them and returns true, or none and returns false. It must return false at a truncated end, so that
    reading on reports it.

    An archive without end blocks may be truncated between two members. Some writers omit them, so it is accepted with a
    warning; with *require_end*, for archives whose length no digest confirms, it is an error.

    Warnings go to *on_warning*. Broken rules and exceeded limits raise :class:`TarError` whose ``where`` names offset
    and member; from then on the reader raises the same error again.
    """

    def __init__(
        self,
        read: Read,
        *,
        limits: TarLimits | None = None,
        skip: Callable[[int], bool] | None = None,
        skip_unknown: bool = False,
        require_end: bool = False,
        piece: int = READ_SIZE,
        on_warning: Callable[[TarWarning], object] | None = None,
    ) -> None:
        super().__init__(read, piece)
        self._limits = limits or TarLimits()
        self._skip_source = skip
        self._skip_unknown = skip_unknown
        self._require_end = require_end
        self._on_warning = on_warning
        self._left = 0  # stored bytes of contents not read yet
        self._padding = 0  # and of padding after them
        self._current: Member | None = None
        self._offset = 0  # of the header being read, for messages
        self._name: bytes | None = None
        self._members = 0
        self._holes = 0
        self._ended = False
        self._error: TarError | None = None

    def __iter__(self) -> Iterator[Member]:
        return self

    def __next__(self) -> Member:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise StopIteration
        self._current = None
        try:
            member = self._next_member()
        except TarError as error:
            raise self._broken(error) from error.__cause__
        if member is None:
            self._ended = True
            raise StopIteration
        self._current = member
        return member

    def iter_content(self, member: Member) -> Iterator[Chunk]:
        """Contents of the current *member* in order, holes as zeros; chunks of at most a piece, never empty.

        Once per member. A chunk may be a view of the reader's buffer, and keeps it alive. Raises
        :class:`UsageError` for any but the current member.
        """
        return filled(self.iter_regions(member))

    def iter_regions(self, member: Member) -> Iterator[Chunk | int]:
        """As :meth:`iter_content`, but a hole is yielded as its length, at least 1."""
        self._claim(member)
        if member.sparse is None:
            return self._packed(self._left)
        return self._expanded(member.sparse)

    def read_content(self, member: Member, limit: int = 1 << 20) -> bytes:
        """All contents of the current *member*; :class:`TarError` for more than *limit* bytes."""
        if member.size > limit:
            self._claim(member)
            raise self._broken(TarError(f"contents have {member.size} bytes, allowed are {limit}"))
        start, size = self._at, self._left
        if member is self._current and member.sparse is None and start + size <= len(self._buffer):
            self._current = None
            self._at, self._left = start + size, 0
            return self._buffer[start : start + size]
        return b"".join(self.iter_content(member))

    # Headers

    def _next_member(self) -> Member | None:
        while True:
            header = self._header()
            if header is None:
                return None
            self._name = None
            first = self._offset = self._base + self._at - BLOCK
            extension = None
            if header[7] in layout.EXTENSIONS:
                extension, after, first = self._extensions(header)
                if after is None:
                    return None
                header = after
            kind = layout.TYPES.get(header[7])
            if kind is not None:
                return self._member(header, kind, extension, first)
            self._unknown(header, extension)

    def _header(self) -> RawHeader | None:
        """The next header block, its checksum verified, as fields; ``None`` at the end of the archive."""
        at = self._at + self._left + self._padding
        if at + BLOCK <= len(self._buffer):
            self._at = at
        else:
            self._skip()
            at = 0
            if not self._gather(BLOCK):
                self._end_without_blocks()
                return None
            at = self._at
        self._left = self._padding = 0
        buffer = self._buffer
        header: RawHeader = HEADER.unpack_from(buffer, at)
        first, second = HALVES.unpack_from(buffer, at)
        checksum = header[6]
        # Compare the usual spelling of the sum as text; numbers.byte_sum says why Adler-32 gives it exactly.
        total = (adler32(first) & 0xFFFF) + (adler32(second) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 255
        if checksum != b"%06o\0 " % total and not checksum_holds(first, second, checksum):
            self._offset, self._name = self._base + at, None
            if first + second == ZERO_BLOCK:
                self._end_blocks()
                return None
            what = "the header's checksum does not hold"
            raise TarError(what if self._offset else f"not a tar archive: {what}")
        self._at = at + BLOCK
        return header

    def _member(self, header: RawHeader, kind: MemberType, extension: Extension | None, first: int) -> Member:
        name, mode, uid, gid, size, mtime, _, typeflag, linkname, _, _, _, prefix, _ = header
        name = name.partition(b"\0")[0]
        self._name = name
        if prefix != NO_PREFIX:
            name = self._prefixed(header)
        try:
            digits = size[:11]
            member = Member(
                name,
                kind,
                cached_number(mode),
                cached_number(uid),
                cached_number(gid),
                int(digits, 8) if not size[11] and digits.isdigit() else parse_number(size),
                cached_number(mtime),
                0,
                linkname.partition(b"\0")[0] if kind in LINKS else b"",
                0,
                0,
                NO_XATTRS,
                first,
                None,
            )
        except ValueError:
            raise bad_number(header) from None
        if extension is not None:
            apply(extension, member)
            self._name = member.name
            self._warn_all(extension.notes)
        self._check_numbers(member)
        if member.name.endswith(b"/") and kind in _SLASHED:
            self._slash(member, typeflag)
        if member.type is MemberType.FILE:
            self._left = member.size
            self._padding = -member.size % BLOCK
            if typeflag == layout.OLD_SPARSE or (extension is not None and extension.is_sparse):
                self._sparse(member, typeflag, extension)
            if extension is not None and extension.real_size not in {None, member.size}:
                raise TarError(f"SCHILY.realsize says {extension.real_size} bytes, the file has {member.size}")
        else:
            self._without_contents(member, header, extension)
        if extension is not None or not name or len(name) > self._limits.component:
            self._check_path(member.name, "name")
        return member

    # Names and numbers, the rare cases

    def _prefixed(self, header: RawHeader) -> bytes:
        """The name of a header that has a prefix."""
        assert self._name is not None
        short, self._name = self._name, prefixed(self._name, header[9], header[12], header[13])
        if odd_name(short, self._name, header):
            self._warn("the header's prefix field is not a plain prefix: some tools see another name or size")
        return self._name

    def _slash(self, member: Member, typeflag: bytes) -> None:
        """Handle a file whose name ends in a slash: in the oldest format a directory, for some tools always."""
        if typeflag == layout.OLD_FILE:
            member.type = MemberType.DIR
        else:
            word = member.type.name.lower()
            self._warn(f"a {word} whose name ends in a slash is read as a {word}: some tools make a directory of it")

    def _check_numbers(self, member: Member) -> None:
        if not (0 <= member.uid <= _UINT32_MAX and 0 <= member.gid <= _UINT32_MAX):
            raise TarError(f"owner {member.uid}:{member.gid} is out of range")
        if member.mode < 0 or member.size < 0:
            raise TarError("the mode or the size is negative")
        member.mode &= 0o7777
        self._members += 1
        if self._members > self._limits.members:
            raise TarError(f"the archive has more than {self._limits.members} members")

    def _without_contents(self, member: Member, header: RawHeader, extension: Extension | None) -> None:
        """Check a member that is not a file. By its type no contents follow, whatever size it states."""
        kind = member.type
        word = kind.name.lower()
        if member.size:
            self._warn(f"the {word} states a size of {member.size}; it has no contents")
            member.size = 0
        if extension is not None and extension.is_sparse:
            raise TarError(f"the {word} is marked as a sparse file")
        if kind is MemberType.HARDLINK:
            self._check_path(member.linkname, "link target")
        elif kind is MemberType.SYMLINK:
            if not 0 < len(member.linkname) <= self._limits.symlink:
                allowed = f"allowed are 1 to {self._limits.symlink}"
                raise TarError(f"the link target has {len(member.linkname)} bytes, {allowed}")
        elif kind in _DEVICES:
            member.devmajor, member.devminor = number = device_number(header)
            if extension is not None and (found := device_of(extension, number)) != number:
                member.devmajor, member.devminor = found
                self._warn(f"a PAX record makes device number {number} {found}: some tools do not read it")

    def _check_path(self, path: bytes, what: str) -> None:
        limits = self._limits
        if not path:
            raise TarError(f"the {what} is empty")
        if len(path) > limits.path:
            raise TarError(f"the {what} has {len(path)} bytes, allowed are {limits.path}")
        if len(path) > limits.component and max(map(len, path.split(b"/"))) > limits.component:
            raise TarError(f"a component of the {what} is longer than {limits.component} bytes")

    def _sparse(self, member: Member, typeflag: bytes, extension: Extension | None) -> None:
        """Read the map of a sparse file; the member gets its expanded size and its real name."""
        packed = self._left
        limits = self._limits
        if typeflag == layout.OLD_SPARSE:
            if extension is not None and extension.is_sparse:
                raise TarError("the file is sparse in two formats")
            header = self._buffer[self._at - BLOCK : self._at]
            found = sparse.old_gnu_map(header, self._block, packed, limits)
        else:
            assert extension is not None
            name = extension.sparse.get(b"name")
            if name:
                member.name = self._name = name
            if sparse.pax_version(extension) == 1:
                found, taken = sparse.pax_data_map(extension, self._block, packed, limits)
                self._left = packed - taken
            else:
                found = sparse.pax_header_map(extension, packed, limits)
        self._holes += found.size - self._left
        if self._holes > limits.holes:
            raise TarError(
                f"sparse files have more than {limits.holes} bytes of holes",
                hint=Phrase("if the source is trusted, raise the limit: {}", Remedy.MAX_UNPACKED),
            )
        member.sparse = found
        member.size = found.size

    def _unknown(self, header: RawHeader, extension: Extension | None) -> None:
        typeflag = header[7]
        self._name = header[0].partition(b"\0")[0]
        meaning = layout.UNKNOWN_NAMES.get(typeflag)
        what = f"unknown member type '{label(typeflag)}'" + (f" ({meaning})" if meaning else "")
        if not self._skip_unknown:
            raise TarError(what)
        self._warn(f"{what}: skipped")
        size = extension.size if extension is not None else None
        self._left = self._size(header) if size is None else size
        self._padding = -self._left % BLOCK

    def _size(self, header: RawHeader) -> int:
        try:
            size = parse_number(header[4])
        except ValueError:
            raise bad_number(header) from None
        if size < 0:
            raise TarError("the size is negative")
        return size

    # Extended headers

    def _extensions(self, header: RawHeader) -> tuple[Extension | None, RawHeader | None, int]:
        """Read extended headers up to the member's own header: their contents, that header, and the first one's offset.

        Global headers are not applied; records in them that would change a member are refused.
        """
        seen: dict[bytes, bytes] = {}
        first = self._offset
        while True:
            typeflag = header[7]
            data = self._extension_data(header)
            if typeflag in seen:
                raise TarError(f"two {layout.EXTENSION_NAMES[typeflag]}s for one member")
            if typeflag != layout.PAX_GLOBAL:
                seen[typeflag] = data
            elif seen:
                raise TarError("a PAX global header is between an extended header and its member")
            else:
                check_global(parse_records(data))
            following = self._header()
            if following is None:
                if seen:
                    raise TarError("an extended header without a member")
                return None, None, first
            header = following
            self._offset = self._base + self._at - BLOCK
            if typeflag == layout.PAX_GLOBAL:
                first = self._offset
            if header[7] not in layout.EXTENSIONS:
                return (merge(seen, header, self._limits) if seen else None), header, first

    def _extension_data(self, header: RawHeader) -> bytes:
        size = self._size(header)
        what = layout.EXTENSION_NAMES[header[7]]
        if size > self._limits.extension:
            raise TarError(f"a {what} has {size} bytes, allowed are {self._limits.extension}")
        padded = size + -size % BLOCK
        if not self._gather(padded):
            raise TarError(f"the archive ends inside a {what}")
        data = self._buffer[self._at : self._at + size]
        self._at += padded
        return data

    # Contents

    def _claim(self, member: Member) -> None:
        if self._error is not None:
            raise self._error
        if member is not self._current:
            raise UsageError("contents can be read once, before the next member is asked for")
        self._current = None

    def _packed(self, count: int) -> Iterator[Chunk]:
        """Yield the next *count* bytes of the archive."""
        while count:
            start = self._at
            end = start + count
            if start == len(self._buffer):
                if not self._refill():
                    raise self._broken(TarError(f"the archive ends inside the contents, {count} bytes are missing"))
                continue
            if start == 0 and end >= len(self._buffer):
                chunk: Chunk = self._buffer
            else:
                chunk = memoryview(self._buffer)[start:end]
            taken = len(chunk)
            self._at = start + taken
            self._left -= taken
            count -= taken
            yield chunk

    def _expanded(self, found: SparseMap) -> Iterator[Chunk | int]:
        end = 0
        for offset, length in found.extents:
            if offset > end:
                yield offset - end
            yield from self._packed(length)
            end = offset + length
        if found.size > end:
            yield found.size - end

    def _skip(self) -> None:
        """Skip the rest of the current member's contents and padding."""
        count = self._left + self._padding
        beyond = count - (len(self._buffer) - self._at)
        if beyond > 0 and self._skip_source is not None and self._skip_source(beyond):
            self._base += len(self._buffer) + beyond
            self._buffer, self._at = b"", 0
            return
        while count:
            have = len(self._buffer) - self._at
            if have == 0:
                if not self._refill():
                    if count == self._padding:
                        # Some writers omit the last padding (umoci insert): the contents are complete.
                        return
                    inside = "padding of the contents" if count <= self._padding else "contents"
                    raise TarError(f"the archive ends inside the {inside}, {count} bytes are missing")
                continue
            step = min(have, count)
            self._at += step
            count -= step

    def _block(self) -> bytes:
        """Read one more block of the current member's map."""
        if not self._gather(BLOCK):
            raise TarError("the archive ends inside a sparse map")
        self._at += BLOCK
        return self._buffer[self._at - BLOCK : self._at]

    # The end

    def _end_without_blocks(self) -> None:
        self._offset, self._name = self._base + self._at, None
        rest = len(self._buffer) - self._at
        if rest:
            raise TarError(f"the archive ends inside a header, after {rest} of {BLOCK} bytes")
        if not self._offset:
            raise TarError("the archive is empty")
        if self._require_end:
            raise TarError("the archive ends without end blocks, it may be truncated", hint=_CUT_HINT)
        self._warn("the archive ends without end blocks")

    def _end_blocks(self) -> None:
        """Handle a zero block: a second one ends the archive; read and discard what follows."""
        self._at += BLOCK
        if not self._gather(BLOCK):
            if len(self._buffer) > self._at:
                raise TarError("the archive ends inside its end blocks")
            self._warn("the archive ends with one zero block instead of two")
            return
        if self._buffer[self._at : self._at + BLOCK] != ZERO_BLOCK:
            raise TarError("a single zero block is followed by more members")
        self._at += BLOCK
        rest = self._buffer[self._at :]
        hidden: int | None = None
        while True:
            if hidden is None and rest.count(0) != len(rest):
                hidden = self._base + self._at
            self._at = len(self._buffer)
            if not self._refill():
                break
            rest = self._buffer
        if hidden is not None:
            self._warn("data after the end of the archive is ignored")

    # Messages

    def _where(self) -> str:
        place = f"offset {self._offset:#x}/{self._offset}"
        return place if self._name is None else f"{place} (member {label(self._name)})"

    def _warn(self, what: str) -> None:
        if self._on_warning is not None:
            self._on_warning(TarWarning(self._where(), what))

    def _warn_all(self, notes: list[str]) -> None:
        for note in notes:
            self._warn(note)

    def _broken(self, error: TarError) -> TarError:
        if error.where is None:
            error.where = self._where()
        self._error = error
        return error
