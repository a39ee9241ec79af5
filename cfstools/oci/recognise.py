"""Whether a tar archive is an image archive or a layer: by all of its members (OCI reading, "What is read").

An image archive holds nothing but parts of images: what is called as tools call such parts, and what its
``manifest.json`` names. A layer holds anything, a ``manifest.json`` or a whole layout of its own among it. So one
member that no image archive has makes a layer, wherever it stands; this is also what a pipe is told by. What could
be both is refused.
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

# What the top of a root file system is called, and the top of no image archive.
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
    """Whether the stream, which may be compressed, begins as a tar archive does, or is an empty one.

    Raises :class:`CompressionError` where its compression is damaged from the start, :class:`LimitExceeded`.
    """
    stream = open_compressed(read, limits=limits)
    block = stream.peek(BLOCK)
    if len(block) < BLOCK:
        # Nothing at all, compressed, is told apart from a cut archive by whoever reads it.
        return not block and stream.kind is not Compression.NONE
    if any(block):
        return _is_header(block)
    # Many disk images begin with zeros too: an empty archive has nothing else.
    start = stream.peek(BLOCK + MAX_LEADING_ZEROS)
    return len(start) < BLOCK + MAX_LEADING_ZEROS and not any(start)


def _is_header(block: bytes) -> bool:
    first, second = HALVES.unpack_from(block)
    return block[257:262] == b"ustar" or checksum_holds(first, second, HEADER.unpack_from(block)[6])


class Evidence:
    """What the members of an archive say of it; ends the pass over it once it is a layer for certain."""

    def __init__(self) -> None:
        self.documents: set[str] = set()
        self.parts: set[str] = set()  # files called as parts of images are
        self.others: set[str] = set()

    def sees(self, path: str, member: Member) -> bool:
        """Take note of a member; whether no image archive has such a one."""
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
        """Whether the file lies in a directory and cannot be part of an image: those are JSON or archives."""
        return "/" in path and path in self.others and not _could_be_part(head)

    def sees_fault(self) -> bool:
        """A damaged archive without any part of an image is left to who reads layers, to say what is wrong."""
        return not self.parts

    def sees_end(self, files: ArchiveFiles) -> bool:
        """Whether this is a layer. Raises :class:`OciError` for what could be either."""
        return not _is_image_archive(files, self)


def _could_be_part(head: bytes) -> bool:
    return (
        not head.strip(b"\0")
        or head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}
        or sniff(head) is not Compression.NONE
        or (len(head) >= BLOCK and _is_header(head))
    )


def _is_image_archive(files: ArchiveFiles, evidence: Evidence) -> bool:
    """Whether an archive of which all members were seen is an image archive; else it is a layer.

    Raises :class:`OciError` for what could be either, and for parts of images that nothing holds together.
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
        return True  # and not a good one, of which opening it says more
    if any(_OLD_PART.fullmatch(path) for path in parts):
        raise OciError(
            "an image archive without manifest.json, as docker wrote before 1.10",
            hint="load and save it again, or build its layer.tar files as layers:FILE with further layers",
        )
    raise OciError("has parts of an image, but neither index.json nor manifest.json", hint=ORDERS_HINT)


def _refuse_layout_below(evidence: Evidence) -> None:
    """Raise :class:`OciError` for an archive of nothing but one directory that is a layout."""
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
    """What is no part of an image, nor a directory above one, in order."""
    above = {"/".join(names[:depth]) for path in parts for names in [path.split("/")] for depth in range(1, len(names))}
    return sorted(evidence.others - parts - above)


def _named_by_manifest(files: ArchiveFiles) -> set[str] | None:
    """The files that a docker archive's manifest names; ``None`` where there is no such manifest."""
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
