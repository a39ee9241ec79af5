"""A small file system over /dev/fuse that says of its files what a test wants, in a process of its own.

It speaks the kernel's protocol (linux/fuse.h) itself, so that inode numbers, link counts, times and errors of
attributes can be as odd as those of real file systems in user space, and some no library would let through.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import pickle
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_SECOND = 10**9
_DIRECT = 1  # FOPEN_DIRECT_IO: the kernel does not cut what is read to the size


@dataclass
class Node:
    """One name. ``times`` is in nanoseconds, or "now" or "second" for made up at each look."""

    path: str
    mode: int
    ino: int  # 0: another one at each look
    nlink: int = 1
    content: bytes = b""  # of a file; the target of a link
    rdev: int = 0
    uid: int = 0
    gid: int = 0
    times: int | str = 1_600_000_000 * _SECOND
    ctime: int | None = None
    xattrs: dict[str, bytes | int] = field(default_factory=dict)  # a number is the error of reading it
    late: bool = False  # names that share an inode number are counted once they were looked at
    same_as: str | None = None  # the kernel is given the node of this path
    error: int = 0  # of looking it up, though it is listed
    open_error: int = 0
    unnumbered: bool = False  # listed with the number 0
    size: int | None = None  # what is said, if it is not that of the content, which is read as it is


class Fuse:
    """A mounted file system; :meth:`set` exchanges what is in it."""

    def __init__(self, mountpoint: Path, spec: Path) -> None:
        self.path = mountpoint
        self._spec = spec

    def set(self, nodes: list[Node]) -> None:
        """From now on there are *nodes* (the root is there always, but may be given as ``""``)."""
        new = self._spec.with_suffix(".new")
        new.write_bytes(pickle.dumps(nodes))
        new.rename(self._spec)


@contextmanager
def mounted(tmp_path: Path, nodes: list[Node], *, keep: int = 0) -> Iterator[Fuse]:
    """*nodes*, mounted below *tmp_path*. The kernel keeps names and attributes for *keep* seconds."""
    from tests import requirements  # not above: the server starts sooner without it

    requirements.need_mounts("fuse")
    mountpoint = tmp_path / "fuse"
    mountpoint.mkdir(parents=True)
    fuse = Fuse(mountpoint, tmp_path / "fuse.spec")
    fuse.set(nodes)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    _mount(mountpoint, options)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fuse", str(device), str(fuse._spec), str(keep)],
        cwd=requirements.REPOSITORY,
        pass_fds=[device],
    )
    os.close(device)
    try:
        yield fuse
    finally:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)
        server.kill()
        server.wait()


def _mount(mountpoint: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"cfstools-test", os.fsencode(mountpoint), b"fuse", 6, options.encode()):
        raise OSError(ctypes.get_errno(), "cannot mount fuse")


class _Server:
    """Answers one request after another."""

    def __init__(self, device: int, spec: Path, keep: int) -> None:
        self._device = device
        self._spec = spec
        self._keep = keep
        self._read_at = 0
        self._nodes: dict[str, Node] = {}
        self._ids: dict[str, int] = {"": 1}
        self._paths: dict[int, str] = {1: ""}
        self._looked: set[str] = set()
        self._numbers = itertools.count(1000)
        self._answers = {
            1: self._lookup,
            3: self._getattr,
            5: self._readlink,
            14: self._open,
            15: self._read,
            17: self._statfs,
            18: self._nothing,
            22: self._getxattr,
            23: self._listxattr,
            25: self._nothing,
            26: self._init,
            27: self._open,
            28: self._readdir,
            29: self._nothing,
            34: self._nothing,
        }

    def run(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            size, opcode, unique, nodeid, *_ = _IN_HEADER.unpack_from(request)
            if opcode in {2, 42, 36}:  # forget, and interrupt
                continue
            self._load()
            try:
                answer = self._answers.get(opcode)
                if answer is None:
                    raise OSError(errno.ENOSYS, "")
                data, error_number = answer(nodeid, request[_IN_HEADER.size : size]), 0
            except OSError as error:
                data, error_number = b"", -(error.errno or errno.EIO)
            os.write(self._device, _OUT_HEADER.pack(_OUT_HEADER.size + len(data), error_number, unique) + data)

    def _load(self) -> None:
        changed = self._spec.stat().st_mtime_ns
        if changed != self._read_at:
            self._read_at = changed
            nodes = pickle.loads(self._spec.read_bytes())
            self._nodes = {"": Node("", stat.S_IFDIR | 0o755, 1, 2), **{node.path: node for node in nodes}}

    def _node(self, nodeid: int) -> Node:
        node = self._nodes.get(self._paths[nodeid])
        if node is None:
            raise OSError(errno.ENOENT, "")
        return node

    def _attr(self, node: Node) -> bytes:
        nlink = node.nlink
        if node.late:
            nlink = sum(other.ino == node.ino and other.path in self._looked for other in self._nodes.values())
        times = node.times
        if isinstance(times, str):
            now = time.time_ns()
            times = now if times == "now" else now // _SECOND * _SECOND
        sec, nsec = divmod(times, _SECOND)
        csec, cnsec = (sec, nsec) if node.ctime is None else divmod(node.ctime, _SECOND)
        size = 0 if stat.S_ISDIR(node.mode) else len(node.content) if node.size is None else node.size
        return _ATTR.pack(
            *(node.ino or next(self._numbers), size, 1, sec, sec, csec, nsec, nsec, cnsec),
            *(node.mode, nlink, node.uid, node.gid, node.rdev, 4096, 0),
        )

    def _init(self, _nodeid: int, data: bytes) -> bytes:
        _, _, readahead, _ = struct.unpack_from("<4I", data)
        return struct.pack("<4I2H2I2HI7I", 7, 31, readahead, 0, 8, 8, 1 << 16, 1, 0, 0, 0, *[0] * 7)

    def _lookup(self, nodeid: int, data: bytes) -> bytes:
        parent = self._paths[nodeid]
        name = os.fsdecode(data.split(b"\0")[0])
        path = f"{parent}/{name}" if parent else name
        node = self._nodes.get(path)
        if node is None or node.error:
            raise OSError(node.error if node else errno.ENOENT, "")
        key = node.same_as or path
        number = self._ids.setdefault(key, len(self._ids) + 1)
        self._paths.setdefault(number, key)
        self._looked.add(path)
        return _ENTRY.pack(number, 0, self._keep, self._keep, 0, 0) + self._attr(node)

    def _getattr(self, nodeid: int, _data: bytes) -> bytes:
        return struct.pack("<Q2I", self._keep, 0, 0) + self._attr(self._node(nodeid))

    def _readlink(self, nodeid: int, _data: bytes) -> bytes:
        return self._node(nodeid).content

    def _open(self, nodeid: int, _data: bytes) -> bytes:
        node = self._node(nodeid)
        if node.open_error:
            raise OSError(node.open_error, "")
        return struct.pack("<QIi", 0, 0 if node.size is None else _DIRECT, 0)

    def _read(self, nodeid: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<2QI", data)
        return self._node(nodeid).content[offset : offset + size]

    def _statfs(self, _nodeid: int, _data: bytes) -> bytes:
        return struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *[0] * 6)

    def _nothing(self, _nodeid: int, _data: bytes) -> bytes:
        return b""

    def _getxattr(self, nodeid: int, data: bytes) -> bytes:
        room = struct.unpack_from("<I", data)[0]
        value = self._node(nodeid).xattrs.get(os.fsdecode(data[8:].split(b"\0")[0]), errno.ENODATA)
        if isinstance(value, int):
            raise OSError(value, "")
        return self._sized(value, room)

    def _listxattr(self, nodeid: int, data: bytes) -> bytes:
        names = b"".join(os.fsencode(name) + b"\0" for name in self._node(nodeid).xattrs)
        return self._sized(names, struct.unpack_from("<I", data)[0])

    @staticmethod
    def _sized(value: bytes, room: int) -> bytes:
        if not room:
            return struct.pack("<2I", len(value), 0)
        if len(value) > room:
            raise OSError(errno.ERANGE, "")
        return value

    def _readdir(self, nodeid: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<2QI", data)
        parent = self._node(nodeid).path
        nodes = [node for path, node in self._nodes.items() if path and os.path.dirname(path) == parent]
        answer = b""
        for place, node in enumerate(nodes[offset:], offset + 1):
            name = os.fsencode(os.path.basename(node.path))
            entry = (
                struct.pack("<2Q2I", 0 if node.unnumbered else node.ino or 1, place, len(name), node.mode >> 12) + name
            )
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer


if __name__ == "__main__":
    _Server(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).run()
