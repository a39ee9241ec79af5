"""Inodes and directory entries of a file system held in memory.

A tree is a :class:`Directory`. Its ``entries`` map a name (bytes, byte order is the only order) to an
:class:`Entry`: either an inode, of which this name is the *primary* name, or a :class:`HardLink` to an inode
whose primary name is elsewhere in the tree. An inode has exactly one primary name; formats number and place it
there.

Modes are whole ``st_mode`` values (type and permissions). Times are a pair of signed seconds and unsigned
nanoseconds. Extended attributes map whole names (``b"user.x"``) to values. A mapping is replaced, never changed in
place, because inodes may share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cfstools.errors import LimitExceeded, TreeError

Xattrs = Mapping[bytes, bytes]

NO_XATTRS: Xattrs = MappingProxyType({})


if TYPE_CHECKING:
    from typing import Required, TypedDict, Unpack

    class _Common(TypedDict, total=False):
        """Arguments that all kinds of inodes take."""

        mode: Required[int]
        uid: int
        gid: int
        mtime_sec: int
        mtime_nsec: int
        xattrs: Xattrs
        nlink: int


class Stamp(NamedTuple):
    """Identity of a file's contents when the source found it: if a field changes, the contents may have changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Slotted:
    """Base class of inodes and contents: attributes in slots, compared by identity, shown in full.

    No dataclasses: every command imports this module, and compiling their methods would take a twentieth of the time
    of a small command.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in slots_of(type(self)))
        return f"{type(self).__name__}({fields})"


def slots_of(kind: type) -> list[str]:
    """The names of the slots of a class, those of its bases first."""
    return [name for base in reversed(kind.__mro__) for name in getattr(base, "__slots__", ())]


class Unread(_Slotted):
    """Contents not read yet: *path* relative to the source's root, and the stamp of the file when it was found."""

    __slots__ = ("path", "stamp")

    def __init__(self, path: bytes, stamp: Stamp) -> None:
        self.path = path
        self.stamp = stamp


class External(_Slotted):
    """Contents kept as an object outside the image.

    ``digest`` is the raw fs-verity digest (32 or 64 bytes) or ``None`` when unknown; ``payload`` is the
    object's path below a store (``b"ab/cdef…"``) or ``None``.
    """

    __slots__ = ("digest", "payload")

    def __init__(self, digest: bytes | None, payload: bytes | None) -> None:
        self.digest = digest
        self.payload = payload


class Blob(NamedTuple):
    """A file that holds the contents of other files: a layer's tar, a device of an EROFS image, the image itself.

    ``number`` is its place in the image's list of blobs, counted from 1 as EROFS counts devices; 0 is the image itself.
    ``size`` is in bytes, as readers see the blob: uncompressed. ``digest`` and ``payload`` find it in a store, as those
    of :class:`External` do; the image itself has neither.
    """

    number: int
    size: int
    digest: bytes | None = None
    payload: bytes | None = None


class Piece(NamedTuple):
    """*length* bytes of a file: those from *offset* on in *blob*, or a hole, which reads as zeros, without one."""

    length: int
    blob: Blob | None
    offset: int = 0


class Located(_Slotted):
    """Contents inside other blobs, as the pieces that follow one another in the file.

    The pieces cover the file from its first byte to its last, so an offset in the file is the sum of the lengths before
    it, and nothing overlaps there. In the blobs they may lie in any order and overlap, as in images that keep equal
    chunks once. Pieces that continue each other become one.

    Raises :class:`TreeError` for a piece that is empty or not inside its blob, :class:`LimitExceeded` for more pieces
    than :data:`MAX_PIECES` or more bytes than Linux allows in a file.
    """

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(_joined(pieces))
        self.size = sum([piece.length for piece in self.pieces])
        if self.size > MAX_SIZE:
            raise LimitExceeded(f"the pieces of a file have {self.size} bytes in all; at most {MAX_SIZE} are allowed")

    @property
    def blobs(self) -> list[Blob]:
        """The blobs the pieces lie in, each once, in the order they are met."""
        return list(dict.fromkeys(piece.blob for piece in self.pieces if piece.blob is not None))

    @property
    def in_image(self) -> bool:
        """Whether a piece lies in the image itself: its place means nothing in another image."""
        return any(piece.blob is not None and not piece.blob.number for piece in self.pieces)

    def same_place(self, other: Located) -> bool:
        """Whether both name the same bytes of the same blobs, whatever numbers their images give these."""
        if self.pieces == other.pieces:
            return True
        return len(self.pieces) == len(other.pieces) and all(map(_same_bytes, self.pieces, other.pieces))


