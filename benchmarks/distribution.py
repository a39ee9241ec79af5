"""Images that travel: what a first pull, an update and a push move, and what they take at a round trip of 50 ms.

The images are those of a Debian root in three states (``tools/debian-root updates``). Requests are counted in the log
of the registry, bytes where they pass, so nothing rests on what our side reports. The other side is ``skopeo copy``
of the same image: into a layout, where it keeps layers as they are, or into the storage of podman, which unpacks them.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import inputs
from benchmarks.build_oci import write_layout
from benchmarks.runner import MKCFS, Count, Figure, Job, Measured, Target, build_image, median, run_once, set_aside
from tests.reference import debian_root
from tests.servers.authority import Authority
from tests.servers.link import Link
from tests.servers.nginx import nginx
from tests.servers.registries import docker_registry

_ROUND_TRIP = 0.05
_RATE = 100_000_000 / 8
_STATES = ("released", "patched", "upgraded")
_REQUEST = re.compile(rb'^\S+ - - \[[^]]*\] "[A-Z]+ /v2/', re.MULTILINE)
_SETTLED = 0.3
_LAYERS = 8
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json"
_PEAK = 150
_EACH = 400
_TURNS = 5


class _Pull(NamedTuple):
    """An image that is pulled by who has nothing, or the first one (*held*), and the requests it may take."""

    label: str
    name: str
    requests: int
    held: bool = True


_FIRST = _Pull("pull, first", "whole:released", 20, held=False)
_UPDATES = (
    _Pull("pull, six packages, whole layer", "whole:patched", 20),
    _Pull("pull, all packages, whole layer", "whole:upgraded", 45),
    _Pull("pull, six packages, delta layer", "patched:latest", 8),
    _Pull("pull, all packages, delta layer", "upgraded:latest", 12),
)


class _Traffic(NamedTuple):
    """What a command sent and got, in requests and bytes."""

    requests: int
    sent: int
    received: int
    run: Measured


class _Stand:
    """A registry behind links, and the images; these are made and pushed when the first job needs them."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self.log = place / "registry/registry.log"
        port = int(stack.enter_context(docker_registry(place / "registry")).rpartition(":")[2])
        self.near = stack.enter_context(Link(port))
        self.far = stack.enter_context(Link(port, round_trip=_ROUND_TRIP))
        self.slow = stack.enter_context(Link(port, round_trip=_ROUND_TRIP, rate=_RATE))
        self.store = place / "store"
        self.held = place / "held"

    @cached_property
    def images(self) -> dict[str, Path]:
        """The images, each pushed as a whole layer, the later ones also as a delta over the first."""
        roots = debian_root("updates")
        made = {state: self.place / f"{state}.cfs" for state in _STATES}
        for state, image in made.items():
            build_image(roots / state, image, "--max-version", "0", "--store", str(self.store))
            run_once(self.push(image, f"whole:{state}", "--base", "none"))
        for state in _STATES[1:]:
            run_once(self.push(made["released"], f"{state}:latest", "--base", "none"))
            run_once(self.push(made[state], f"{state}:latest"))
        build_image(roots / "released", self.place / "held.cfs", "--max-version", "0", "--store", str(self.held))
        return made

    def make(self) -> None:
        """Make and push the images."""
        assert self.images

    @cached_property
    def layout(self) -> Path:
        """A layout with the first image, as who keeps images like that has it."""
        self.make()
        layout = self.place / "layout"
        run_once(["skopeo", "copy", *_source(self.near, "whole:released"), f"oci:{layout}:released"])
        return layout

    def push(self, image: Path, name: str, *options: str) -> list[str]:
        """Return the command that pushes an image."""
        place = f"docker://localhost:{self.near.port}/{name}"
        return [*MKCFS, "push", str(image), place, "--store", str(self.store), "--plain-http", *options]

    def traffic(self, command: list[str]) -> _Traffic:
        """Run a command that uses the near link."""
        before, logged = self.near.passed, self._requests()
        run = run_once(command)
        passed = self.near.passed.since(before)
        return _Traffic(self._requests() - logged, passed.sent, passed.received, run)

    def _requests(self) -> int:
        """How many requests the registry has logged, which it does after it has answered."""
        size = -1
        while size != (size := self.log.stat().st_size):
            time.sleep(_SETTLED)
        return len(_REQUEST.findall(self.log.read_bytes()))

    def metadata_size(self, name: str) -> int:
        """The size of the metadata layer of a pushed image."""
        repository, _, tag = name.partition(":")
        url = f"http://localhost:{self.near.port}/v2/{repository}/manifests/{tag}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": _MANIFESTS})) as answer:
            size: int = json.load(answer)["layers"][-1]["size"]
        return size


