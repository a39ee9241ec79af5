"""Compares two trees as whoever runs it sees them, down to the nanosecond; the result is data.

``python -m tests.fidelity look TREE [--no-contents]`` prints what is seen of a tree as JSON lines, so that a tree can
be looked at inside a namespace, or as another user, and compared elsewhere; :func:`read` takes those lines.
``python -m tests.fidelity compare A B`` prints the differences of two trees, and ends with 1 if there are any.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of one name.

    ``names`` are all names of its inode in this tree, in order. ``content`` is the digest of a file or the target of a
    link, ``xattrs`` holds values in hexadecimal by key; what fails is there by the name of its error (``!EACCES``).
    """

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int = 0
    size: int = 0
    nlink: int = 0
    names: tuple[str, ...] = ()
    content: str = ""
    xattrs: dict[str, str] = field(default_factory=dict)


Tree = dict[str, Seen]
"""What is seen at each path; bytes that are no UTF-8 as surrogates. The root is ``.``."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not the same: ``what`` is a field of :class:`Seen`, ``xattr KEY``, or ``missing``/``extra``."""

    path: str
    what: str
    expected: object = None
    found: object = None


def look(tree: bytes, *, contents: bool = True) -> Tree:
    """Look at a whole tree. Never follows a link, and opens nothing but regular files and directories."""
    seen: Tree = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    for path in _paths(tree):
        name = os.fsdecode(path)
        full = os.path.join(tree, path)
        status = os.lstat(full)
        seen[name] = _see(full, status, contents=contents)
        if not stat.S_ISDIR(status.st_mode):
            inodes.setdefault((status.st_dev, status.st_ino), []).append(name)
    for names in inodes.values():
        if len(names) > 1:
            for name in names:
                seen[name] = replace(seen[name], names=tuple(sorted(names)))
    return seen


def compare(expected: Tree, found: Tree) -> list[Difference]:
    """Return all differences, in the order of the paths."""
    differences = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            differences.append(Difference(path=path, what="missing", expected=expected[path].kind))
        elif path not in expected:
            differences.append(Difference(path=path, what="extra", found=found[path].kind))
        else:
            differences += _compare_one(path, expected[path], found[path])
    return differences


Allowed = Callable[[Difference, Seen | None], bool]
"""Whether a difference is one that may be; it is told what the expected tree has there."""


def subtract(
    differences: Iterable[Difference], expected: Tree, allowed: dict[str, Allowed]
) -> tuple[list[Difference], dict[str, int]]:
    """Take away differences that may be. Returns those left, and how many each name of *allowed* took."""
    left, counts = [], dict.fromkeys(allowed, 0)
    for difference in differences:
        inode = expected.get(difference.path)
        name = next((name for name, allows in allowed.items() if allows(difference, inode)), None)
        if name is None:
            left.append(difference)
        else:
            counts[name] += 1
    return left, counts


def read(lines: bytes) -> Tree:
    """Take what ``look`` printed."""
    tree: Tree = {}
    for line in lines.splitlines():
        path, values = json.loads(line)
        tree[path] = Seen(**{**values, "names": tuple(values["names"])})
    return tree


def write(tree: Tree) -> Iterator[str]:
    """Yield the lines that :func:`read` takes."""
    for path, seen in tree.items():
        yield json.dumps([path, asdict(seen)])


def _paths(tree: bytes) -> Iterator[bytes]:
    """Yield all names below a tree, relative to it, parents first; directories that cannot be listed end there."""
    pending = [b"."]
    while pending:
        path = pending.pop()
        yield path
        full = os.path.join(tree, path)
        if stat.S_ISDIR(os.lstat(full).st_mode):
            try:
                names = sorted(os.listdir(full), reverse=True)
            except OSError:  # the content of the directory tells
                continue
            pending += [name if path == b"." else os.path.join(path, name) for name in names]


def _see(path: bytes, status: os.stat_result, *, contents: bool) -> Seen:
    # The size and the link count of a directory are the file system's own business.
    directory = stat.S_ISDIR(status.st_mode)
    return Seen(
        kind=_KINDS[stat.S_IFMT(status.st_mode)],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev,
        size=0 if directory else status.st_size,
        nlink=0 if directory else status.st_nlink,
        content=_content(path, status.st_mode, contents=contents),
        xattrs=_xattrs(path),
    )


def _content(path: bytes, mode: int, *, contents: bool) -> str:
    try:
        if stat.S_ISLNK(mode):
            return os.fsdecode(os.readlink(path))
        if stat.S_ISDIR(mode):
            os.listdir(path)
        if stat.S_ISREG(mode) and contents:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOCTTY), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _name(error)
    return ""


def _xattrs(path: bytes) -> dict[str, str]:
    try:
        keys = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        # A file system may say so where no inode of it has any.
        return {} if error.errno == errno.EOPNOTSUPP else {"": _name(error)}
    values = {}
    for key in keys:
        try:
            values[key] = os.getxattr(path, key, follow_symlinks=False).hex()
        except OSError as error:
            values[key] = _name(error)
    return values


def _name(error: OSError) -> str:
    return "!" + errno.errorcode.get(error.errno or 0, str(error.errno))


def _compare_one(path: str, expected: Seen, found: Seen) -> Iterator[Difference]:
    for what in ("kind", "mode", "uid", "gid", "mtime_ns", "rdev", "size", "nlink", "names", "content"):
        ours, theirs = getattr(expected, what), getattr(found, what)
        if ours != theirs:
            yield Difference(path=path, what=what, expected=ours, found=theirs)
    for key in sorted(expected.xattrs.keys() | found.xattrs.keys()):
        if expected.xattrs.get(key) != found.xattrs.get(key):
            yield Difference(
                path=path, what=f"xattr {key}", expected=expected.xattrs.get(key), found=found.xattrs.get(key)
            )


def main(arguments: list[str]) -> int:
    """Look or compare."""
    match arguments:
        case ["look", tree, *options] if options in ([], ["--no-contents"]):
            for line in write(look(os.fsencode(tree), contents=not options)):
                print(line)
        case ["compare", first, second]:
            differences = compare(look(os.fsencode(first)), look(os.fsencode(second)))
            for difference in differences:
                print(json.dumps(asdict(difference)))
            return 1 if differences else 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
