"""From the raw fields of a header block to names and messages."""

from __future__ import annotations

from cfstools.errors import TarError
from cfstools.oci.tar import layout
from cfstools.oci.tar.layout import Header, MemberType
from cfstools.oci.tar.member import Member, label
from cfstools.oci.tar.numbers import parse_number
from cfstools.oci.tar.pax import Extension

# The fields of layout.Header; making the named tuple would cost as much as the whole split.
RawHeader = tuple[bytes, ...]

LINKS = frozenset((MemberType.HARDLINK, MemberType.SYMLINK))


def apply(extension: Extension, member: Member) -> None:
    """Let what the extended headers said replace what the header says."""
    if extension.path is not None:
        member.name = extension.path
    if extension.linkpath is not None and member.type in LINKS:
        member.linkname = extension.linkpath
    if extension.size is not None:
        member.size = extension.size
    if extension.uid is not None:
        member.uid = extension.uid
    if extension.gid is not None:
        member.gid = extension.gid
    if extension.mtime is not None:
        member.mtime_sec, member.mtime_nsec = extension.mtime
    if extension.xattrs:
        member.xattrs = extension.xattrs


def prefixed(name: bytes, magic: bytes, prefix: bytes, tail: bytes) -> bytes:
    """The whole name where a header block splits it in two."""
    if magic.startswith(layout.MAGIC_USTAR):
        if tail.endswith(layout.TAIL_STAR):
            prefix = prefix[: layout.STAR_PREFIX]
    elif magic != layout.MAGIC_GNU or _has_gnu_times(prefix):
        return name
    first = prefix.partition(b"\0")[0]
    return first + b"/" + name if first else name


def _has_gnu_times(prefix: bytes) -> bool:
    """Whether the field holds GNU access and change times; old Go writers put a prefix under GNU magic."""
    try:
        parse_number(prefix[:12])
        parse_number(prefix[12:24])
    except ValueError:
        return prefix[0] > 0x7F
    return True


def bad_number(header: RawHeader) -> TarError:
    """Name the first field of *header* that does not hold a number."""
    fields = Header._make(header)
    for field in layout.NUMBER_FIELDS:
        raw: bytes = getattr(fields, field)
        try:
            parse_number(raw)
        except ValueError:
            return TarError(f"the {field} field is not a number: {label(raw)}")
    raise AssertionError  # pragma: no cover
