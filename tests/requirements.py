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


def debian_root(kind: str) -> Path:
    """Return the Debian root of this kind, making it if this is the first use."""
    try:
        return reference.debian_root(kind)
    except reference.RootUnavailable as error:
        missing(str(error))
