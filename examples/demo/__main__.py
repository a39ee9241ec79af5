"""Takes a root file system; builds, inspects, signs and verifies its image; then changes and damages something.

``make demo`` runs it in a temporary directory; ``make demo ARGS='--keep DIR'`` leaves everything in DIR.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.demo import rootfs

MKCFS = Path(sys.executable).with_name("mkcfs")


class DemoFailed(Exception):
    """A step did not do what it was to show."""


class Demo:
    """The steps, in a directory of their own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.steps = 0

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self.steps += 1
        print(f"\n{self.steps}. {title}", flush=True)

    def mkcfs(self, *words: str, expect: int = 0) -> str:
        """Show a command, run it, show and return what it printed."""
        print(f"   $ mkcfs {shlex.join(words)}", flush=True)
        start = time.monotonic()
        done = subprocess.run([MKCFS, *words], cwd=self.place, capture_output=True, text=True, check=False)
        for line in (done.stdout + done.stderr).splitlines():
            print(f"     {line}")
        if done.returncode != expect:
            raise DemoFailed(f"exit code {done.returncode} instead of {expect}")
        if words[0] == "build":
            print(f"     [{time.monotonic() - start:.1f} s]")
        return done.stdout

    def objects(self) -> set[str]:
        """Return the paths of the store's objects."""
        return {str(path.relative_to(self.place)) for path in (self.place / "objects").glob("??/*")}

    def run(self, *, host: bool) -> None:
        """Show everything; *host* says to use this machine's files in any case."""
        self.step("Take a real root file system")
        origin = rootfs.take(self.place / "rootfs", host=host)
        print(f"   rootfs/: {origin}; {rootfs.measure(self.place / 'rootfs')}")
        self.step("Build its image; file contents go into a store, each named by its fs-verity digest")
        digest = self.mkcfs("build", "rootfs", "image.cfs", "--store", "objects", "--print-digest").strip()
        first = self.objects()
        size = (self.place / "image.cfs").stat().st_size
        print(f"   image.cfs: {size / 1e6:.1f} MB; objects/: {len(first)} objects")
        self.step("Inspect it")
        self.mkcfs("inspect", "image.cfs")
        self.step("Sign it and verify it: the key vouches for the image, the image for every object")
        self.mkcfs("keygen", "demo", "--no-passphrase")
        self.mkcfs("sign", "image.cfs", "--key", "demo.key")
        self.mkcfs("verify", "image.cfs", "--key", "demo.pub", "--digest", digest, "--store", "objects")
        self.step("Add one file, build again: only that is new")
        self.rebuild(digest, first)
        self.step("Damage one object: it is found and named")
        victim = self.place / min(first)
        victim.chmod(0o644)
        with victim.open("r+b") as file:
            last = file.read()[-1]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        if min(first) not in self.mkcfs("verify", "image.cfs", "--store", "objects", expect=3):
            raise DemoFailed("the damage was not named")

    def rebuild(self, digest: str, before: set[str]) -> None:
        """Change a file and build into the same store, then put it back and build once more."""
        changed = self.place / "rootfs" / "etc" / "demo.conf"
        status = changed.parent.stat()
        changed.write_text("a file that was not there before, long enough to become an object of its own\n" * 2)
        second = self.mkcfs("build", "rootfs", "second.cfs", "--store", "objects", "--print-digest").strip()
        new = self.objects() - before
        print(f"   another digest, {len(new)} new object, {len(before)} shared")
        changed.unlink()
        os.utime(changed.parent, ns=(status.st_atime_ns, status.st_mtime_ns))
        third = self.mkcfs("build", "rootfs", "third.cfs", "--store", "objects", "--print-digest").strip()
        if second == digest or third != digest or len(new) != 1:
            raise DemoFailed(f"digests {digest}, {second}, {third}; {len(new)} new objects")
        print("   with the file taken away again the digest is the first one, bit for bit")


def main() -> int:
    """Run the demo in the directory asked for or a temporary one."""
    parser = argparse.ArgumentParser(prog="make demo ARGS=…", description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new directory to work in, which is left there")
    parser.add_argument("--host", action="store_true", help="assemble the tree from this machine's own files")
    options = parser.parse_args()
    print("cfstools demo: a root file system becomes one small image and a store of objects")
    try:
        if options.keep:
            options.keep.mkdir(parents=True)
            Demo(options.keep).run(host=options.host)
            print(f"\nEverything is left in {options.keep}.")
        else:
            with tempfile.TemporaryDirectory(prefix="cfstools-demo-") as place:
                Demo(Path(place)).run(host=options.host)
            print("\nDone; the temporary directory is removed (make demo ARGS='--keep DIR' leaves it).")
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
