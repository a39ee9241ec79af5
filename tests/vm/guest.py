"""What runs inside of a virtual machine: the checks for its kernel. Prints a line for each.

The last line printed says how many held and how many did not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.vm import user_checks, verity_checks
from tests.vm.checks import CHECKS

__all__ = ["CHECKS", "main", "user_checks", "verity_checks"]


def main(kernel: str) -> None:
    """Run every check for this kernel."""
    held = failed = 0
    for one in CHECKS[kernel]:
        name = one.__name__.replace("_", " ")
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/work", ignore_cleanup_errors=True) as place:
            try:
                one(Path(place))
            except BaseException:  # noqa: BLE001 - whatever it is, it is told to the host
                failed += 1
                print(f"vm: FAIL {name}\n{traceback.format_exc()}", flush=True)
            else:
                held += 1
                print(f"vm: ok {name} ({time.monotonic() - begun:.0f} s)", flush=True)
            _unmount_below(place)
    print(f"vm: {held} held, {failed} failed", flush=True)


def _unmount_below(place: str) -> None:
    """Unmount what a check that failed has left."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    for mounted in (line.split()[4] for line in reversed(mounts)):
        if mounted.startswith(place):
            subprocess.run(["umount", "--lazy", mounted], check=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
