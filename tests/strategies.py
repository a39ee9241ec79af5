"""Random file system trees for property tests, and a plain value to compare trees by."""

from __future__ import annotations

import stat
from types import MappingProxyType
from typing import Any, TypedDict

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from cfstools.tree.model import (
    NO_XATTRS,
    Content,
    Device,
    Directory,
    External,
    Fifo,
    HardLink,
    Leaf,
    Located,
    RegularFile,
    Socket,
    Symlink,
    Unread,
    Xattrs,
)
from cfstools.tree.walk import iter_first_names
from cfstools.verity import Algorithm

U32 = 2**32 - 1
MAX_EXTERNAL = 2**53

ODD_NAMES = [
    b"-", b"!", b"#a", b"+", b",", b"...", b".a", b"a b", b" ", b"\\", b"\\x41", b"=", b"@", b"a=b", b"00", b"ff",
    b"\x01", b"\t", b"\n", b"\r", b"\x7f", b"\xff", b"\xc3\xa4", b"~", b"n" * 255, b"\xfe" * 254, b"-rf", b"$x",
]  # fmt: skip

names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text("abc-._ ", min_size=1, max_size=4).map(str.encode),
    st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(lambda name: name not in (b".", b".."))
"""Names of directory entries: some that sort before ``.``, some that need escapes, some as long as can be."""

# Keys which composefs gives a meaning: what is read back from an image may differ.
MEANINGFUL_KEYS = [
    b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.metacopy", b"trusted.overlay.x",
    b"trusted.overlay.overlay.x", b"trusted.overlay.", b"user.overlay.origin", b"user.overlay.redirect",
]  # fmt: skip
KEYS = [
    b"user.a", b"user.", b"user.a=b", b"user.\xff\n", b"user." + b"k" * 250, b"trusted.t", b"security.selinux",
    b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default", b"system.posix_acl_access2",
    b"lustre.x", b"plain", b"=", b"\\", b"-",
]  # fmt: skip

_values = st.one_of(
    st.sampled_from([b"", b"y", b"=", b"-", b"a b", b"\0", b"system_u:object_r:usr_t:s0\0", b"v" * 300]),
    st.binary(max_size=20),
    st.integers(0, 5000).map(lambda size: b"l" * size),
)


def xattrs(*, meaningful: bool = True) -> SearchStrategy[Xattrs]:
    """Attributes that fit into an inode; *meaningful* ones are those that overlayfs or composefs would look at."""
    keys = st.sampled_from(KEYS + MEANINGFUL_KEYS if meaningful else KEYS)
    made = st.dictionaries(keys, _values, max_size=6)
    return made.map(lambda pairs: MappingProxyType(pairs) if pairs else NO_XATTRS)


class _Metadata(TypedDict):
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Xattrs


@st.composite
def _metadata(draw: DrawFn, pool: list[Xattrs]) -> _Metadata:
    ids = st.sampled_from([0, 1, 1000, 65535, 65536, U32])
    return {
        "uid": draw(ids),
        "gid": draw(ids),
        "mtime_sec": draw(st.sampled_from([0, 1, -1, 1700000000, 2**31, -(2**63), 2**63 - 1])),
        "mtime_nsec": draw(st.sampled_from([0, 1, 500, 999_999_999, U32])),
        "xattrs": draw(st.sampled_from(pool)),
    }


def _mode(kind: int) -> SearchStrategy[int]:
    return st.sampled_from([0, 0o644, 0o755, 0o4711, 0o7777]).map(lambda bits: kind | bits)


@st.composite
def contents(draw: DrawFn, *, algorithm: Algorithm = Algorithm.SHA256, plain: bool = False) -> tuple[int, Content]:
    """Size and contents of a regular file; *plain* means payloads that are safe paths below a store."""
    choice = draw(st.integers(0, 3))
    if choice == 0:
        content = draw(st.one_of(st.binary(max_size=70), st.sampled_from([b"-", b"\\", b"a b", b"\0"])))
        return len(content), content
    if choice == 1:
        size = draw(st.sampled_from([64, 65, 2047, 2048, 2049, 4095, 4096, 4097, 4999, 5000]))
        return size, (b"content \xff" * size)[:size]
    digest = draw(st.one_of(st.none(), st.binary(min_size=algorithm.digest_size, max_size=algorithm.digest_size)))
    payloads: list[bytes | None] = [None, b"ab/cdef01", b"abc", b"dir/sub/file name", b"p" * 255, b"ab/" + b"f" * 62]
    if not plain:
        payloads += [b"/abs", b"-", b"a//b", b"../up", b"\xff\n=", b"/".join([b"q" * 255] * 15 + [b"z" * 255])]
    size = draw(st.sampled_from([1, 65, 4096, 4097, 8192, U32, 2**32, 2**43, 2**43 + 1, MAX_EXTERNAL]))
    return size, External(digest, draw(st.sampled_from(payloads)))


