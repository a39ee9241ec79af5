"""What verbs take for small images made to be expensive: with and without native functions, about the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from cfstools.tree.model import Directory, HardLink, RegularFile, Symlink
from tests.bounds import SANITIZED
from tests.formats.images import write_image
from tests.mkcfs import COMMAND, unmeasured

MIB = 1 << 20
# The kernel counts for a process also what the one had that it was forked from, so that must be a small one.
MEASURE = """
import os, sys
nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=nowhere)
_, status, usage = os.wait4(pid, 0)
print(status, usage.ru_maxrss)
"""
pytestmark = [pytest.mark.both, pytest.mark.skipif(SANITIZED, reason="the sanitizer has memory of its own")]


def empty() -> RegularFile:
    return RegularFile(mode=0o100644, size=0, content=b"")


def shared_attributes() -> Directory:
    """Inodes that refer to the same large values, no two to all the same."""
    values = {b"user.k%02d" % number: bytes([65 + number]) * 1400 for number in range(24)}
    keys = list(values)
    root = Directory(mode=0o40755)
    for number in range(5_000):
        left_out = {number % 24, number // 24 % 24, number // 576 % 24}
        xattrs = {key: values[key] for at, key in enumerate(keys) if at not in left_out}
        root.entries[b"%05d" % number] = RegularFile(mode=0o100644, size=0, content=b"", xattrs=xattrs)
    return root


def comb(name: bytes = b"z") -> Directory:
    """A directory in a directory, many times, each with one name more."""
    root = directory = Directory(mode=0o40755)
    for _ in range(8000):
        below = Directory(mode=0o40755)
        directory.entries[name] = empty()
        directory.entries[b"a"] = below
        directory = below
    return root


def many_names() -> Directory:
    """One inode with very many names, and a long target."""
    inode = Symlink(mode=0o120777, target=b"t" * 4000, nlink=20_001)
    root = Directory(mode=0o40755, entries={b"0": inode})
    root.entries.update({b"l%d" % number: HardLink(inode) for number in range(20_000)})
    return root


def many_attribute_names() -> Directory:
    """No two attributes have the same name."""
    root = Directory(mode=0o40755)
    for number in range(20_000):
        xattrs = {b"user.%d" % number: b"v"}
        root.entries[b"%d" % number] = RegularFile(mode=0o100644, size=0, content=b"", xattrs=xattrs)
    return root


TREES: dict[str, Callable[[], Directory]] = {
    "shared attributes": shared_attributes,
    "comb": comb,
    "many names": many_names,
    "many attribute names": many_attribute_names,
}
VERBS = [
    ["dump"],
    ["ls"],
    ["ls", "--json-lines"],
    ["inspect"],
    ["verify"],
]


@pytest.fixture(scope="module", params=TREES)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("costs") / "image.cfs"
    path.write_bytes(write_image(TREES[request.param]()))
    yield path
    path.unlink()


def peak(arguments: list[str], mode: str, *, code: int = 0) -> int:
    """The memory that one run of the command has at its peak, in bytes."""
    environment = {**unmeasured(), "MKCFS_NATIVE": mode}  # measuring coverage takes memory, and long
    command = [sys.executable, "-ISc", MEASURE, *COMMAND, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    status, memory = map(int, done.stdout.split())
    assert os.waitstatus_to_exitcode(status) == code
    return memory << 10


@cache
def usual(arguments: tuple[str, ...], mode: str) -> int:
    """What a run takes with which others are compared."""
    return peak(list(arguments), mode)


def modes() -> list[str]:
    return ["pure"] if find_spec("cfstools.native._native") is None else ["pure", "native"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of next to nothing."""
    path = tmp_path_factory.mktemp("costs") / "small.cfs"
    path.write_bytes(write_image(Directory(mode=0o40755, entries={b"a": empty()})))
    return str(path)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two images that differ in one name of each of their directories."""
    paths = [tmp_path_factory.mktemp("costs") / f"{name}.cfs" for name in "yz"]
    for path in paths:
        path.write_bytes(write_image(comb(path.stem.encode())))
    return [str(path) for path in paths]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_memory_is_by_the_size_of_the_image(image: Path, small: str, verb: list[str]) -> None:
    """Not by what it would be without sharing, nor by the square of its depth; and the same in both modes."""
    taken = {mode: peak([*verb, str(image)], mode) - usual((*verb, small), mode) for mode in modes()}
    size = image.stat().st_size
    for mode, memory in taken.items():
        assert memory <= 16 * MIB + 24 * size, mode
    if "native" in taken:
        assert taken["native"] <= 1.5 * taken["pure"] + 8 * MIB


@pytest.mark.parametrize("form", ["text", "json"])
def test_differences_of_deep_trees_are_made_as_they_are_written(deep: list[str], form: str) -> None:
    command = ["diff", *deep, *(["--json"] if form == "json" else [])]
    for mode in modes():
        # Their paths take 128 MB.
        assert peak(command, mode, code=3) - usual(("diff", deep[0], deep[0]), mode) <= 16 * MIB, mode


def test_a_large_file_that_is_no_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 32)
        stream.write(b"no image")
    assert peak(["verify", str(path)], "pure", code=3) < 64 * MIB
    path.unlink()
