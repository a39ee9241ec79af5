"""Random trees for property tests: every kind of inode, awkward names, hard links."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cfstools.tree import (
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    RegularFile,
    Socket,
    Symlink,
)
from cfstools.tree.model import Leaf
from cfstools.tree.walk import iter_directories, iter_inodes

name_bytes = st.sampled_from(
    [*(bytes([c]) for c in b"abcxyz"), b"a.b", b"a-b", b"dir", b"\xff", b"new\nline", b" ", b"*"]
)
names = name_bytes | st.binary(min_size=1, max_size=12).filter(lambda n: n not in {b".", b".."}).map(
    lambda n: n.replace(b"/", b"_").replace(b"\0", b"_")
)
xattr_keys = st.sampled_from([b"user.a", b"user.b", b"security.selinux", b"trusted.t", b"system.posix_acl_access"])
xattr_maps = st.dictionaries(xattr_keys, st.binary(max_size=20), max_size=3)

_common: dict[str, Any] = {
    "uid": st.integers(0, 2**32 - 1),
    "gid": st.sampled_from([0, 1000, 65536]),
    "mtime_sec": st.integers(-(2**40), 2**40) | st.sampled_from([0, 1, 2]),
    "mtime_nsec": st.sampled_from([0, 1, 999_999_999]),
    "xattrs": xattr_maps,
    "nlink": st.sampled_from([1, 1, 1, 0, 7]),
}
_permissions = st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0])


def _modes(kind: int) -> st.SearchStrategy[int]:
    return _permissions.map(lambda bits: kind | bits)


def _inline(content: bytes, **inode: Any) -> RegularFile:
    return RegularFile(size=len(content), content=content, **inode)


_regular = st.builds(_inline, st.binary(max_size=70), mode=_modes(0o100000), **_common)
_external = st.builds(
    RegularFile,
    mode=_modes(0o100000),
    size=st.integers(65, 2**40),
    content=st.builds(External, digest=st.binary(min_size=32, max_size=32), payload=st.none()),
    **_common,
)
_symlinks = st.builds(Symlink, mode=_modes(0o120000), target=st.binary(min_size=1, max_size=20), **_common)
_devices = st.builds(
    Device,
    mode=_modes(0o020000) | _modes(0o060000),
    rdev=st.integers(0, 2**32 - 1) | st.just(0),
    **_common,
)
_fifos = st.builds(Fifo, mode=_modes(0o010000), **_common)
_sockets = st.builds(Socket, mode=_modes(0o140000), **_common)
leaves: st.SearchStrategy[Leaf] = _regular | _external | _symlinks | _devices | _fifos | _sockets


def _directories(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Directory]:
    return st.builds(Directory, mode=_modes(0o040000), entries=st.dictionaries(names, children, max_size=5), **_common)


@st.composite
def trees(draw: st.DrawFn) -> Directory:
    """A whole tree; some names are hard links to leaves with a primary name before or after them."""
    nested: st.SearchStrategy[Entry] = st.recursive(leaves, _directories, max_leaves=15)
    root = draw(_directories(nested))
    targets = [inode for inode in iter_inodes(root) if not isinstance(inode, Directory)]
    if not targets:
        return root
    directories = list(iter_directories(root))
    for _ in range(draw(st.integers(0, 6))):
        entries = draw(st.sampled_from(directories)).entries
        name = draw(names)
        if name not in entries:
            entries[name] = HardLink(draw(st.sampled_from(targets)))
    return root
