"""The commands under test, each with the place it works in, and what must hold of that place after any fault."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compat.disk import ACL
from tests.faults.described import attributes, described
from tests.mkcfs import mkcfs, unmeasured
from tests.oci import making
from tests.store.conftest import assert_whole, listing

EVERYTHING = os.environ.get("MKCFS_FAULTS") == "all"
ERRORS = [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EINTR, errno.EMFILE]
KILL = 0
# A command whose data may not have arrived must not say that it succeeded (a failed pwrite is made good elsewhere).
DURABLE = {"fsync", "fdatasync", "syncfs", "write", "writev", "ftruncate64"}
TEMPORARY = re.compile(r"(store/)?\.(mkcfs-tmp-[0-9a-f]{16}/\d+|mkcfs-images\.new|[^/]+\.[0-9a-f]{16}\.tmp(/.*)?)")
STALE = ".mkcfs-tmp-0123456789abcdef"
STALE_TREE = ".tree.0123456789abcdef.tmp"


@dataclass(frozen=True)
class Ended:
    """How a forked ``mkcfs`` ended, how many calls were counted, whether the wanted one was reached and its name."""

    code: int
    said: str
    calls: int
    fired: bool
    call: str


class ForkServer:
    """A process that has imported everything and forks a child with the preload armed for each case."""

    def __init__(self, work: Path) -> None:
        shim = work / "shim.so"
        here = Path(__file__).parent
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-fno-builtin",
            "-w",
            "-o",
            str(shim),
            str(here / "shim.c"),
            "-ldl",
        ]
        subprocess.run(command, check=True)
        self._process = subprocess.Popen(
            [sys.executable, str(here / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**unmeasured(), "LD_PRELOAD": str(shim)},
        )

    def run(
        self, words: list[str], place: Path, nth: int = 0, error: int = KILL, seconds: float | None = None
    ) -> Ended:
        """Run ``mkcfs`` in *place*; the call *nth* fails with *error*, or it is killed there or after *seconds*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"words": words, "place": str(place), "nth": nth, "errno": error, "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return Ended(**answer)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@dataclass(frozen=True)
class Command:
    """A command, what makes its place, and the codes it may end with beside 0 after a fault."""

    words: list[str]
    prepare: Callable[[Path], None]
    codes: frozenset[int] = frozenset({1})
    damaged: bool = False
    # Whether its calls come in one order; with threads the Nth is another one each time, if there is an Nth.
    steady: bool = True
    # The directory it makes, which is there with all that is in it or not at all; nothing beside it changes.
    tree: str | None = None
    # Whether that is there already, so that a kill may leave a part of it.
    in_place: bool = False


def _source(place: Path) -> None:
    source = place / "source"
    (source / "sub").mkdir(parents=True)
    for number in range(3):
        (source / str(number)).write_bytes(b"%d" % number * (500 + number))
    (source / "sub" / "large").write_bytes(bytes(range(256)) * 5000)
    (source / "sub" / "link").symlink_to("large")


def _many(place: Path) -> None:
    _source(place)
    for number in range(12):
        (place / "source" / f"f{number}").write_bytes(b"%04d" % number * 700)


def _layout(place: Path) -> None:
    layer = making.tar(*[making.member(f"f{number}", b"%d" % number * 3000) for number in range(3)])
    for name, data in making.image([layer, making.hello()]).items():
        (place / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "app" / name).write_bytes(data)


def _archive(place: Path) -> None:
    files = [making.member(f"f{number}", b"%d" % number * 3000) for number in range(3)]
    layer = making.tar(*files, making.member("large", bytes(range(256)) * 2000))
    (place / "app.tar").write_bytes(making.archive(making.image([layer, making.hello()], "+gzip")))


def _built(place: Path) -> None:
    _source(place)
    mkcfs("build", place / "source", place / "image.cfs", "--store", place / "store", "--use-epoch")


def _garbage(place: Path) -> None:
    _built(place)
    (place / "other").mkdir()
    for number in range(3):
        (place / "other" / str(number)).write_bytes(b"other %d" % number * 100)
    mkcfs("build", place / "other", place / "other.cfs", "--store", place / "store")
    _stale(place)


