"""An automount point and its daemon (linux/auto_fs.h): what is opened there is mounted at that moment, or is not."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READY = 0x9360  # _IO(0x93, 0x60)
_FAIL = 0x9361
_PACKET = struct.Struct("=iiIIQIIIII256s4x")  # version, type, token, device, inode, uid, gid, pid, tgid, length, name


@contextmanager
def automount(path: Path, source: Path | None) -> Iterator[None]:
    """Make the directory *path* a place where *source* is mounted once it is opened; without one that fails."""
    from tests import requirements  # not above: the daemon starts sooner without it

    requirements.need_mounts("autofs")
    words = [sys.executable, "-m", "tests.autofs", str(path), str(source or "")]
    daemon = subprocess.Popen(words, cwd=requirements.REPOSITORY, stdout=subprocess.PIPE, process_group=0, text=True)
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline() == "ready\n"
        yield
    finally:
        daemon.stdout.close()
        # Whoever waits for the daemon hears that it is gone.
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        while subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False).returncode == 0:
            pass


def _serve(path: str, source: str) -> None:
    reading, writing = os.pipe2(os.O_DIRECT)
    os.set_inheritable(writing, True)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
    if libc.mount(b"cfstools-test", os.fsencode(path), b"autofs", 0, options):
        raise OSError(ctypes.get_errno(), "cannot mount autofs")
    os.close(writing)
    point = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    print("ready", flush=True)
    while packet := os.read(reading, _PACKET.size):
        _, _, token, *_ = _PACKET.unpack(packet)
        failed = not source or libc.mount(os.fsencode(source), os.fsencode(path), None, 4096, None)
        fcntl.ioctl(point, _FAIL if failed else _READY, token)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
