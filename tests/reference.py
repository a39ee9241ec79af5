"""The reference tools (mkcomposefs, composefs-info, fsck.erofs 1.9) run inside their Debian root.

Each call gets a mount namespace of its own in which the whole host is visible below ``/mnt`` of the root, so
paths of the host can be handed over, nothing is copied, and no mount is left when the call ends.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent

# Enters the root "$0" and runs "$@" there. The host's /proc is needed: mkcomposefs reads xattrs through it.
ENTER = """
set -e
mount --rbind / "$0/mnt"
mount --rbind /proc "$0/proc"
mount --rbind /dev "$0/dev"
exec chroot "$0" "$@"
"""

Argument = str | bytes | Path


class Completed(NamedTuple):
    """What a reference tool did."""

    code: int
    stdout: bytes
    stderr: bytes


class RootUnavailable(Exception):
    """A Debian root can be neither found nor made here."""


def debian_root(kind: str) -> Path:
    """Return the Debian root of this kind (see tools/debian-root), making it if this is the first use."""
    script = REPOSITORY / "tools" / "debian-root"
    made = subprocess.run([script, kind], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RootUnavailable(made.stderr.strip() or f"{script} failed")
    return Path(made.stdout.strip())


class ReferenceFailed(AssertionError):
    """A reference tool refused something that it was expected to take."""


class Reference:
    """The reference tools; a ``Path`` among the arguments is a path of the host, text is passed on as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def seen(path: Path) -> bytes:
        """Return the name under which the root sees this path of the host."""
        return b"/mnt" + bytes(path.absolute())

    def prefix(self) -> list[bytes]:
        """Return the words that stand before a command that is to run in the root."""
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, str(self.root)]
        return [word.encode() for word in enter]

    def command(self, *words: Argument) -> list[bytes]:
        """Return the whole command line that runs *words* in the root."""
        return self.prefix() + [
            self.seen(word) if isinstance(word, Path) else word.encode() if isinstance(word, str) else word
            for word in words
        ]

    def run(self, *words: Argument, stdin: bytes = b"", check: bool = True) -> Completed:
        """Run a command in the root; with *check* any exit code but 0 raises :class:`ReferenceFailed`."""
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, check=False)
        if check and done.returncode != 0:
            raise ReferenceFailed(f"{words}: exit code {done.returncode}: {done.stderr.decode(errors='replace')}")
        return Completed(done.returncode, done.stdout, done.stderr)

    def mkcomposefs(self, source: Path, image: Path, *options: Argument, store: Path | None = None) -> bytes:
        """Write the image of a directory (or, with ``--from-file``, of a dump); return what it printed."""
        stores = [b"--digest-store=" + self.seen(store)] if store else []
        return self.run("mkcomposefs", *options, *stores, source, image).stdout

    def image_of_dump(self, dump: bytes, *options: Argument) -> bytes:
        """Return the image of a dump text."""
        return self.run("mkcomposefs", "--from-file", *options, "-", "-", stdin=dump).stdout

    def info(self, *words: Argument) -> bytes:
        """Return what ``composefs-info`` prints for these arguments."""
        return self.run("composefs-info", *words).stdout

    def fsck_erofs(self, images: Sequence[Path]) -> list[str]:
        """Check images with ``fsck.erofs``; return a line for each that it refuses."""
        script = 'for image; do said=$(fsck.erofs "$image" 2>&1) || echo "$image:" $said; done'
        refused: list[str] = []
        for first in range(0, len(images), 500):
            said = self.run("sh", "-c", script, "sh", *images[first : first + 500]).stdout
            refused += said.decode(errors="replace").splitlines()
        return refused

    def version(self, package: str) -> str:
        """Return the version of a package in the root."""
        return self.run("dpkg-query", "-W", "-f", "${Version}", package).stdout.decode()
