"""PAX extended headers: records, and what they say of the next member (docs/oci.md, "Headers of tar archives")."""

from __future__ import annotations

import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from cfstools.errors import TarError
from cfstools.formats.tar.member import label
from cfstools.formats.tar.numbers import parse_decimal, parse_time
from cfstools.streams.limits import TarLimits

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_SPARSE = b"GNU.sparse."
_ACL = b"SCHILY.acl."
_SELINUX_RECORD = b"RHT.security.selinux"
_ESCAPED = re.compile(rb"%3D|%25")
_SELINUX = b"security.selinux"
_LENGTH_DIGITS = 10
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
# A NUL in these texts would let two readers see different texts.
_TEXT_KEYS = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))


@dataclass(slots=True, eq=False)
class Extension:
    """What extended headers say about one member; ``None`` or empty if they say nothing."""

    path: bytes | None = None
    linkpath: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime: tuple[int, int] | None = None
    devmajor: int | None = None
    devminor: int | None = None
    real_size: int | None = None  # SCHILY.realsize
    acls: dict[bytes, bytes] = field(default_factory=dict)  # SCHILY.acl.* without the prefix, as text
    notes: list[str] = field(default_factory=list)  # warnings: what other tools read differently
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: dict[bytes, bytes] = field(default_factory=dict)  # GNU.sparse.* without the prefix
    sparse_list: list[bytes] = field(default_factory=list)  # version 0.0: offset, length, offset, …

    @property
    def is_sparse(self) -> bool:
        """Whether any record is about a sparse file."""
        return bool(self.sparse or self.sparse_list)


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split extended header data into (key, value), in order.

    A record is ``LENGTH KEY=VALUE\\n`` where LENGTH counts the whole record; values are any bytes. Raises
    :class:`TarError`.
    """
    records = []
    at = 0
    total = len(data)
    while at < total:
        space = data.find(b" ", at, at + _LENGTH_DIGITS + 1)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarError(f"a PAX record at byte {at} of its header has no length")
        end = at + int(digits)
        if not space < end <= total:
            raise TarError(f"a PAX record at byte {at} of its header states an impossible length")
        equals = data.find(b"=", space + 1, end - 1)
        if equals <= space + 1 or data[end - 1] != 0x0A:
            raise TarError(f"a PAX record at byte {at} of its header is not LENGTH KEY=VALUE and a newline")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if 0 in key or (key in _TEXT_KEYS and 0 in value):
            raise TarError(f"PAX record {label(key)} holds a NUL")
        records.append((key, value))
        at = end
    return records


def interpret(records: list[tuple[bytes, bytes]], limits: TarLimits) -> Extension:
    """Interpret the *records* of a member. Of equal keys the last one applies.

    Attributes come from ``SCHILY.xattr.``, ``LIBARCHIVE.xattr.`` and ``RHT.security.selinux``. Raises
    :class:`TarError` for invalid values, for records that readers interpret differently, and for unknown ways of
    storing contents elsewhere.
    """
    result = Extension()
    encoded: dict[bytes, bytes] = {}
    context = b""
    for key, value in records:
        if key in _PLAIN:
            _take_plain(result, key, value)
        elif key.startswith(_SCHILY):
            result.xattrs[key[len(_SCHILY) :]] = value
        elif key.startswith(_LIBARCHIVE):
            encoded[key[len(_LIBARCHIVE) :]] = value
        elif key.startswith(_SPARSE):
            _take_sparse(result, key[len(_SPARSE) :], value)
        elif key == _SELINUX_RECORD:
            context = value
        else:
            _take_rare(result, key, value)
    if any(b"%" in name for name in result.xattrs):
        _decode_names(result, encoded)
    _add_libarchive(result.xattrs, encoded)
    if context:
        _add_selinux(result.xattrs, context)
    _check_xattrs(result.xattrs, limits)
    return result


def _take_rare(result: Extension, key: bytes, value: bytes) -> None:
    if key.startswith(_ACL) and value:
        result.acls[key[len(_ACL) :]] = value
    elif key in _REFUSED or (key, value) == (b"SCHILY.filetype", b"sparse"):
        raise TarError(f"PAX record {label(key)} says that the contents are elsewhere: not supported")


def check_global(records: list[tuple[bytes, bytes]]) -> None:
    """Raise :class:`TarError` for a global record that would change members.

    GNU tar and Python apply such records, Go and libarchive do not, so the contents would depend on the reader.
    """
    for key, _ in records:
        if key in _PLAIN or key in _REFUSED or key in _CHANGING or key.startswith(_CHANGING_PREFIXES):
            raise TarError(
                f"PAX record {label(key)} in a global header: some readers apply it to all members, some to none",
                hint="write the archive without it; a comment, as git archive writes it, may stay",
            )


_PLAIN = {
    b"path": "path",
    b"linkpath": "linkpath",
    b"size": "size",
    b"uid": "uid",
    b"gid": "gid",
    b"mtime": "mtime",
    b"SCHILY.devmajor": "devmajor",
    b"SCHILY.devminor": "devminor",
    b"SUN.devmajor": "devmajor",
    b"SUN.devminor": "devminor",
    b"SCHILY.realsize": "real_size",
}
# Solaris' sparse files, and the parts of files that GNU tar splits over several volumes.
_REFUSED = frozenset((b"SUN.holesdata", b"GNU.volume.filename", b"GNU.volume.size", b"GNU.volume.offset"))
_CHANGING = frozenset((_SELINUX_RECORD, b"SCHILY.filetype"))
_CHANGING_PREFIXES = (_SCHILY, _LIBARCHIVE, _SPARSE, _ACL)


def _decode_names(result: Extension, encoded: Collection[bytes]) -> None:
    """Decode names of attributes, in which GNU tar writes ``=`` as ``%3D`` and ``%`` as ``%25``.

    libarchive writes each attribute twice: the second time under a fully *encoded* name. Its first name may be encoded
    in the same way or, by old versions, not at all.
    """
    plain = set(map(unquote_to_bytes, encoded))
    decoded: dict[bytes, bytes] = {}
    for name, value in result.xattrs.items():
        known = name
        if name in encoded:
            known = unquote_to_bytes(name)
        elif name not in plain:
            known = _ESCAPED.sub(lambda found: b"=" if found[0] == b"%3D" else b"%", name)
        if known != name:
            text = f"extended attribute {label(name)} is read as {label(known)}: some tools do not decode it"
            result.notes.append(text)
        if decoded.setdefault(known, value) != value:
            raise TarError(f"two records of extended attribute {label(known)} disagree")
    result.xattrs = decoded


def _take_plain(result: Extension, key: bytes, value: bytes) -> None:
    attribute = _PLAIN[key]
    if not value:
        # Readers disagree about it: no value, the header's value, or zero.
        raise TarError(f"PAX record {label(key)} is empty")
    try:
        if key in _TEXT_KEYS:
            setattr(result, attribute, value)
        elif key == b"mtime":
            result.mtime = parse_time(value)
        else:
            setattr(result, attribute, parse_decimal(value))
    except ValueError:
        raise TarError(f"PAX record {label(key)} is not a valid number: {label(value)}") from None


def _take_sparse(result: Extension, key: bytes, value: bytes) -> None:
    if key in {b"offset", b"numbytes"}:
        if (key == b"numbytes") != bool(len(result.sparse_list) % 2):
            raise TarError("GNU.sparse.offset and GNU.sparse.numbytes do not come in pairs")
        result.sparse_list.append(value)
    else:
        result.sparse[key] = value


def _add_libarchive(xattrs: dict[bytes, bytes], encoded: dict[bytes, bytes]) -> None:
    """Decode names (``%XX``) and values (base64, padding optional); bsdtar writes each attribute in both ways."""
    for raw_name, raw_value in encoded.items():
        name = unquote_to_bytes(raw_name)
        stripped = raw_value.rstrip(b"=")
        if not _BASE64.fullmatch(raw_value) or len(stripped) % 4 == 1:
            raise TarError(f"LIBARCHIVE.xattr.{label(raw_name)} is not base64")
        value = binascii.a2b_base64(stripped + b"=" * (-len(stripped) % 4))
        if xattrs.setdefault(name, value) != value:
            raise TarError(f"two records of extended attribute {label(name)} disagree")


def _add_selinux(xattrs: dict[bytes, bytes], context: bytes) -> None:
    """Add the context with a NUL at its end, as libselinux writes it to disk; the record has none."""
    context = context.removesuffix(b"\0") + b"\0"
    if xattrs.setdefault(_SELINUX, context).removesuffix(b"\0") + b"\0" != context:
        raise TarError("RHT.security.selinux and another record of security.selinux disagree")


def _check_xattrs(xattrs: dict[bytes, bytes], limits: TarLimits) -> None:
    for name, value in xattrs.items():
        if not 0 < len(name) <= limits.xattr_name:
            raise TarError(f"an extended attribute's name has {len(name)} bytes, allowed are 1 to {limits.xattr_name}")
        if 0 in name:
            raise TarError(f"extended attribute name {label(name)} holds a NUL")
        if len(value) > limits.xattr_value:
            raise TarError(f"extended attribute {label(name)} has {len(value)} bytes, allowed are {limits.xattr_value}")
