"""Takes mounts off that tests have made."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cfstools.linux import mount as linux


def mounts_below(place: Path) -> list[bytes]:
    """The mount points below *place*, in the order in which they were mounted."""
    top = os.fsencode(os.path.realpath(place)) + b"/"
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    paths = [re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines]
    return [path for path in paths if path.startswith(top)]


def unmount_below(place: Path) -> None:
    """Take everything off that is mounted below *place*."""
    for path in reversed(mounts_below(place)):
        linux.umount(path, detach=True)
