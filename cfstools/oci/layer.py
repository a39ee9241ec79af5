"""Read a layer in one pass: hash its bytes, decompress, hash again, and stage its members.

Layer digest and DiffID cover the whole streams, including what follows the end of the archive (docs/oci.md,
"What is checked").
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from cfstools.errors import CfsError, CheckFailed, FormatError, OciError
from cfstools.formats.tar import Member, MemberType, TarReader, TarWarning
from cfstools.oci.aclmembers import AclSettler
from cfstools.oci.descriptor import Digest, layer_compression
from cfstools.oci.images import LayerSource
from cfstools.oci.mapping import XattrKeeper
from cfstools.progress import Stage
from cfstools.report import Report
from cfstools.streams.buffered import READ_SIZE, Read
from cfstools.streams.decompress import Compression, open_compressed
from cfstools.streams.limits import DecompressionLimits, TarLimits
from cfstools.streams.readers import HashingAside, HashingReader, ReadAhead
from cfstools.tree.model import Content, Device, Directory, Fifo, Leaf, RegularFile, Symlink
from cfstools.values import Value

ContentReader = Callable[[TarReader, Member], Content]
"""Called for each file: reads its contents from the reader and stores them."""


class LayerReport(Report):
    """One layer: digest and size as stored, DiffID and uncompressed size, number of members.

    ``remembered`` says that it was read in an earlier run, and was not fetched.
    """

    path: str
    media_type: str | None
    compression: str
    digest: str
    size: int
    diff_id: str
    uncompressed_size: int
    members: int
    remembered: bool = False


class LayerStage(Protocol):
    """What members are staged in: :class:`cfstools.tree.layers.Layer`, or what passes on to one."""

    def add(self, path: bytes, inode: Directory | Leaf) -> None:
        """Stage one entry."""

    def add_link(self, path: bytes, target: bytes) -> None:
        """Stage a hard link."""


class LayerOptions(Value):
    """How members become inodes: which attributes are kept, limits, and the mode of symbolic links (0777 as on disk).

    With ``safe_modes`` an inode whose access control list is dropped gets a mode that gives nobody more rights than the
    list did; else it keeps the mode of its header, whose group bits are the list's mask. Threads pass the layer on in
    pieces of *piece* bytes: each is handed over under the GIL, so smaller ones make threads wait more often.
    """

    xattrs: XattrKeeper
    symlink_mode: int | None = None
    safe_modes: bool = False
    tar_limits: TarLimits
    skip_unknown: bool = False
    piece: int = READ_SIZE


def read_layer(
    read: Read,
    source: LayerSource,
    layer: LayerStage,
    *,
    options: LayerOptions,
    limits: DecompressionLimits,
    content: ContentReader,
    progress: Stage,
    on_warning: Callable[[str, str], None],
) -> LayerReport:
    """Read one layer and stage its members in *layer*; *progress* counts bytes as stored.

    *on_warning* is called with a place and a text. Raises :class:`CheckFailed` if digest or DiffID are not the stated
    ones; that takes precedence over errors of a damaged stream: ``TarError`` (also for a layer without stated digests
    and end blocks), ``CompressionError``, ``LimitExceeded``, ``OciError``.
    """

    def counted(count: int) -> bytes:
        data = read(min(count, options.piece))
        progress.advance(len(data))
        return data

    # Without a digest only its end blocks tell a whole layer from one truncated between two members.
    unchecked = source.digest is None and source.diff_id is None
    stored = HashingReader(counted, _algorithm(source.digest))
    try:
        stream = open_compressed(stored.read, limits=limits, piece=options.piece)
        _check_type(source, stream.kind.value, on_warning)
        # Uncompressed bytes need not be hashed twice.
        once = stream.kind is Compression.NONE and _algorithm(source.digest) == _algorithm(source.diff_id)
        with ExitStack() as stack:
            plain = stored
            if not once:  # decompressing takes longer than all else: nothing more is done in its thread
                plain = stack.enter_context(HashingAside(stream.read, _algorithm(source.diff_id)))
            ahead = stack.enter_context(ReadAhead(stream.read if once else plain.read, piece=options.piece))
            if ahead.peek(1) or unchecked:
                staging = _Members(layer, options, content, on_warning, require_end=unchecked)
                members = staging.stage(ahead.read)
            else:  # the digest confirms that it is whole: some builders write empty layers
                members = 0
                on_warning("", "the layer is empty and changes nothing")
    except FormatError as error:
        # The read-ahead thread has ended. Hash the rest: a wrong digest is the better explanation of a damaged stream.
        _check_rest(stored, source, error)
        raise
    digest = _checked(stored, source.digest, source, "layer")
    diff_id = _checked(plain, source.diff_id, source, "uncompressed layer")
    return LayerReport(
        path=source.path,
        media_type=source.media_type,
        compression=stream.kind.value,
        digest=digest,
        size=stored.size,
        diff_id=diff_id,
        uncompressed_size=plain.size,
        members=members,
    )


def _algorithm(digest: Digest | None) -> str:
    if digest is None:
        return "sha256"
    digest.hasher()
    return digest.algorithm


def _checked(stream: HashingReader, promised: Digest | None, source: LayerSource, what: str) -> str:
    algorithm = _algorithm(promised)
    value = stream.hexdigest(algorithm)
    if promised is not None:
        promised.matches(value, f"{what} {source.path}")
    return f"{algorithm}:{value}"


def _check_rest(stored: HashingReader, source: LayerSource, error: FormatError) -> None:
    if source.digest is None:
        return
    try:
        while stored.read(READ_SIZE):
            pass
        _checked(stored, source.digest, source, "layer")
    except CheckFailed as failure:
        raise failure from error
    except CfsError:
        return


def _check_type(source: LayerSource, found: str, on_warning: Callable[[str, str], None]) -> None:
    promised = layer_compression(source.media_type) if source.media_type is not None else None
    if promised is not None and promised != found:
        on_warning("", f"the media type says compression {promised}, the bytes say {found}")


class _Members:
    """Turns members into inodes and stages them in the layer."""

    def __init__(
        self,
        layer: LayerStage,
        options: LayerOptions,
        content: ContentReader,
        on_warning: Callable[[str, str], None],
        *,
        require_end: bool,
    ) -> None:
        self._layer = layer
        self._options = options
        self._content = content
        self._on_warning = on_warning
        self._require_end = require_end

    def stage(self, read: Read) -> int:
        """Stage every member of the tar archive; returns their number."""
        options, layer, keep = self._options, self._layer, self._options.xattrs.keep
        reader = TarReader(
            read,
            limits=options.tar_limits,
            skip_unknown=options.skip_unknown,
            require_end=self._require_end,
            piece=options.piece,
            on_warning=self._warn,
        )
        # Not an attribute: it refers to this object, and a reference cycle would keep the layer until the next GC.
        acls = AclSettler(options.xattrs.keeps, self._warn, safe_modes=options.safe_modes)
        add, content, file_type = layer.add, self._content, MemberType.FILE
        count = 0
        for member in reader:
            count += 1
            if member.acls is not None or member.xattrs:
                acls.settle(member)
            if member.type is file_type:
                inode = RegularFile(
                    mode=0o100000 | member.mode,
                    uid=member.uid,
                    gid=member.gid,
                    mtime_sec=member.mtime_sec,
                    mtime_nsec=member.mtime_nsec,
                    xattrs=keep(member.xattrs) if member.xattrs else member.xattrs,
                    size=member.size,
                    content=content(reader, member) if member.size else b"",
                )
                add(member.name, inode)
            elif member.type is MemberType.HARDLINK:
                layer.add_link(member.name, member.linkname)
            else:
                add(member.name, self._other(member))
        return count

    def _other(self, member: Member) -> Directory | Leaf:
        uid, gid, sec, nsec = member.uid, member.gid, member.mtime_sec, member.mtime_nsec
        mode, xattrs = member.mode, self._options.xattrs.keep(member.xattrs)
        match member.type:
            case MemberType.DIR:
                return Directory(mode=0o040000 | mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case MemberType.SYMLINK:
                mode = 0o120000 | (mode if self._options.symlink_mode is None else self._options.symlink_mode)
                target = member.linkname
                return Symlink(
                    mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, target=target
                )
            case MemberType.FIFO:
                return Fifo(mode=0o010000 | mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs)
            case MemberType.CHAR | MemberType.BLOCK:
                mode |= 0o020000 if member.type is MemberType.CHAR else 0o060000
                rdev = device_number(member.devmajor, member.devminor)
                return Device(mode=mode, uid=uid, gid=gid, mtime_sec=sec, mtime_nsec=nsec, xattrs=xattrs, rdev=rdev)
            case _:  # pragma: no cover - files and hard links are handled above
                raise OciError(f"a member of type {member.type.name}")

    def _warn(self, warning: TarWarning) -> None:
        self._on_warning(warning.where, warning.what)


def device_number(major: int, minor: int) -> int:
    """Linux' 32-bit encoding of a device number: twelve bits of major, twenty of minor."""
    return (minor & 0xFF) | (major << 8) | ((minor & 0xFFF00) << 12)
