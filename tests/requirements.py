"""What a test needs from the machine: a missing thing skips the test at home and fails it in CI.

CI is where ``CI=true`` or ``CFSTOOLS_REQUIRE_ALL`` is set: there every test must run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests import reference

REPOSITORY = reference.REPOSITORY
REQUIRE_ALL = os.environ.get("CI") == "true" or bool(os.environ.get("CFSTOOLS_REQUIRE_ALL"))

NEEDS_GO = pytest.mark.may_skip("needs a tool that is built where there is Go")


def missing(reason: str) -> NoReturn:
    """End the test because something is not there: a failure in CI, else a skip."""
    if REQUIRE_ALL:
        pytest.fail(f"{reason} (and this run must not skip)", pytrace=False)
    pytest.skip(reason)


def need_root() -> None:
    """Go on only as root."""
    if os.geteuid() != 0:
        missing("needs root")


def need_command(*names: str) -> None:
    """Go on only if each of these commands is installed."""
    for name in names:
        if shutil.which(name) is None:
            missing(f"needs the command {name}")


def need_mounts(*file_systems: str) -> None:
    """Go on only as root, with mount namespaces, and with these file systems in the kernel."""
    need_root()
    need_command("unshare", "mount")
    probe = subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        missing("needs the right to make a mount namespace")
    for name in file_systems:
        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "-q", name], capture_output=True, check=False)
        if f"\t{name}\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            missing(f"needs {name} in the kernel")


def need_fuse_for_users() -> None:
    """Go on only where users can mount by fusermount3; /dev/fuse itself is opened for them by ``tests.users``."""
    need_mounts("fuse")
    need_command("fusermount3")


def need_overlay_for_users() -> None:
    """Go on only where the kernel's overlay takes data-only layers from users (Linux 6.16).

    Tried with mount(8), so that a wrong answer of ours fails tests instead of skipping them.
    """
    need_mounts("overlay")
    script = (
        "mount -t tmpfs tmpfs /mnt; cd /mnt; mkdir top data merged;"
        "mount -t overlay -o userxattr,ro,lowerdir=/mnt/top::/mnt/data overlay merged"
    )
    # As root of a user namespace that is not the first; --setgroups and maps are written by unshare.
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        missing(f"needs an overlay with data layers for users (Linux 6.16): {probe.stderr.strip()}")


def debian_root(kind: str) -> Path:
    """Return the Debian root of this kind, making it if this is the first use."""
    try:
        return reference.debian_root(kind)
    except reference.RootUnavailable as error:
        missing(str(error))


def go_tool(name: str) -> Path:
    """Return the program of this name that tools/go-tool builds, building it if this is the first use.

    Go and its modules are never required: who asks needs the mark ``may_skip`` (:data:`NEEDS_GO`).
    """
    made = subprocess.run([REPOSITORY / "tools" / "go-tool", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(made.stderr.strip() or f"tools/go-tool cannot build {name}")
    return Path(made.stdout.strip())