def jobs(scratch: Path, stack: ExitStack) -> Iterator[Job | Count]:
    """Yield all jobs; servers are stopped by *stack*. None where a server or skopeo is missing."""
    missing = [tool for tool in ("docker-registry", "nginx", "skopeo") if shutil.which(tool) is None]
    if missing:
        print(f"{', '.join(missing)}: missing, nothing is pulled or pushed")
        return
    place = scratch / "distribution"
    place.mkdir()
    stand = _Stand(place, stack)
    for update in (_FIRST, *_UPDATES):
        yield from _pulled(stand, update)
    yield from _pushed(stand)
    yield from _layers(stand)
    yield from _timed(stand)
    yield from _from_files(stand, stack)


def _objects(store: Path) -> dict[str, int]:
    """The sizes of the objects of a store."""
    return {str(path.relative_to(store)): path.stat().st_size for path in store.glob("[0-9a-f][0-9a-f]/*")}


# Counted


def _pull(link: Link, name: str, place: Path) -> list[str]:
    image = f"docker://localhost:{link.port}/{name}"
    return [*MKCFS, "pull", image, str(place / "pulled.cfs"), "--store", str(place / "pulled"), "--plain-http"]


def _start_over(stand: _Stand, *, held: bool) -> None:
    """Give the puller an empty store, or one with the objects of the first image."""
    stand.make()
    store = stand.place / "pulled"
    set_aside(store, stand.place / "theirs")
    (stand.place / "theirs").mkdir()
    if held:
        subprocess.run(["cp", "-a", str(stand.held), str(store)], check=True)
        subprocess.run(["sync"], check=True)


def _pulled(stand: _Stand, update: _Pull) -> Iterator[Count]:
    """Yield what a pull moves."""

    @cache
    def run() -> tuple[_Traffic, list[int]]:
        _start_over(stand, held=update.held)
        traffic = stand.traffic(_pull(stand.near, update.name, stand.place))
        there = _objects(stand.held) if update.held else {}
        pulled = _objects(stand.place / "pulled")
        return traffic, [size for name, size in pulled.items() if name not in there]

    def received() -> Figure:
        traffic, stored = run()
        allowed = 1.25 * sum(stored) + stand.metadata_size(update.name)
        return Figure(traffic.received / 1000, "kB", allowed / 1000)

    yield Count(f"{update.label}: objects", lambda: Figure(len(run()[1]), ""))
    yield Count(f"{update.label}: stored", lambda: Figure(sum(run()[1]) / 1000, "kB"))
    yield Count(f"{update.label}: requests", lambda: Figure(run()[0].requests, "", update.requests))
    yield Count(f"{update.label}: received", received)
    if not update.held:
        yield Count(f"{update.label}, 8 connections: memory", lambda: Figure(run()[0].run.peak / 2**20, "MiB", _PEAK))


def _pushed(stand: _Stand) -> Iterator[Count]:
    """Yield what a push onto an image moves, and the same push again."""

    @cache
    def run(turn: int) -> _Traffic:
        if turn == 0:
            return stand.traffic(stand.push(stand.images["released"], "counted:latest"))
        run(turn - 1)
        return stand.traffic(stand.push(stand.images["patched"], "counted:latest"))

    yield Count("push of six packages: sent", lambda: Figure(run(1).sent / 1000, "kB", 2000))
    yield Count("push of six packages: requests", lambda: Figure(run(1).requests, ""))
    yield Count("the same push again: requests", lambda: Figure(run(2).requests, "", 2))


def _from_files(stand: _Stand, stack: ExitStack) -> Iterator[Count]:
    """Yield what each object costs that comes as a file of its own, over HTTP and over TLS from nginx."""
    served, pulled = stand.place / "served", stand.place / "pulled"

    @cache
    def make() -> None:
        build_image(debian_root("updates") / "released", served / "released.cfs", "--store", str(served / "objects"))

    def run(*, secure: bool) -> Figure:
        make()
        authority = Authority(stand.place / "authority") if secure else None
        certificate = authority.issue("nginx") if authority else None
        url = stack.enter_context(nginx(served, stand.place / f"nginx-{secure}", certificate=certificate))
        trust = ["--ca-file", str(authority.certificate)] if authority else []
        pull = [*MKCFS, "pull", f"{url}released.cfs", str(stand.place / "pulled.cfs"), "--store", str(pulled), *trust]
        taken = []
        for _ in range(_TURNS):
            set_aside(pulled)
            taken.append(run_once(pull))
        return Figure(median(taken).cpu * 1e6 / len(_objects(pulled)), "µs", _EACH)

    for secure in (False, True):
        over = "TLS" if secure else "HTTP"
        yield Count(f"pull, first, files from nginx over {over}: CPU for each", partial(run, secure=secure))


