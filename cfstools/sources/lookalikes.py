"""What a user may not have meant: sources that look like something else, and outputs inside of the source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from cfstools.linux.contents import file_type
from cfstools.text import shown_path
from cfstools.tree.globs import GlobSet

_JSON_START = b"["
_VERSION_FILE = b"Directory Transport Version:"

# Magic numbers and their offsets, in the order they are looked for.
_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (257, b"ustar", "is a tar archive: save a pipe to a file, give it as `-`, or write layers: before its path"),
    (0, b"\x1f\x8b", "is compressed: unpack it first, or write layers: before the path of a layer tar"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed: unpack it first, or write layers: before the path of a layer tar"),
    (0, b"\xfd7zXZ\0", "is compressed: unpack it first, or write layers: before the path of a layer tar"),
    (0, b"BZh", "is compressed: unpack it first, or write layers: before the path of a layer tar"),
    (0, b"hsqs", "is a squashfs image: mount it and build the directory"),
    (1024, b"\xe2\xe1\xf5\xe0", "is an EROFS image that is no composefs image: mount it and build the directory"),
    (1080, b"\x53\xef", "is an ext2, ext3 or ext4 image: mount it and build the directory"),
    (0, b"XFSB", "is an XFS image: mount it and build the directory"),
    (65600, b"_BHRfS_M", "is a btrfs image: mount it and build the directory"),
    (32769, b"CD001", "is an ISO 9660 image: mount it and build the directory"),
    (0, b"070701", "is a cpio archive: unpack it and build the directory"),
    (0, b"070707", "is a cpio archive: unpack it and build the directory"),
    (0, b"PK\3\4", "is a zip archive: unpack it and build the directory"),
    (0, b"!<arch>\n", "is an ar archive or Debian package: unpack it and build the directory"),
    (0, b"QFI\xfb", "is a qcow2 disk image: attach it, mount it and build the directory"),
)


def advice(data: memoryview) -> str | None:
    """What to do with a file of another format, if it is a known one."""
    if not len(data):
        return "the file is empty"
    return next((f"it {what}" for at, magic, what in _KINDS if data[at : at + len(magic)] == magic), None)


def image_like(path: bytes) -> tuple[str, ...]:
    """A warning where the directory *path*, which is read as a tree, is itself how tools write an image."""
    has = {name for name in (b"manifest.json", b"index.json", b"oci-layout", b"version") if _is_file(path, name)}
    if not has and not _is_file(path, b"config.json"):
        return ()
    what = None
    if {b"manifest.json", b"version"} <= has and _begins(path, b"version", _VERSION_FILE):
        what = "an image that skopeo wrote as dir: (`skopeo copy dir:DIR oci:LAYOUT:NAME` makes a layout of it)"
    elif has & {b"index.json", b"oci-layout"} and _is_directory(path, b"blobs"):
        lacks = "index.json" if b"oci-layout" in has else "oci-layout"
        what = f"an OCI layout that lacks its {lacks}"
    elif b"manifest.json" in has and _begins(path, b"manifest.json", _JSON_START):
        what = "a docker archive unpacked (docker-archive:FILE reads the archive itself)"
    elif _is_file(path, b"config.json") and _is_directory(path, b"rootfs") and _begins(path, b"config.json", b"{"):
        what = "a runtime bundle, whose tree is the directory rootfs in it"
    return () if what is None else (f"the source looks like {what}, and is built as the plain tree it is",)


def targets_inside(path: bytes, targets: Iterable[bytes], exclude: Sequence[bytes]) -> Iterator[str]:
    """A warning for each of *targets* below the directory *path*, which the next build would find there."""
    root = os.path.join(os.path.realpath(path), b"")
    globs = GlobSet(exclude)
    for target in targets:
        real = os.path.realpath(target)
        below = real.removeprefix(root)
        if below != real and not globs.matches_directory(below, os.path.basename(below)):
            yield f"{shown_path(target)} lies inside the source, and so becomes part of images built from it"


def _is_file(path: bytes, name: bytes) -> bool:
    return file_type(os.path.join(path, name), follow=False) == stat.S_IFREG


def _is_directory(path: bytes, name: bytes) -> bool:
    return file_type(os.path.join(path, name)) == stat.S_IFDIR


def _begins(path: bytes, name: bytes, start: bytes) -> bool:
    """Whether a file begins so, after white space."""
    try:
        fd = os.open(os.path.join(path, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(fd, "rb", buffering=0) as file:
            return file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start)
    except OSError:
        return False
