"""Mounts damaged images with the kernel; run as a program of its own, in a mount namespace of its own.

``python -m tests.flips.mounting SEED COUNT STEP PLACE`` tries every STEP-th case of a seed. It says which one before it
begins, so that whoever started it knows the one that never ended, and at last how many the kernel took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cfstools.api.mount import mount
from cfstools.errors import CfsError
from cfstools.linux import mount as linux
from cfstools.mount import Layers
from tests.bounds import HANG, bounded
from tests.flips.cases import Finding, damaged
from tests.requirements import REPOSITORY

# What is looked at of a mount; a damaged directory may go on for ever.
_NAMES = 300


class Mounts(NamedTuple):
    """How many damaged images were given to the kernel, and how many it mounted."""

    tried: int
    mounted: int


def try_mounts(seed: int, count: int, step: int, place: Path) -> Mounts:
    """Let the kernel mount *count* damaged images, in another process. Raises Finding, also when that hangs."""
    words = [str(word) for word in (seed, count, step, place)]
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.flips.mounting", *words]
    with (place / "said").open("w+b") as said:
        # Neither communicate() nor a context manager: a process that hangs in the kernel cannot even be waited for.
        child = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            code = child.wait(HANG + count)
        except subprocess.TimeoutExpired:
            child.kill()
            code = -1
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    if code:
        raise Finding(f"mount: exit code {code}: {' | '.join(lines[-30:])}")
    return Mounts(count, int(lines[-1]))


def _look(image: Path, store: Path, directory: Path) -> bool:
    """Mount, look at the names in the root, and take it off again; whether the kernel mounted it."""
    refusal: CfsError | None = None
    try:
        mount(bytes(image), bytes(directory), layers=Layers(stores=(bytes(store),)))
    except CfsError as error:
        refusal = error
    assert "\n" not in str(refusal), f"an error of several lines: {refusal!r}"
    if refusal is not None:
        return False
    try:
        with os.scandir(directory) as entries:
            for entry in islice(entries, _NAMES):
                entry.stat(follow_symlinks=False)
    except OSError:
        pass  # the kernel has found the damage
    finally:
        linux.umount(bytes(directory), detach=True)
    return True


def main() -> int:
    """Try the cases in order."""
    seed, count, step = (int(word) for word in sys.argv[1:4])
    image, store, directory = (Path(sys.argv[4]) / name for name in ("image", "store", "mount"))
    for path in (store, directory):
        path.mkdir(exist_ok=True)
    mounted = 0
    for number in range(0, count * step, step):
        print(f"seed {seed}, case {number}", flush=True)
        data = damaged(seed, number)
        image.write_bytes(data)
        with bounded(len(data)):
            mounted += _look(image, store, directory)
    print(mounted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
