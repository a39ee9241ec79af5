"""Mounted trees: ours as users have them, against the kernel mount of root and what others serve from user space.

Each turn mounts anew with every method, one after the other; what is done with the mount is timed beside it
(:mod:`benchmarks.activities`). The others are mounted by root: what they show and how fast does not depend on that.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks import activities, inputs
from benchmarks.results import Took, mounted
from benchmarks.runner import MKCFS, Row, Rows, build_image
from tests.reference import RootUnavailable, debian_root
from tests.users import Place, User, somebody

KERNEL = "kernel"
_ENDS_WITHIN = 30.0
_RANDOM = 2**31
Activities = Sequence[str]


class Subject:
    """A tree that is mounted: as itself, as our image with a store, and as the others' images, made when asked for."""

    def __init__(self, label: str, tree: Path, scratch: Path, user: User) -> None:
        self.label = label
        self.tree = tree
        self._scratch = scratch
        self._user = user

    @cached_property
    def image(self) -> Path:
        """Our image; its objects are the user's."""
        image = self._scratch / f"{self.tree.name}.cfs"
        build_image(self.tree, image, "--store", str(self.store))
        self._user.give(image, self.store)
        return image

    @property
    def store(self) -> Path:
        """The store with the objects."""
        return self._scratch / f"{self.tree.name}-store"

    @cached_property
    def erofs(self) -> Path:
        """An EROFS without compression."""
        return self._made("erofs", lambda to: ["mkfs.erofs", "--quiet", str(to), str(self.tree)])

    @cached_property
    def squashfs(self) -> Path:
        """A squashfs with zstd."""
        options = ["-comp", "zstd", "-no-progress", "-quiet", "-noappend"]
        return self._made("squashfs", lambda to: ["mksquashfs", str(self.tree), str(to), *options])

    def _made(self, kind: str, command: Callable[[Path], list[str]]) -> Path:
        def make(place: Path) -> None:
            subprocess.run(command(place / "image"), check=True, capture_output=True)

        return inputs.cached(f"{kind}-{self.tree.name}", make) / "image"


class Method(Protocol):
    """A way to mount a subject."""

    name: str

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""

    def seconds(self, subject: Subject, what: Activities) -> list[Took]:
        """Mount, do these things, unmount."""


class Stand(NamedTuple):
    """Where all of it happens: a mount namespace with a user in it."""

    place: Place
    user: User

    @property
    def directory(self) -> Path:
        """Where root mounts."""
        return self._directory(self.place.top / "mnt")

    @property
    def own(self) -> Path:
        """Where the user mounts."""
        directory = self._directory(self.user.home / "mnt")
        self.user.give(directory)
        return directory

    @staticmethod
    def _directory(path: Path) -> Path:
        path.mkdir(exist_ok=True)
        return path


def acting(begun: float, directory: Path, what: Activities, servers: Sequence[int] = ()) -> list[str]:
    """The command that does these things and prints what they took; *servers* work for the mount."""
    python = os.path.realpath(sys.executable)
    words = [str(begun), ",".join(map(str, servers)), str(directory), *what]
    return [python, "-I", "-S", activities.__file__, *words]


def taken(said: bytes) -> list[Took]:
    """What :func:`acting` printed."""
    return [Took(*one) for one in json.loads(said.splitlines()[-1])]


def median(runs: Sequence[Took]) -> Took:
    """The median of each quantity."""
    return Took(*(statistics.median(column) for column in zip(*runs, strict=True)))


