"""Tell image archives and layers apart by all members of the tar archive (docs/oci.md, "What is read").

An image archive holds only parts of images: files with the names that tools give to such parts, and those that its
``manifest.json`` names. A layer holds anything, even a ``manifest.json`` or a whole layout. So a single member that no
image archive has makes the archive a layer, wherever it is; that works on a pipe too. What may be both is refused.
"""

from __future__ import annotations

import re

from cfstools.errors import CfsError, LimitExceeded, OciError
from cfstools.formats.tar import Member, MemberType
from cfstools.formats.tar.layout import BLOCK, HALVES, HEADER
from cfstools.formats.tar.numbers import checksum_holds
from cfstools.oci.archive import ArchiveFiles, member_path
from cfstools.oci.files import read_all
from cfstools.oci.jsontext import parse_json
from cfstools.streams.buffered import Read
from cfstools.streams.decompress import Compression, open_compressed, sniff
from cfstools.streams.limits import MAX_ARCHIVE_MEMBERS, MAX_JSON, MAX_LEADING_ZEROS, DecompressionLimits
from cfstools.text import quoted

ORDERS_HINT = "say what it is: docker-archive:, oci-archive: or layers: before the path"

# Names at the top of root file systems and never of image archives.
_ROOT_NAMES = frozenset(
    {
        *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "nix", "opt"),
        *("proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
    }
)
_DOCUMENTS = frozenset({"oci-layout", "index.json", "manifest.json", "repositories"})
_PART = re.compile(
    r"blobs/[a-z0-9]+(?:[.+_-][a-z0-9]+)*/[a-zA-Z0-9=_-]{32,}(?:\.tar(?:\.gz)?)?"
    r"|(?:sha256:)?[0-9a-f]{64}(?:\.json|\.tar|\.tar\.(?:gz|zst|xz|bz2)|\.tgz)?"
    r"|[0-9a-f]{64}/(?:VERSION|json|layer\.tar)"
)
_PART_DIRECTORY = re.compile(r"blobs(?:/[a-z0-9]+(?:[.+_-][a-z0-9]+)*)?|[0-9a-f]{64}")
_OLD_PART = re.compile(r"[0-9a-f]{64}/(?:json|layer\.tar)")


def begins_a_tar(read: Read, limits: DecompressionLimits | None = None) -> bool:
    """Whether the stream, which may be compressed, starts like a tar archive or is an empty archive.

    Raises :class:`CompressionError` if it is damaged at its start, :class:`LimitExceeded`.
    """
    stream = open_compressed(read, limits=limits)
    block = stream.peek(BLOCK)
    if len(block) < BLOCK:
        # An empty compressed stream passes: reading it tells it from a truncated archive.
        return not block and stream.kind is not Compression.NONE
    if any(block):
        return _is_header(block)
    # Many disk images start with zeros too; an empty archive has nothing else.
    start = stream.peek(BLOCK + MAX_LEADING_ZEROS)
    return len(start) < BLOCK + MAX_LEADING_ZEROS and not any(start)


def _is_header(block: bytes) -> bool:
    first, second = HALVES.unpack_from(block)
    return block[257:262] == b"ustar" or checksum_holds(first, second, HEADER.unpack_from(block)[6])


class Evidence:
    """Collects what the members tell about an archive; ends the pass once it is certainly a layer."""

    def __init__(self) -> None:
        self.documents: set[str] = set()
        self.parts: set[str] = set()  # files with names of image parts
        self.others: set[str] = set()

    def sees(self, path: str, member: Member) -> bool:
        """Record a member; returns whether no image archive has such a member."""
        kind = member.type
        if kind not in {MemberType.FILE, MemberType.DIR, MemberType.SYMLINK, MemberType.HARDLINK}:
            return True
        top, slash, _ = path.partition("/")
        if len(self.others) == MAX_ARCHIVE_MEMBERS:
            raise LimitExceeded(f"more than {MAX_ARCHIVE_MEMBERS} members of which none tells an archive from a layer")
        if path.rpartition("/")[2].startswith(".wh.") or (
            top in _ROOT_NAMES and (slash or kind is not MemberType.FILE)
        ):
            return True
        if kind is MemberType.DIR:
            if not _PART_DIRECTORY.fullmatch(path):
                self.others.add(path)
        elif path in _DOCUMENTS:
            self.documents.add(path)
        elif _PART.fullmatch(path):
            self.parts.add(path)
        else:
            self.others.add(path)
        return False

    def sees_contents(self, path: str, head: bytes) -> bool:
        """Whether the file is in a directory and cannot be part of an image, which is always JSON or an archive."""
        return "/" in path and path in self.others and not _could_be_part(head)

    def sees_fault(self) -> bool:
        """Whether no part of an image was seen: then the layer reader reports the damage."""
        return not self.parts

    def sees_end(self, files: ArchiveFiles) -> bool:
        """Whether this is a layer. Raises :class:`OciError` if it could be either."""
        return not _is_image_archive(files, self)