def _stale(place: Path) -> None:
    stage = place / "store" / STALE
    stage.mkdir()
    (stage / "0").write_bytes(b"what a killed writer left")


def _damaged(place: Path) -> None:
    _built(place)
    _stale(place)
    victim = max((place / "store").glob("??/*"), key=lambda path: (path.stat().st_size, path.name))
    with victim.open("r+b") as file:
        file.write(b"damage")


def _signable(place: Path) -> None:
    _built(place)
    mkcfs("keygen", place / "k", "--no-passphrase")


def _extractable(place: Path) -> None:
    """An image of every kind of inode, what a killed extraction left, and a neighbour that a link leads to."""
    _source(place)
    source = place / "source"
    (source / "empty").touch()
    (source / "sub" / "hard").hardlink_to(source / "0")
    (source / "sub" / "up").symlink_to("../../beside")
    os.mkfifo(source / "sub" / "fifo", 0o640)
    (source / "sub" / "none").mkdir(mode=0o711)
    if os.geteuid() == 0:
        # Anybody else gets a tree without them, and a warning, when the system refuses.
        os.mknod(source / "whiteout", stat.S_IFCHR | 0o600, 0)
        os.chown(source, 1234, 1234)
        with suppress(OSError):  # not every file system has them
            os.setxattr(source / "1", "user.comment", b"hello")
            os.setxattr(source / "sub", "user.comment", b"hello")
    mtime = 1_700_000_000_123_456_789
    _set_times(source, mtime)
    mkcfs("build", source, place / "image.cfs", "--store", place / "store")
    # A file that is its object has the object's time, and must not differ from a copy here.
    _set_times(place / "store", mtime)
    shutil.rmtree(source)
    (place / "beside" / "precious").mkdir(parents=True)
    (place / STALE_TREE / "sub").mkdir(parents=True)
    (place / STALE_TREE / "sub" / "file").write_bytes(b"what a killed extraction left")
    with suppress(OSError):  # what is made below inherits it
        os.setxattr(place, "system.posix_acl_default", ACL)


def _with_a_place(place: Path) -> None:
    """The same, and an empty directory with rights of its own that is to be filled."""
    _extractable(place)
    shutil.rmtree(place / STALE_TREE)
    (place / "tree").mkdir(mode=0o711)


def _set_times(top: Path, mtime: int) -> None:
    for path in (*top.rglob("*"), top):
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


COMMANDS = {
    "build": Command(["build", "source", "image.cfs", "--store", "store", "--use-epoch", "-j", "1"], _source),
    "threads": Command(["build", "source", "image.cfs", "--store", "store", "-j", "2"], _many, steady=False),
    # Threads read layers ahead and store contents, so how many calls there are depends on who is faster.
    "layout": Command(["build", "oci:app", "image.cfs", "--store", "store", "-j", "1"], _layout, steady=False),
    "oci": Command(
        ["build", "oci-archive:app.tar", "image.cfs", "--store", "store", "-j", "1"], _archive, steady=False
    ),
    "gc": Command(["store", "gc", "--store", "store", "--keep", "image.cfs", "--grace", "0s"], _garbage),
    "sign": Command(["sign", "image.cfs", "--key", "k.key"], _signable),
    "attach": Command(["sign", "image.cfs", "--key", "k.key", "--attach"], _signable),
    "repair": Command(
        ["store", "fsck", "--store", "store", "--repair", "--from", "source", "-j", "1"],
        _damaged,
        frozenset({1, 3}),
        damaged=True,
    ),
    "extract": Command(
        ["extract", "image.cfs", "tree", "--store", "store", "--sync", "-j", "1"], _extractable, tree="tree"
    ),
    "hardlink": Command(
        ["extract", "image.cfs", "tree", "--store", "store", "--hardlink", "--no-owner", "--skip-xattrs", "-j", "1"],
        _extractable,
        tree="tree",
    ),
    "existing": Command(
        ["extract", "image.cfs", "tree", "--store", "store", "--sync", "-j", "1"],
        _with_a_place,
        tree="tree",
        in_place=True,
    ),
}