def _servers(directory: Path) -> list[int]:
    """The processes whose command line names this directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(directory) in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:  # ended meanwhile
            continue
    return found


class KernelMount:
    """``mkcfs mount`` as root: EROFS and overlay."""

    name = KERNEL

    def __init__(self, stand: Stand) -> None:
        self._place, self._directory = stand.place, stand.directory

    def missing(self) -> str:
        """Nothing: who measures is root."""
        return ""

    def seconds(self, subject: Subject, what: Activities) -> list[Took]:
        """Mount, do these things, unmount."""
        begun = time.monotonic()
        self._place.root(*MKCFS, "mount", subject.image, self._directory, "--store", subject.store)
        try:
            return taken(self._place.root(*acting(begun, self._directory, what)).stdout)
        finally:
            self._place.root(*MKCFS, "umount", self._directory)


class _Ours:
    """What our two methods for users have in common."""

    def __init__(self, stand: Stand) -> None:
        self._user, self._directory = stand.user, stand.own
        # With its directory: what is mounted there belongs to the user, who keeps it from others.
        self._image: list[str | Path] = []

    def _words(self, verb: str, subject: Subject, *options: str) -> list[str | Path]:
        return [*MKCFS, verb, subject.image, self._directory, "--store", subject.store, *options]


class OverlayRun(_Ours):
    """``mkcfs run`` as a user: a tmpfs and overlay in a namespace."""

    name = "overlay"

    def missing(self) -> str:
        """Whether the verb is there."""
        return without_verb("run")

    def seconds(self, subject: Subject, what: Activities) -> list[Took]:
        """Run the program that does these things."""
        words = self._words("run", subject, "--method", "overlay")
        return taken(self._user.run(*words, "--", *acting(time.monotonic(), self._directory, what)).stdout)


class FuseMount(_Ours):
    """``mkcfs mount`` as a user, by FUSE; contents are compared as they are read, or not."""

    def __init__(self, stand: Stand, *, check: str = "read") -> None:
        super().__init__(stand)
        self._check = check
        self.name = "fuse" if check == "read" else "fuse unchecked"

    def missing(self) -> str:
        """Whether the verb has this method."""
        if shutil.which("fusermount3") is None:
            return "fusermount3 is not installed"
        return without_verb("mount", "--method")

    def seconds(self, subject: Subject, what: Activities) -> list[Took]:
        """Mount, do these things, unmount, and wait for the end of the server."""
        begun = time.monotonic()
        self._user.run(*self._words("mount", subject, "--method", "fuse", "--check", self._check))
        try:
            words = acting(begun, self._directory, what, _servers(self._directory))
            return taken(self._user.run(*words).stdout)
        finally:
            self._user.run(*MKCFS, "umount", self._directory)
            self._user.wait_for_no_process()


def without_verb(verb: str, option: str = "") -> str:
    """Say that a verb, or its option, is not there yet; empty if it is."""
    done = subprocess.run([*MKCFS, verb, "--help"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 and option in done.stdout else f"mkcfs {verb} {option} is not there".strip()


class Other:
    """The program of another project, which serves by FUSE until its directory is unmounted."""

    def __init__(self, stand: Stand, name: str, missing: str, command: Callable[[Subject, Path], list[str]]) -> None:
        self._place, self._directory = stand.place, stand.directory
        self.name = name
        self._missing = missing
        self._command = command

    def missing(self) -> str:
        """What was found out when this was made."""
        return self._missing

    def seconds(self, subject: Subject, what: Activities) -> list[Took]:
        """Mount, do these things, unmount, and wait until nothing is mounted there."""
        command = self._command(subject, self._directory)
        begun = time.monotonic()
        self._place.root(*command)
        try:
            words = acting(begun, self._directory, what, _servers(self._directory))
            return taken(self._place.root(*words).stdout)
        finally:
            self._place.root("umount", self._directory)


def others(stand: Stand) -> Iterator[Method]:
    """The programs of others, those that cannot be had as well."""

    def absent(*programs: str) -> str:
        names = [name for name in programs if shutil.which(name) is None]
        return f"{', '.join(names)}: not installed" if names else ""

    yield Other(
        stand,
        "fuse-overlayfs",
        absent("fuse-overlayfs"),
        lambda subject, directory: ["fuse-overlayfs", "-o", f"ro,lowerdir={subject.tree}", str(directory)],
    )
    program, missing = _erofsfuse()
    yield Other(
        stand,
        "erofsfuse",
        missing or absent("mkfs.erofs"),
        lambda subject, directory: [*program, str(subject.erofs), str(directory)],
    )
    yield Other(
        stand,
        "squashfuse",
        absent("squashfuse_ll", "mksquashfs"),
        lambda subject, directory: ["squashfuse_ll", str(subject.squashfs), str(directory)],
    )


def _erofsfuse() -> tuple[list[str], str]:
    """The command of erofsfuse, which Debian 12 lacks, with its own loader and libraries."""
    try:
        root = debian_root("erofsfuse")
    except RootUnavailable as error:
        return [], str(error)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    return [*loader, str(root / "usr/bin/erofsfuse")], ""


class _Plan(NamedTuple):
    """What is done below one fresh mount, how each is named, and what ours may take, as multiples of the kernel's."""

    what: Activities
    names: Sequence[str]
    limits: Sequence[Mapping[str, float]]
    peers: Sequence[bool]


