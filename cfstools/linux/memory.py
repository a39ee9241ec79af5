"""How much memory there is to take, for those who would fill it with what the kernel cannot reclaim."""

from __future__ import annotations

import os
from contextlib import suppress

_CGROUPS = b"/sys/fs/cgroup"
# Nothing nests control groups this deep; what the kernel says of the path is not trusted to end.
_GROUPS_MAX = 64


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the limits of the process' control groups; ``None``: unknown."""
    found = [left for left in (_of_machine(), _of_groups()) if left is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    with suppress(OSError), open("/proc/meminfo", "rb") as file:
        for line in file:
            words = line.split()
            if words[0] == b"MemAvailable:":
                return int(words[1]) << 10
    return None


def _of_groups() -> int | None:
    """The least that any control group (version 2) around this process has left."""
    least: int | None = None
    with suppress(OSError), open("/proc/self/cgroup", "rb") as file:
        own = next((line[3:].strip() for line in file if line.startswith(b"0::/")), None)
        for _ in range(_GROUPS_MAX if own else 0):
            place = os.path.join(_CGROUPS, (own or b"").strip(b"/"))
            left = _left(place)
            if left is not None:
                least = left if least is None else min(least, left)
            if own in (b"/", b""):
                break
            own = os.path.dirname(own or b"")
    return least


def _left(group: bytes) -> int | None:
    """What the control group *group* may take beyond what it has; caches count as free, for the kernel drops them."""
    try:
        with open(os.path.join(group, b"memory.max"), "rb") as file:
            limit = file.read().strip()
        with open(os.path.join(group, b"memory.stat"), "rb") as file:
            used = {words[0]: int(words[1]) for line in file if len(words := line.split()) == 2}
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    kept = sum(used.get(name, 0) for name in (b"anon", b"shmem", b"slab_unreclaimable", b"kernel_stack", b"pagetables"))
    return max(0, int(limit) - kept)
