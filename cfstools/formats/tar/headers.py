"""Names, device numbers and errors from the raw fields of a header block, and what extended headers change."""

from __future__ import annotations

from collections.abc import Mapping

from cfstools.errors import TarError
from cfstools.formats.tar import layout
from cfstools.formats.tar.layout import Header, MemberType
from cfstools.formats.tar.member import Member, label
from cfstools.formats.tar.numbers import parse_number
from cfstools.formats.tar.pax import Extension, interpret, parse_records
from cfstools.streams.limits import TarLimits

# The fields of layout.Header as a plain tuple: making the named tuple would double the cost of splitting.
RawHeader = tuple[bytes, ...]

_MAJOR_MAX = 0xFFF
_MINOR_MAX = 0xFFFFF
LINKS = frozenset((MemberType.HARDLINK, MemberType.SYMLINK))


def apply(extension: Extension, member: Member) -> None:
    """Replace values of the header by those of the extended headers."""
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
    if extension.acls:
        member.acls = extension.acls


def odd_name(name: bytes, whole: bytes, header: RawHeader) -> bool:
    """Whether some readers would interpret the prefix field differently; *whole* is *name* with its prefix."""
    typeflag, magic, prefix, tail = header[7], header[9], header[12], header[13]
    if magic.startswith(layout.MAGIC_USTAR):
        # Few readers know that star's prefix is shorter than the field.
        return tail.endswith(layout.TAIL_STAR) and prefix[layout.STAR_PREFIX - 1] != 0
    if magic != layout.MAGIC_GNU:
        return True
    # GNU tar stores times here in incremental archives, followed by the maps of sparse files.
    return typeflag != layout.OLD_SPARSE and (whole != name or bool(prefix[layout.GNU_TIMES :].strip(b"\0")))


def prefixed(name: bytes, magic: bytes, prefix: bytes, tail: bytes) -> bytes:
    """Join a name that the header block splits into prefix and name."""
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


def device_number(header: RawHeader) -> tuple[int, int]:
    """Major and minor number of a device; 0 and 0 in the oldest format, which has no such fields."""
    try:
        stated = (parse_number(header[10]), parse_number(header[11])) if header[9].startswith(b"ustar") else (0, 0)
    except ValueError:
        raise TarError("the device number is damaged") from None
    return _checked(*stated)


def device_of(extension: Extension, number: tuple[int, int]) -> tuple[int, int]:
    """The device number with what PAX records replace of it."""
    major = number[0] if extension.devmajor is None else extension.devmajor
    minor = number[1] if extension.devminor is None else extension.devminor
    return _checked(major, minor)


def _checked(major: int, minor: int) -> tuple[int, int]:
    if not (0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX):
        raise TarError(f"device number {major}:{minor} is out of range")
    return major, minor


def bad_number(header: RawHeader) -> TarError:
    """The error for the first field of *header* that is not a number."""
    fields = Header._make(header)
    for field in layout.NUMBER_FIELDS:
        raw: bytes = getattr(fields, field)
        try:
            parse_number(raw)
        except ValueError:
            return TarError(f"the {field} field is not a number: {label(raw)}")
    raise AssertionError  # pragma: no cover


def merge(seen: Mapping[bytes, bytes], header: RawHeader, limits: TarLimits) -> Extension:
    """Merge the extended headers *seen* before *header*, by type flag. Raises :class:`TarError` if they disagree."""
    records = seen.get(layout.PAX_LOCAL)
    result = interpret(parse_records(records), limits) if records is not None else Extension()
    for typeflag, known in ((layout.GNU_LONG_NAME, result.path), (layout.GNU_LONG_LINK, result.linkpath)):
        if typeflag not in seen:
            continue
        text, _, rest = seen[typeflag].partition(b"\0")
        if rest.strip(b"\0"):
            raise TarError(f"a {layout.EXTENSION_NAMES[typeflag]} holds a NUL")
        if known is not None and known != text:
            raise TarError(f"a {layout.EXTENSION_NAMES[typeflag]} and a PAX record disagree")
        if not text:
            raise TarError(f"a {layout.EXTENSION_NAMES[typeflag]} is empty")
        if typeflag == layout.GNU_LONG_NAME:
            result.path = text
        else:
            result.linkpath = text
        if header[9] != layout.MAGIC_GNU:
            result.notes.append(
                f"a {layout.EXTENSION_NAMES[typeflag]} before a header of another format: some tools ignore it"
            )
    return result