class Trial:
    """One command in fresh copies of its place, compared with what an undisturbed run leaves."""

    def __init__(self, server: ForkServer, work: Path, name: str) -> None:
        self.command = COMMANDS[name]
        self.server = server
        self._template, self._place = work / f"{name}-template", work / name
        self._template.mkdir()
        self.command.prepare(self._template)
        self.before = self._contents(self._template)
        self._fresh()
        start = time.monotonic()
        undisturbed = server.run(self.command.words, self._place)
        self.seconds = time.monotonic() - start
        assert undisturbed.code == 0, undisturbed.said
        self.calls = undisturbed.calls
        self.after = self._contents(self._place)
        assert self.after != self.before

    def close(self) -> None:
        shutil.rmtree(self._template)
        shutil.rmtree(self._place)

    def _contents(self, place: Path) -> dict[str, bytes]:
        if self.command.tree is not None:
            return self._beside(place, self.command.tree)
        return {
            str(path.relative_to(place)): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    @staticmethod
    def _beside(place: Path, tree: str) -> dict[str, bytes]:
        """The *tree* as a whole, and each thing beside it."""
        found = {}
        for path in place.rglob("*"):
            name = str(path.relative_to(place))
            if name == tree:
                found[name] = described(path) if any(path.iterdir()) else attributes(path).encode()
            elif not name.startswith(f"{tree}/"):
                contents = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                found[name] = attributes(path).encode() + b"\n" + contents
        return found

    def _fresh(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._template, self._place, symlinks=True)

    def fail(self, nth: int, error: int) -> Ended:
        """Let the call *nth* fail with *error* and check everything."""
        self._fresh()
        ended = self.server.run(self.command.words, self._place, nth, error)
        case = f"call {nth}, {ended.call}, {errno.errorcode[error]}: exit code {ended.code}: {ended.said}"
        assert ended.code in {0, *self.command.codes}, case
        assert "Traceback" not in ended.said, case
        # What an error that nobody translated is taken for; the output here is no file below the place.
        assert "cannot write output" not in ended.said, case
        if ended.code == 1:
            assert len([line for line in ended.said.splitlines() if line.startswith("mkcfs: ")]) == 1, case
            assert os.strerror(error) in ended.said, case
        if ended.call in DURABLE and error != errno.EINTR:
            assert ended.code != 0, case
        self._check(case, finished=ended.code == 0)
        return ended

    def kill(self, nth: int = 0, seconds: float | None = None) -> Ended:
        """Kill at the call *nth* or after *seconds* and check everything."""
        self._fresh()
        ended = self.server.run(self.command.words, self._place, nth, KILL, seconds)
        case = f"killed at call {nth}, {seconds} s: exit code {ended.code}: {ended.said}"
        missed = not ended.fired and (seconds is not None or not self.command.steady)
        done = missed and ended.code == 0
        assert ended.code == -9 or done, case
        self._check(case, finished=done)
        return ended

    def _check(self, case: str, *, finished: bool) -> None:
        """Nothing partial is visible now, and the next run completes what this one did not."""
        seen = self._contents(self._place)
        for name, data in seen.items():
            if not TEMPORARY.fullmatch(name):
                assert data in (self.before.get(name), self.after.get(name)), f"{name}: {case}"
        for name in self.before.keys() & self.after.keys():
            assert name in seen, f"{name} is lost: {case}"
        if finished:
            assert self.after.keys() <= seen.keys(), case
        tree = self.command.tree
        if tree is not None and seen.get(tree) == self.after[tree]:
            # Only whoever wants to have it once more takes it away.
            shutil.rmtree(self._place / tree)
        again = self.server.run(self.command.words, self._place)
        assert again.code == 0, f"the next run: {again.said}\nafter {case}"
        if (self._place / "store").exists():
            words = ["store", "fsck", "--store", "store", "--remove-temporaries"]
            cleaned = self.server.run(words, self._place)
            assert cleaned.code == 0, f"{cleaned.said}\nafter {case}"
            assert_whole(self._place / "store")
            assert not [name for name in listing(self._place / "store") if name.startswith(".mkcfs-tmp")], case
        # Whatever lies beside an output was removed by the next run of what writes it.
        assert self._contents(self._place) == self.after, case