@st.composite
def leaves(
    draw: DrawFn,
    pool: list[Xattrs],
    *,
    algorithm: Algorithm = Algorithm.SHA256,
    plain: bool = False,
    whiteouts: bool = True,
) -> Leaf:
    """Inodes of all kinds but directories; *pool* are the attributes they share."""
    metadata = draw(_metadata(pool))
    nlink = draw(st.sampled_from([1, 2, 0, 65535, 65536, U32]))
    special_size = 0 if plain else draw(st.sampled_from([0, 0, 7, 2**32, 2**64 - 1]))
    match draw(st.sampled_from("rrrrllcbps")):
        case "r":
            size, content = draw(contents(algorithm=algorithm, plain=plain))
            mode = draw(_mode(stat.S_IFREG))
            return RegularFile(mode=mode, nlink=nlink, size=size, content=content, **metadata)
        case "l":
            odd = [b"target", b"-", b" ", b"../a b", b"\xff\\", b"t" * 4095, b"t" * 3900, b"t" * 2000]
            drawn = st.one_of(st.sampled_from(odd), st.binary(min_size=1, max_size=60))
            target = draw(drawn).replace(b"\0", b"0")
            return Symlink(mode=draw(_mode(stat.S_IFLNK)), nlink=nlink, target=target, **metadata)
        case "c":
            numbers = [0, 1, 259, U32] if whiteouts else [1, 259, U32]
            mode, rdev = draw(_mode(stat.S_IFCHR)), draw(st.sampled_from(numbers))
            return Device(mode=mode, nlink=nlink, rdev=rdev, size=special_size, **metadata)
        case "b":
            mode, rdev = draw(_mode(stat.S_IFBLK)), draw(st.sampled_from([0, 1793, U32]))
            return Device(mode=mode, nlink=nlink, rdev=rdev, size=special_size, **metadata)
        case "p":
            return Fifo(mode=draw(_mode(stat.S_IFIFO)), nlink=nlink, size=special_size, **metadata)
        case _:
            return Socket(mode=draw(_mode(stat.S_IFSOCK)), nlink=nlink, size=special_size, **metadata)


@st.composite
def trees(
    draw: DrawFn,
    *,
    algorithm: Algorithm = Algorithm.SHA256,
    plain: bool = False,
    whiteouts: bool = True,
    max_entries: int = 12,
) -> Directory:
    """Small trees of every kind of inode, with hard links, shared attributes and odd names.

    *plain* trees come back from an image as they were if they have no *whiteouts*: no attribute or payload that
    the format gives a meaning, no size on special files. The primary name of an inode may be any of its names.
    """
    pool = [NO_XATTRS, *draw(st.lists(xattrs(meaningful=not plain), max_size=3))]

    def directory() -> Directory:
        return Directory(mode=draw(_mode(stat.S_IFDIR)), **draw(_metadata(pool)))

    root = directory()
    directories = [root]
    inodes: list[Leaf] = []
    for _ in range(draw(st.integers(0, max_entries))):
        parent = directories[draw(st.integers(0, len(directories) - 1))]
        name = draw(names)
        if name in parent.entries:
            continue
        kind = draw(st.integers(0, 5))
        if kind == 0:
            child = directory()
            parent.entries[name] = child
            directories.append(child)
        elif kind == 1 and inodes:
            parent.entries[name] = HardLink(draw(st.sampled_from(inodes)))
        else:
            leaf = draw(leaves(pool, algorithm=algorithm, plain=plain, whiteouts=whiteouts))
            parent.entries[name] = leaf
            inodes.append(leaf)
    return root


def describe(root: Directory, *, primaries: bool = False) -> dict[bytes, tuple[Any, ...]]:
    """A tree as a plain value: what there is at each path.

    Further names of an inode refer to the one met first, depth-first in byte order. Which of its names is the
    primary one only matters with *primaries*.
    """
    described: dict[bytes, tuple[Any, ...]] = {}
    for path, inode, first in iter_first_names(root):
        described[path] = _describe_inode(inode) if first is None else ("another name of", first)
    if primaries:
        _mark_primaries(root, described)
    return described


def _describe_inode(inode: Directory | Leaf) -> tuple[Any, ...]:
    times = (inode.mtime_sec, inode.mtime_nsec)
    metadata = (oct(inode.mode), inode.uid, inode.gid, *times, sorted(inode.xattrs.items()))
    if isinstance(inode, Directory):
        return "directory", *metadata
    return *_describe_data(inode), inode.nlink, *metadata


def _describe_data(inode: Leaf) -> tuple[Any, ...]:
    match inode:
        case RegularFile(size=size, content=content):
            return *_describe_content(content), size
        case Symlink(target=target):
            return "symlink", target
        case Device(rdev=rdev, size=size):
            return "device", rdev, size
        case Fifo(size=size) | Socket(size=size):
            return type(inode).__name__.lower(), size


def _describe_content(content: Content) -> tuple[Any, ...]:
    match content:
        case bytes():
            return "inline", content
        case External(digest=digest, payload=payload):
            return "external", digest, payload
        case Located(pieces=pieces):
            return "located", pieces
        case Unread(path=path, stamp=stamp):
            return "unread", path, stamp


def _mark_primaries(root: Directory, described: dict[bytes, tuple[Any, ...]]) -> None:
    pending = [(b"", root)]
    while pending:
        prefix, directory = pending.pop()
        for name, entry in directory.entries.items():
            path = prefix + b"/" + name
            if isinstance(entry, Directory):
                pending.append((path, entry))
            else:
                described[path] += ("link" if isinstance(entry, HardLink) else "primary",)
