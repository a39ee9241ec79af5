"""Reads every file below a directory inside of a virtual machine and prints what came, as JSON on one line.

``python3 -m tests.vm.look DIR [again]``: the type of the file system, and for each file the SHA-256 of its contents or
the number of the error. With ``again`` it waits for a line on standard input and then does it once more.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path


def look(root: Path) -> dict[str, str | int]:
    """Return what reading each file gives, by its path below *root*."""
    found: dict[str, str | int] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            try:
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                found[str(path.relative_to(root))] = error.errno or -1
    return found


def kind(root: Path) -> str:
    """Return the type of the file system that is mounted here."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return next((words[words.index("-") + 1] for words in reversed(mounts) if words[4] == str(root)), "none")


def main(place: str, *again: str) -> None:
    """Print what is there, once or twice."""
    root = Path(place)
    print(json.dumps({"type": kind(root), "files": look(root)}), flush=True)
    if again:
        sys.stdin.readline()
        print(json.dumps({"type": kind(root), "files": look(root)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
