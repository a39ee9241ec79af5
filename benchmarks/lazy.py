"""Lazy mounts of an ordinary user, whose objects come over a link where every answer takes a while.

A place over HTTP has the objects of a Debian root, nginx serves it. Against them stand pulls that fetch all before the
mount. What a user waits for a first program of a pushed image stands beside what podman and skopeo take for it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmarks import inputs
from benchmarks.mounts import Activities, Stand, acting, taken, without_verb
from benchmarks.results import lazily
from benchmarks.runner import MKCFS, Row, Rows, build_image, run_once
from tests.reference import debian_root
from tests.servers.link import Link
from tests.servers.nginx import nginx
from tests.servers.registries import docker_registry
from tests.users import Place, User, somebody

_ROUND_TRIP = 0.02
_LARGE = 2**30
_RATE = 100e6
_FIRST_WITHIN = 0.5
_TRACED = 0.25
_EVERYTHING = 1.3
_EACH = "20 ms"
_ALONE = ("--readahead", "0", "--prefetch", "none")
Words = Sequence[str | Path]


class _Way(NamedTuple):
    """How a user comes to the contents: options of a lazy mount, or (*eager*) a pull before it."""

    name: str
    options: Words
    eager: bool = False


class _Lazy:
    """The place with the objects, the link to it, and a user who has only the image of *tree*."""

    def __init__(self, tree: Callable[[], Path], top: Path, stack: ExitStack, *, rate: float | None = None) -> None:
        top.mkdir()
        top.chmod(0o711)
        self._tree = tree
        self._rate = rate
        self._top = top
        self._stack = stack
        self._turn = 0

    @cached_property
    def _stand(self) -> Stand:
        return Stand(*self._stack.enter_context(somebody(self._top)))

    @property
    def user(self) -> User:
        """The user."""
        return self._stand.user

    @cached_property
    def directory(self) -> Path:
        """Where the user mounts."""
        return self._stand.own

    @cached_property
    def url(self) -> str:
        """Where the image and its objects are, at a distance."""
        served, store, image = self._top / "served", self._top / "store", self._top / "image.cfs"
        build_image(self._tree(), image, "--store", str(store))
        run_once([*MKCFS, "push", str(image), f"{served}/", "--store", str(store)])
        near = self._stack.enter_context(nginx(served, self._top / "nginx"))
        far = self._stack.enter_context(Link(near.origin.port, round_trip=_ROUND_TRIP, rate=self._rate))
        return f"http://127.0.0.1:{far.port}/"

    @cached_property
    def image(self) -> Path:
        """The image, which the user has."""
        assert self.url
        image = self.user.home / "image.cfs"
        shutil.copyfile(self._top / "image.cfs", image)
        self.user.give(image)
        return image

    @cached_property
    def trace(self) -> Path:
        """What a work reads, in order, as a run before has written it."""
        trace = self.user.home / "image.trace.work"
        self.seconds(_Way("", (*_ALONE, "--trace", trace)), ("work",))
        return trace

    def seconds(self, way: _Way, what: Activities) -> list[float]:
        """Begin with an empty store, and do these things."""
        image, begun = self.image, time.monotonic()
        self._turn += 1
        store = self.user.home / f"store-{self._turn}"
        run: list[str | Path] = [*MKCFS, "run", image, self.directory, "--store", store]
        if way.eager:
            pulled = self.user.home / "pulled.cfs"
            self.user.run(*MKCFS, "pull", f"{self.url}image.cfs", pulled, "--store", store, *way.options)
        else:
            store.mkdir()
            self.user.give(store)
            run += ["--lazy", f"{self.url}objects", *way.options]
        said = self.user.run(*run, "--", *acting(begun, self.directory, what)).stdout
        return [one.wall for one in taken(said)]


def jobs(scratch: Path, stack: ExitStack) -> Iterator[Rows]:
    """Yield the comparisons; servers are stopped by *stack*. None where something is missing."""
    missing = [tool for tool in ("docker-registry", "nginx", "skopeo", "podman") if shutil.which(tool) is None]
    if missing or without_verb("run", "--lazy"):
        print(f"{', '.join(missing) or without_verb('run', '--lazy')}: missing, nothing is mounted lazily")
        return
    scratch.chmod(0o711)
    lazy = _Lazy(inputs.debian, scratch / "lazy", stack)
    yield Rows(name="lazily, Debian root, first program", measure=lambda turns: _first(lazy, turns))
    yield Rows(name="lazily, Debian root, work", measure=lambda turns: _work(lazy, turns))
    yield Rows(name="lazily, Debian root, tar", measure=lambda turns: _tar(lazy, turns))
    large = _Lazy(lambda: inputs.large_file(_LARGE), scratch / "lazy-large", stack, rate=_RATE)
    yield Rows(name="lazily, large file", measure=lambda turns: _parts(large, turns))
    pushed = _Pushed(scratch / "pushed", stack)
    yield Rows(name="lazily, pushed image", measure=lambda turns: _programs(pushed, turns))


def _in_turns(lazy: _Lazy, ways: Sequence[_Way], what: Activities, turns: int) -> dict[str, list[float]]:
    """The medians of each way, all ways after one another in each turn."""
    runs: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            runs[way.name].append(lazy.seconds(way, what))
    return {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in runs.items()}


def _first(lazy: _Lazy, turns: int) -> Iterator[Row]:
    """A first program, from the start of the command."""
    pulls = [_Way(f"pull with {count} connections", ("--connections", str(count)), eager=True) for count in (8, 32)]
    ways = [_Way("lazily", _ALONE), _Way("lazily, 8 ahead", ("--readahead", "8", "--prefetch", "none")), *pulls]
    medians = _in_turns(lazy, ways, ("first",), turns)
    other = medians[pulls[1].name][0]
    for way in ways:
        within = None if way.eager else _FIRST_WITHIN
        yield lazily(
            f"Debian root, {_EACH}, first program, {way.name}", medians[way.name][0], at_most=within, turns=turns
        )
    yield lazily(
        f"Debian root, {_EACH}, first program, lazily / {pulls[1].name}", medians["lazily"][0], other, turns=turns
    )


def _work(lazy: _Lazy, turns: int) -> Iterator[Row]:
    """The start of something, without knowing what it will need, reading ahead, and with the trace of a run before."""
    ahead = [
        _Way(f"{count} ahead", ("--readahead", str(count), "-j", str(count), "--prefetch", "none"))
        for count in (8, 16, 32)
    ]
    traced = [
        _Way(f"trace over {count} connections", ("--readahead", "0", "--prefetch", lazy.trace, "-j", str(count)))
        for count in (4, 8, 16)
    ]
    medians = _in_turns(lazy, [_Way("alone", _ALONE), *ahead, *traced], ("first", "work", "work"), turns)
    _, alone, again = medians.pop("alone")
    yield lazily(f"Debian root, {_EACH}, work", alone, turns=turns)
    yield lazily(f"Debian root, {_EACH}, work again", again, turns=turns)
    for name, (_, work, _) in medians.items():
        limit = _TRACED if name == "trace over 8 connections" else None
        yield lazily(f"Debian root, {_EACH}, work, {name} / without", work, alone, at_most=limit, turns=turns)


def _tar(lazy: _Lazy, turns: int) -> Iterator[Row]:
    """All of it, from the start of the command to the end of the first tar, and tar once more."""
    ahead = [
        _Way(f"{count} ahead", ("--readahead", str(count), "-j", str(count), "--prefetch", "none"))
        for count in (8, 16, 32)
    ]
    behind = [_Way(f"everything behind over {count}", ("--prefetch", "all", "-j", str(count))) for count in (8, 32)]
    pulls = [_Way(f"pull over {count}", ("--connections", str(count)), eager=True) for count in (8, 32)]
    medians = _in_turns(lazy, [*ahead, *behind, *pulls], ("tar", "tar"), turns)
    firsts = _in_turns(lazy, pulls, ("first",), turns)
    for count, pull in zip((8, 32), pulls, strict=True):
        eager = firsts[pull.name][0]
        yield lazily(f"Debian root, {_EACH}, pull and mount over {count}", eager, turns=turns)
        name = f"everything behind over {count}"
        label = f"Debian root, {_EACH}, tar, {name} / pull and mount"
        yield lazily(label, medians[name][0], eager, at_most=_EVERYTHING if count == 32 else None, turns=turns)
        yield lazily(f"Debian root, {_EACH}, tar again, {name} / after a pull", medians[name][1], medians[pull.name][1],
                     turns=turns)  # fmt: skip
    for way in ahead:
        yield lazily(f"Debian root, {_EACH}, tar, {way.name}", medians[way.name][0], turns=turns)
        yield lazily(f"Debian root, {_EACH}, tar again, {way.name}", medians[way.name][1], turns=turns)


def _parts(large: _Lazy, turns: int) -> Iterator[Row]:
    """Parts of a large file, each compared before the rest is there."""
    medians = _in_turns(large, [_Way("lazily", _ALONE)], ("first-block", "blocks"), turns)["lazily"]
    name = f"file of {_LARGE // 2**20} MiB, {_EACH} and {_RATE / 1e6:.0f} MB/s"
    yield lazily(f"{name}, its first 4 KiB, from the start of the command", medians[0], at_most=0.5, turns=turns)
    yield lazily(f"{name}, 50 reads of 4 KiB", medians[1], at_most=2, turns=turns)


class _Pushed:
    """An image in a registry at a distance."""

    def __init__(self, top: Path, stack: ExitStack) -> None:
        top.mkdir()
        top.chmod(0o711)
        self.top = top
        self._stack = stack
        self.turn = 0

    @cached_property
    def stand(self) -> Stand:
        """Where the user is."""
        return Stand(*self._stack.enter_context(somebody(self.top)))

    @property
    def place(self) -> Place:
        """Where the user and root mount."""
        return self.stand.place

    @property
    def user(self) -> User:
        """The user."""
        return self.stand.user

    @cached_property
    def directory(self) -> Path:
        """Where the user mounts."""
        return self.stand.own

    @cached_property
    def name(self) -> str:
        """The pushed image, by way of the link."""
        port = int(self._stack.enter_context(docker_registry(self.top / "registry")).rpartition(":")[2])
        far = self._stack.enter_context(Link(port, round_trip=_ROUND_TRIP))
        image, store = self.top / "debian.cfs", self.top / "store"
        build_image(debian_root("updates") / "released", image, "--max-version", "0", "--store", str(store))
        place = f"docker://localhost:{port}/debian:latest"
        run_once([*MKCFS, "push", str(image), place, "--store", str(store), "--plain-http", "--base", "none"])
        return f"docker://localhost:{far.port}/debian:latest"

    def seconds(self, run: Callable[[Path], None]) -> float:
        """How long something takes that gets an empty directory."""
        assert self.name
        self.turn += 1
        directory = self.user.home / f"turn-{self.turn}"
        directory.mkdir()
        self.user.give(directory)
        begun = time.monotonic()
        run(directory)
        return time.monotonic() - begun


def _programs(pushed: _Pushed, turns: int) -> Iterator[Row]:
    """A first program of an image that nobody here has seen before."""
    name = pushed.name

    def lazy(empty: Path) -> None:
        options: Words = ["--store", empty / "store", "--plain-http"]
        pushed.user.run(*MKCFS, "run", name, pushed.directory, *options, "--", pushed.directory / "usr/bin/true")

    def pulled(empty: Path) -> None:
        image = empty / "debian.cfs"
        store: Words = ["--store", empty / "store"]
        pushed.user.run(*MKCFS, "pull", name, image, *store, "--plain-http")
        pushed.user.run(*MKCFS, "run", image, pushed.directory, *store, "--", pushed.directory / "usr/bin/true")

    def podman(empty: Path) -> None:
        # podman takes no longer path than fifty characters for what it keeps while it runs.
        storage: Words = ["--root", empty / "root", "--runroot", pushed.top.parent / f"r{pushed.turn}"]
        # No more is asked of a container than of ours: no network, no limits, no control groups.
        less = "--rm --tls-verify=false --network=none --cgroups=disabled --ulimit nofile=1024:1024 --log-driver=none"
        try:
            pushed.place.root("podman", *storage, "run", *less.split(), "--ulimit=nproc=1024:1024", name, "/bin/true")
        finally:
            pushed.place.root("umount", "--quiet", empty / "root/overlay", check=False)

    def unpacked(empty: Path) -> None:
        there = empty / "image"
        subprocess.run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", name, f"dir:{there}"], check=True)
        layers = json.loads((there / "manifest.json").read_bytes())["layers"]
        files = [there / layer["digest"].partition(":")[2] for layer in layers]
        (empty / "root").mkdir()
        script = "".join(f"zstd -dcq {shlex.quote(str(file))} | tar -C {empty}/root -xpf -; " for file in files)
        subprocess.run(["sh", "-ec", f"{script} chroot {empty}/root /bin/true"], check=True)

    # crun refuses to work where both kinds of control groups are mounted.
    pushed.place.root("umount", "/sys/fs/cgroup/unified", check=False)
    ways = {"lazily": lazy, "mkcfs pull": pulled, "podman run": podman, "skopeo copy and tar": unpacked}
    medians: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, run in ways.items():
            seconds = pushed.seconds(run)
            medians[way] += [seconds] if turn > 0 else []
    median = {way: statistics.median(runs) for way, runs in medians.items()}
    for way in list(ways)[1:]:
        yield lazily(
            f"pushed image, {_EACH}, first program, lazily / {way}", median["lazily"], median[way], turns=turns
        )