# Timed


def _source(link: Link, name: str) -> list[str]:
    """Where skopeo copies from."""
    return ["--quiet", "--src-tls-verify=false", f"docker://localhost:{link.port}/{name}"]


def _timed(stand: _Stand) -> Iterator[Job]:
    """Yield pulls at a distance against copies of the same image."""
    theirs = stand.place / "theirs"
    storage = f"containers-storage:[overlay@{theirs}/root+{theirs}/run]localhost/app"
    # What the storage mounts for itself ends with the namespace.
    alone = ["unshare", "--mount", "--propagation", "private"]
    six, everything, small, _ = _UPDATES
    for update, target in ((_FIRST, Target(1, 1)), (six, Target(3, 3)), (everything, None)):
        yield Job(
            name=f"{update.label}, 50 ms / skopeo copy to containers-storage",
            ours=_pull(stand.far, update.name, stand.place),
            theirs=[*alone, "skopeo", "copy", *_source(stand.far, update.name), storage],
            before=partial(_start_over, stand, held=update.held),
            target=target,
        )
    for update, link, label in (
        (_FIRST, stand.far, "50 ms"),
        (six, stand.far, "50 ms"),
        (_FIRST, stand.slow, "50 ms and 100 Mbit/s"),
        (six, stand.slow, "50 ms and 100 Mbit/s"),
        (small, stand.slow, "50 ms and 100 Mbit/s"),
    ):
        yield Job(
            name=f"{update.label}, {label} / skopeo copy to a layout",
            ours=_pull(link, update.name, stand.place),
            theirs=["skopeo", "copy", *_source(link, update.name), f"oci:{theirs / 'layout'}:app"],
            before=partial(_with_layout, stand, held=update.held),
            target=Target(3, 3) if update is six and link is stand.slow else None,
        )


def _with_layout(stand: _Stand, *, held: bool) -> None:
    _start_over(stand, held=held)
    if held:
        subprocess.run(["cp", "-a", str(stand.layout), str(stand.place / "theirs/layout")], check=True)


def _layers(stand: _Stand) -> Iterator[Job | Count]:
    """Yield the import of an image of gzip layers: in one pass, or by way of a layout."""
    ours, theirs = stand.place / "built", stand.place / "theirs"

    @cache
    def make() -> None:
        run_once(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{_gzip_layers()}", name(stand.near)])

    def name(link: Link) -> str:
        return f"docker://localhost:{link.port}/layers:latest"

    def build(source: str, place: Path) -> list[str]:
        return [*MKCFS, "build", source, str(place / "i.cfs"), "--store", str(place / "s")]

    def start_over() -> None:
        set_aside(ours, theirs)
        for directory in (ours, theirs):
            directory.mkdir()

    def memory() -> Figure:
        make()
        start_over()
        return Figure(run_once([*build(name(stand.near), ours), "--plain-http"]).peak / 2**20, "MiB", _PEAK)

    copy = ["skopeo", "copy", *_source(stand.far, "layers:latest"), f"oci:{theirs}/layout:latest"]
    yield Count(f"build docker:// of {_LAYERS} gzip layers, 8 connections: memory", memory)
    yield Job(
        name=f"build docker:// of {_LAYERS} gzip layers, 50 ms / skopeo copy + build oci:",
        ours=[*build(name(stand.far), ours), "--plain-http"],
        theirs=["sh", "-ec", f"{shlex.join(copy)}; {shlex.join(build(f'oci:{theirs}/layout', theirs))}"],
        make=make,
        before=start_over,
        target=Target(1, 1),
    )


def _gzip_layers() -> Path:
    """Return a layout with a Debian root as an image of gzip layers of about the same size."""

    def make(place: Path) -> None:
        root = debian_root("updates") / "released"
        members = [root, *sorted(root.rglob("*"))]
        share = sum(_size(path) for path in members) / _LAYERS
        layers = [place / f"layer-{number}" for number in range(_LAYERS)]
        taken, left = 0.0, iter(members)
        for number, layer in enumerate(layers, 1):
            with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
                for path in left:
                    archive.add(path, arcname=str(path.relative_to(root)), recursive=False)
                    taken += _size(path)
                    if taken >= number * share and number < _LAYERS:
                        break
        write_layout(place / "layout", layers)
        for layer in layers:
            layer.unlink()

    return inputs.cached(f"oci-{_LAYERS}-layers", make) / "layout"


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else 512
