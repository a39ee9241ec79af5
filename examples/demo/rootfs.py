"""A real root file system to build an image of."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "debian-root"

# What the tree is assembled from where debootstrap cannot be used, and how much of it at most.
HOST_PARTS = ("etc", "usr/bin", "usr/lib/os-release", "usr/share/doc", "usr/share/zoneinfo", "var/lib/dpkg")
HOST_BYTES = 150_000_000


def take(rootfs: Path, *, host: bool) -> str:
    """Make *rootfs* a root file system and say where it comes from; with *host* do not even try debootstrap."""
    if host:
        return assemble(rootfs)
    print("   asking debootstrap (half a minute the first time) …", flush=True)
    made = subprocess.run([SCRIPT, "bookworm"], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        subprocess.run(["cp", "--archive", "--reflink=auto", made.stdout.strip(), rootfs], check=True)
        return "a minimal Debian 12, made with debootstrap"
    print(f"   {made.stderr.strip().splitlines()[-1]}")
    return assemble(rootfs)


def assemble(rootfs: Path) -> str:
    """Copy some of the host's own files: what may be read, links as links, up to a limit."""
    left = HOST_BYTES
    for part in HOST_PARTS:
        source = Path("/") / part
        if source.is_file():
            copy(source, rootfs / part)
        for directory, _, names in os.walk(source):
            for name in sorted(names):
                if left > 0:
                    left -= copy(Path(directory, name), rootfs / Path(directory, name).relative_to("/"))
    return "assembled from this machine's own files"


def copy(source: Path, target: Path) -> int:
    """Copy a file or symbolic link and return its size; what cannot be read or is neither is left out."""
    status = source.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source, target, follow_symlinks=False)
    except PermissionError:
        return 0
    return status.st_size


def measure(rootfs: Path) -> str:
    """Say how much there is."""
    entries = size = 0
    for directory, directories, files in os.walk(rootfs):
        entries += len(directories) + len(files)
        size += sum(Path(directory, name).lstat().st_size for name in files)
    return f"{entries} entries, {size / 1e6:.0f} MB"
