"""One layer read in one pass: its bytes hashed, decompressed, hashed again, and its members staged.

Layer digest and DiffID cover the whole streams, whatever follows the end of the archive (OCI reading,
sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Callable

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
from cfstools.streams.readers import HashingReader, ReadAhead
from cfstools.tree.layers import Layer
from cfstools.tree.model import Content, Device, Directory, Fifo, Leaf, RegularFile, Symlink
from cfstools.values import Value

ContentReader = Callable[[TarReader, Member], Content]
"""Takes a file's contents from the reader to where they are kept."""


class LayerReport(Report):
    """One layer as read: digest and size as stored, DiffID and size uncompressed, and how many members it has."""

    path: str
    media_type: str | None
    compression: str
    digest: str
    size: int
    diff_id: str
    uncompressed_size: int
    members: int


class LayerOptions(Value):
    """How members become inodes: attributes kept, limits held to, and whether symbolic links are 0777 as on disk.

    With ``safe_modes`` an inode whose access control list is not kept gets permissions that give nobody more than the
    list did; else it keeps the mode of its header, whose group bits are the list's mask.
    """

    xattrs: XattrKeeper
    symlink_mode: int | None = None
    safe_modes: bool = False
    tar_limits: TarLimits
    skip_unknown: bool = False


def read_layer(
    read: Read,
    source: LayerSource,
    layer: Layer,
    *,
    options: LayerOptions,
    limits: DecompressionLimits,
    content: ContentReader,
    progress: Stage,
    on_warning: Callable[[str, str], None],
) -> LayerReport:
    """Read one layer and stage its members in *layer*; *progress* counts bytes as stored.

    *on_warning* is called with a place and a text. Raises :class:`CheckFailed` when digest or DiffID are not those
    promised, and that rather than what a damaged stream looks like further in; else ``TarError``, also when a layer
    that promises neither has no end blocks, ``CompressionError``, ``LimitExceeded``, ``OciError``.
    """

    def counted(count: int) -> bytes:
        data = read(count)
        progress.advance(len(data))
        return data

    # Without a digest only its end blocks tell a whole layer from one truncated between two members.
    unchecked = source.digest is None and source.diff_id is None
    stored = HashingReader(counted, _algorithm(source.digest))
    try:
        stream = open_compressed(stored.read, limits=limits)
        _check_type(source, stream.kind.value, on_warning)
        # Uncompressed bytes need not be hashed twice.
        once = stream.kind is Compression.NONE and _algorithm(source.digest) == _algorithm(source.diff_id)
        plain = stored if once else HashingReader(stream.read, _algorithm(source.diff_id))
        with ReadAhead(stream.read if once else plain.read) as ahead:
            if ahead.peek(1) or unchecked:
                staging = _Members(layer, options, content, on_warning, require_end=unchecked)
                members = staging.stage(ahead.read)
            else:  # a whole one that its digest vouches for, as some builders write layers that change nothing
                members = 0
                on_warning("", "the layer has no bytes at all, and so changes nothing")
    except FormatError as error:
        # The thread has ended. Hash the rest: a wrong digest explains a damaged stream better than the stream does.
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
    """Turns members into inodes and stages them."""

    def __init__(
        self,
        layer: Layer,
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
        """Stage every member of the tar archive; the result is how many there are."""
        options, layer, keep = self._options, self._layer, self._options.xattrs.keep
        reader = TarReader(
            read,
            limits=options.tar_limits,
            skip_unknown=options.skip_unknown,
            require_end=self._require_end,
            on_warning=self._warn,
        )
        # A local, not an attribute: it refers to this object, and a cycle would keep the layer until the next GC.
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
            case _:  # pragma: no cover - files and hard links have been dealt with
                raise OciError(f"a member of type {member.type.name}")

    def _warn(self, warning: TarWarning) -> None:
        self._on_warning(warning.where, warning.what)


def device_number(major: int, minor: int) -> int:
    """Linux' 32-bit encoding of a device number: twelve bits of major, twenty of minor."""
    return (minor & 0xFF) | (major << 8) | ((minor & 0xFFF00) << 12)