def _could_be_part(head: bytes) -> bool:
    return (
        not head.strip(b"\0")
        or head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}
        or sniff(head) is not Compression.NONE
        or (len(head) >= BLOCK and _is_header(head))
    )


def _is_image_archive(files: ArchiveFiles, evidence: Evidence) -> bool:
    """Whether an archive is an image archive, given all its members; else it is a layer.

    Raises :class:`OciError` if it could be either, and for parts of images without an index or manifest.
    """
    named = _named_by_manifest(files)
    described = named is not None or _has_index(files)
    parts = evidence.parts | {path for path in named or () if path in files}
    strangers = _strangers(evidence, parts)
    if strangers:
        if described and parts:
            what = f"could be an image archive or a layer: {quoted(strangers[0])} is no part of the image it holds"
            raise OciError(what, hint=ORDERS_HINT)
        if not parts:
            _refuse_layout_below(evidence)
        return False
    if described or not parts:
        return described
    if evidence.documents & {"index.json", "manifest.json"}:
        return True  # a damaged one: opening it reports how
    if any(_OLD_PART.fullmatch(path) for path in parts):
        raise OciError(
            "an image archive without manifest.json, as docker wrote before 1.10",
            hint="load and save it again, or build its layer.tar files as layers:FILE with further layers",
        )
    raise OciError("has parts of an image, but neither index.json nor manifest.json", hint=ORDERS_HINT)


def _refuse_layout_below(evidence: Evidence) -> None:
    """Raise :class:`OciError` if the archive holds only a directory that is a layout."""
    tops = {path.partition("/")[0] for path in evidence.others}
    top = next(iter(tops), "")
    below = {path.partition("/")[2] for path in evidence.others} - {""}
    if len(tops) != 1 or not {"oci-layout", "index.json"} <= below:
        return
    if all(path in _DOCUMENTS or _PART.fullmatch(path) or _PART_DIRECTORY.fullmatch(path) for path in below):
        raise OciError(
            f"the image layout lies in the directory {quoted(top)} of the archive",
            hint="pack it from inside (tar -C DIRECTORY -cf FILE .), or unpack it and use oci:DIRECTORY",
        )


def _strangers(evidence: Evidence, parts: set[str]) -> list[str]:
    """Sorted paths that are neither parts of an image nor directories above one."""
    above = {"/".join(names[:depth]) for path in parts for names in [path.split("/")] for depth in range(1, len(names))}
    return sorted(evidence.others - parts - above)


def _named_by_manifest(files: ArchiveFiles) -> set[str] | None:
    """The files named in a docker archive's ``manifest.json``; ``None`` if there is no valid one."""
    value = _document(files, "manifest.json")
    if not isinstance(value, list):
        return None
    named: set[str] = set()
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            return None
        layers = item.get("Layers")
        for text in [item["Config"], *(layers if isinstance(layers, list) else ())]:
            path = member_path(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
            if path is not None:
                named.add(path)
    return named


def _has_index(files: ArchiveFiles) -> bool:
    index, layout = _document(files, "index.json"), _document(files, "oci-layout")
    return (isinstance(index, dict) and isinstance(index.get("manifests"), list)) or (
        isinstance(layout, dict) and "imageLayoutVersion" in layout
    )


def _document(files: ArchiveFiles, path: str) -> object:
    try:
        return parse_json(read_all(files, path, MAX_JSON)) if path in files else None
    except CfsError:
        return None