_BOTH = {"overlay": 1.2, "fuse": 1.2}
_OVERLAY = {"overlay": 1.2}
_PLANS = {
    "Debian root": (
        _Plan(("first",), ("first program",), ({},), (False,)),
        _Plan(("find", "find"), ("find first", "find again"), (_BOTH, _BOTH), (False, False)),
        _Plan(
            ("tar", "tar", "grep", "execs"),
            ("tar first", "tar again", "grep again", "200 programs"),
            (_OVERLAY, _BOTH, _BOTH, _BOTH),
            (False,) * 4,
        ),
    ),
    "small files": (
        _Plan(("find", "find"), ("find first", "find again"), (_BOTH, _BOTH), (True, True)),
        _Plan(
            ("tar", "tar", "grep"),
            ("tar first", "tar again", "grep again"),
            ({"overlay": 1.2, "fuse": 3}, _BOTH, _BOTH),
            (True, True, False),
        ),
    ),
    "large file": (
        _Plan(("dd", "dd"), ("1 GiB dd first", "1 GiB dd again"), (_OVERLAY, _OVERLAY), (False, False)),
        _Plan(("random",), ("8000 reads of 4 KiB, first",), (_OVERLAY,), (False,)),
    ),
}


def jobs(scratch: Path, stack: ExitStack, *, files: int) -> Iterator[Rows]:
    """Yield the comparison for each subject; what is made for the user is removed by *stack*."""
    top = scratch / "mounts"
    top.mkdir()
    scratch.chmod(0o711)
    top.chmod(0o711)

    @cache
    def stand() -> Stand:
        return Stand(*stack.enter_context(somebody(top)))

    subjects = {
        "Debian root": inputs.debian,
        "small files": lambda: inputs.small_files(files),
        "large file": lambda: inputs.large_file(_RANDOM),
    }
    labels = {"small files": f"{files} small files", "large file": f"file of {_RANDOM // 2**20} MiB"}
    for kind, tree in subjects.items():
        label = labels.get(kind, kind)

        def measure(turns: int, kind: str = kind, label: str = label, tree: Callable[[], Path] = tree) -> Iterator[Row]:
            yield from _compare(Subject(label, tree(), top, stand().user), _PLANS[kind], _methods(stand()), turns)

        yield Rows(name=f"mount, {label}", measure=measure)


def _methods(stand: Stand) -> list[Method]:
    ours: list[Method] = [KernelMount(stand), OverlayRun(stand), FuseMount(stand), FuseMount(stand, check="off")]
    usable: list[Method] = []
    for method in (*ours, *others(stand)):
        if missing := method.missing():
            print(f"{method.name}: {missing}", flush=True)
        else:
            usable.append(method)
    return usable


def _compare(subject: Subject, plans: Sequence[_Plan], methods: Sequence[Method], turns: int) -> Iterator[Row]:
    for plan in plans:
        runs: dict[str, list[list[Took]]] = {method.name: [] for method in methods}
        for turn in range(turns + 1):
            for method in methods:
                found = method.seconds(subject, plan.what)
                if turn > 0:
                    runs[method.name].append(found)
        for at, name in enumerate(plan.names):
            took = {method: median([run[at] for run in found]) for method, found in runs.items()}
            yield mounted(
                f"mount, {subject.label}, {name}", took, limits=plan.limits[at], peers=plan.peers[at], turns=turns
            )