MAX_PIECES = 1 << 21
"""Pieces of one file: as many as the largest chunk table has, 16 MiB with 8 bytes for each."""

MAX_SIZE = (1 << 63) - 1


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, checked, and those that continue each other as one."""
    last: Piece | None = None
    for number, piece in enumerate(pieces):
        if number >= MAX_PIECES:
            raise LimitExceeded(f"contents in more than {MAX_PIECES} pieces")
        _check_piece(piece)
        if last is None:
            last = piece
        elif piece.blob == last.blob and piece.offset == (last.offset + last.length if piece.blob else 0):
            last = Piece(last.length + piece.length, last.blob, last.offset)
        else:
            yield last
            last = piece
    if last is not None:
        yield last


def _check_piece(piece: Piece) -> None:
    length, blob, offset = piece
    if length < 1 or offset < 0 or (blob is None and offset):
        raise TreeError(f"a piece of {length} bytes at {offset}: it must have bytes, and a hole has no offset")
    if blob is not None and offset + length > blob.size:
        raise TreeError(f"a piece of {length} bytes at {offset} in a blob of {blob.size} bytes")


def _same_bytes(one: Piece, other: Piece) -> bool:
    if one.blob is None or other.blob is None:
        return one == other
    return one._replace(blob=one.blob._replace(number=0)) == other._replace(blob=other.blob._replace(number=0))


Content = bytes | External | Located | Unread
"""Where the contents of a regular file are: inside the image (an empty file has ``b""``), in an object of their own, in
pieces of other blobs, or still in the source. The union is closed: code that handles contents has a ``case`` for each
of the four, and mypy reports where one is missing."""


class Inode(_Slotted):
    """Attributes of every kind of inode."""

    __slots__ = ("mode", "uid", "gid", "mtime_sec", "mtime_nsec", "xattrs", "nlink")  # noqa: RUF023 - in their order

    def __init__(
        self,
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_sec: int = 0,
        mtime_nsec: int = 0,
        xattrs: Xattrs = NO_XATTRS,
        nlink: int = 1,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_sec = mtime_sec
        self.mtime_nsec = mtime_nsec
        self.xattrs = xattrs
        self.nlink = nlink


class Directory(Inode):
    """A directory. ``nlink`` is unused: writers count the subdirectories."""

    __slots__ = ("entries",)

    def __init__(self, *, entries: dict[bytes, Entry] | None = None, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.entries: dict[bytes, Entry] = {} if entries is None else entries


class RegularFile(Inode):
    """A regular file; inline and located contents are exactly ``size`` bytes long."""

    __slots__ = ("size", "content")  # noqa: RUF023 - in their order

    def __init__(self, *, size: int, content: Content, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size
        self.content = content


class Symlink(Inode):
    """A symbolic link; ``target`` is 1 to 4095 bytes."""

    __slots__ = ("target",)

    def __init__(self, *, target: bytes, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.target = target


class Device(Inode):
    """A character or block device. ``rdev`` is Linux' 32-bit encoding (``st_rdev``).

    ``size`` is 0 except from dump texts, where it decides the width of the inode on disk.
    """

    __slots__ = ("rdev", "size")

    def __init__(self, *, rdev: int, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.rdev = rdev
        self.size = size

    @property
    def is_whiteout(self) -> bool:
        """Whether this is a character device 0:0, which overlayfs takes for a removed name."""
        return self.rdev == 0 and self.mode & 0o170000 == 0o020000


class Fifo(Inode):
    """A named pipe (``size`` as for :class:`Device`)."""

    __slots__ = ("size",)

    def __init__(self, *, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size


class Socket(Inode):
    """A socket (``size`` as for :class:`Device`)."""

    __slots__ = ("size",)

    def __init__(self, *, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size


Leaf = RegularFile | Symlink | Device | Fifo | Socket


class HardLink(_Slotted):
    """Another name of an inode, whose primary name is elsewhere in the tree."""

    __slots__ = ("inode",)

    def __init__(self, inode: Leaf) -> None:
        self.inode = inode


AnyInode = TypeVar("AnyInode", bound=Inode)


def copy_of(inode: AnyInode, **changes: Any) -> AnyInode:
    """A copy of *inode* with some attributes changed. Contents, xattrs and entries are shared, not copied."""
    kept = {name: getattr(inode, name) for name in slots_of(type(inode))}
    return type(inode)(**{**kept, **changes})


Entry = Directory | RegularFile | Symlink | Device | Fifo | Socket | HardLink

KINDS: tuple[type, ...] = (Directory, RegularFile, Symlink, Device, Fifo, Socket, HardLink, External, Unread)
"""The classes that native functions make and look into, in the order they expect. :class:`Located` is not among them:
native functions leave such contents to Python."""
