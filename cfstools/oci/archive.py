"""The files of a tar archive, indexed in one pass without extracting.

If the archive is seekable and not compressed, the pass skips contents, and files are later read in place. Otherwise the
pass spools the contents (:mod:`cfstools.streams.spool`), so that files can be read in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from cfstools.errors import CompressionError, LimitExceeded, OciError, TarError
from cfstools.formats.tar import Member, MemberType, TarReader
from cfstools.oci.files import missing
from cfstools.streams.buffered import Read
from cfstools.streams.decompress import Compression, open_compressed, sniff
from cfstools.streams.limits import MAX_ARCHIVE_MEMBERS, DecompressionLimits
from cfstools.streams.spool import MakeFile, RandomAccess, RangeReader, Replayable, Spool, Window
from cfstools.text import shown_path

_HEAD = 6
_SNIFFED = 512  # bytes of each member's contents that a watch sees


class Extent(NamedTuple):
    """Offset and size of a member's contents in the archive or the spool."""

    offset: int
    size: int


class _Alias(NamedTuple):
    """A member that is a link to another member; ``None`` for one that leads nowhere."""

    path: str | None


class _Sparse(NamedTuple):
    """A sparse file, whose contents are not stored contiguously."""


def member_path(name: bytes) -> str | None:
    """A member's path from the root of the archive; ``None`` for the root itself and for paths that lead out of it."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if not parts or b".." in parts:
        return None
    return b"/".join(parts).decode("utf-8", "surrogateescape")


def _link_path(member: Member) -> str | None:
    """The target of a link member, resolved lexically; ``None`` if it leads out of the archive."""
    target = member.linkname
    if member.type is MemberType.SYMLINK and not target.startswith(b"/"):
        target = member.name.rpartition(b"/")[0] + b"/" + target
    parts: list[bytes] = []
    for part in target.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return member_path(b"/".join(parts))


class Watch(Protocol):
    """Called for the members of an archive as the pass finds them. A method that returns true ends the pass."""

    def sees(self, path: str, member: Member) -> bool:
        """The pass found a member."""

    def sees_contents(self, path: str, head: bytes) -> bool:
        """The first bytes of a file's contents."""

    def sees_fault(self) -> bool:
        """The archive is damaged; return false to have the error raised."""

    def sees_end(self, files: ArchiveFiles) -> bool:
        """The pass is complete; return true if this is not an image archive."""


class ArchiveFiles:
    """The regular files of a tar archive by path; one level of links is followed. Closes *place* in the end."""

    def __init__(self, place: RandomAccess) -> None:
        self._place = place
        self._files: dict[str, Extent | _Alias | _Sparse] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None``."""
        extent = self._extent(path)
        return None if extent is None else extent.size

    @contextmanager
    def open(self, path: str) -> Iterator[Read]:
        """The file's bytes."""
        extent = self._extent(path)
        if extent is None:
            raise missing(path)
        yield RangeReader(self._place, extent.offset, extent.size).read

    def ranges(self, path: str) -> RandomAccess:
        """Random access to the file while the archive is open."""
        extent = self._extent(path)
        if extent is None:
            raise missing(path)
        return Window(self._place, extent.offset, extent.size)

    def close(self) -> None:
        """Close the archive."""
        self._place.close()

    def head(self, offset: int, size: int) -> bytes:
        """The first bytes of contents of *size* bytes at *offset*."""
        return self._place.pread(min(size, _SNIFFED), offset)

    def note(self, path: str, member: Member, offset: int) -> None:
        """Add a member with contents at *offset*. Raises :class:`OciError` for a path that is there already."""
        if member.type is MemberType.DIR:
            return
        if path in self._files:
            raise OciError("two members of one name in the archive", where=shown_path(path))
        if len(self._files) == MAX_ARCHIVE_MEMBERS:
            raise LimitExceeded(f"more than {MAX_ARCHIVE_MEMBERS} files in the archive")
        if member.type in {MemberType.SYMLINK, MemberType.HARDLINK}:
            self._files[path] = _Alias(_link_path(member))
        elif member.type is MemberType.FILE:
            self._files[path] = _Sparse() if member.sparse else Extent(offset, member.size)

    def _extent(self, path: str) -> Extent | None:
        found = self._files.get(path)
        if isinstance(found, _Alias):
            found = self._files.get(found.path) if found.path is not None else None
            if found is None or isinstance(found, _Alias):
                raise OciError("a link in the archive whose target is not a file in it", where=shown_path(path))
        if isinstance(found, _Sparse):
            raise OciError(
                "a sparse file in the archive",
                where=shown_path(path),
                hint="unpack the archive with tar, and pack it again without --sparse",
            )
        return found


def index_archive(
    source: Replayable, make_file: MakeFile, *, limits: DecompressionLimits | None = None, watch: Watch | None = None
) -> ArchiveFiles | None:
    """Index the archive in *source*. The result owns *source*.

    Returns ``None`` if *watch* ended the pass; then *source* stays open, to be read again from its start. Raises
    :class:`TarError` or :class:`CompressionError` for a damaged archive, :class:`OciError` for a path that occurs
    twice, :class:`LimitExceeded` for more than 262144 members, :class:`InputError` if reading fails.
    """
    staged: Spool | None = None
    in_place = False
    if sniff(source.peek(_HEAD)) is not Compression.NONE:
        staged = Spool(make_file)
        if watch is None:
            source.forget()
        reader = TarReader(open_compressed(source.read, limits=limits).read, skip_unknown=watch is not None)
    elif source.size is not None:
        lies = RangeReader(source.access, 0, source.size)
        reader = TarReader(lies.read, skip=lies.skip, skip_unknown=watch is not None)
        in_place = True
    else:
        reader = TarReader(open_compressed(source.read, limits=limits).read, skip_unknown=watch is not None)
    try:
        files = ArchiveFiles(source if staged is None else staged)
        whole = _pass(reader, files, staged, watch, in_place=in_place)
        if whole and watch is not None:
            whole = not watch.sees_end(files)
    except BaseException:
        if staged is not None:
            staged.close()
        raise
    if not whole:
        if staged is not None:
            staged.close()
        return None
    if staged is not None:
        source.close()
    return files


def _pass(reader: TarReader, files: ArchiveFiles, staged: Spool | None, watch: Watch | None, *, in_place: bool) -> bool:
    """Add all members to *files*; returns false if *watch* ended the pass."""
    try:
        for member in reader:
            path = member_path(member.name)
            if path is None:
                continue
            if watch is not None and watch.sees(path, member):
                return False
            offset = 0
            if member.type is MemberType.FILE and member.sparse is None:
                offset = reader.offset if staged is None else staged.size
                head = files.head(offset, member.size) if in_place else _keep(reader, member, staged)
                if watch is not None and watch.sees_contents(path, head):
                    return False
            files.note(path, member, offset)
    except (TarError, OciError, CompressionError, LimitExceeded):
        if watch is None or not watch.sees_fault():
            raise
        return False
    return True


def _keep(reader: TarReader, member: Member, staged: Spool | None) -> bytes:
    """Read a member's contents, copying them to *staged* if given; returns the first bytes."""
    head = b""
    for chunk in reader.iter_content(member):
        if len(head) < _SNIFFED:
            head += chunk[: _SNIFFED - len(head)]
        if staged is not None:
            staged.write(chunk)
    return head
