"""What an ordinary user has under each kernel: mounts without root, checked by the kernel where it can, and lazily."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.vm import tampering
from tests.vm.checks import OLD_USERS, USERS, check, mkcfs, objects
from tests.vm.look import look
from tests.vm.tampering import Image

USER = 4242
"""Whom the disk has as an ordinary user, with a range of further ids."""
DEVICE = Path("/dev/fuse")
_ENDS_WITHIN = 30.0
_COMMAND = [sys.executable, "-m", "cfstools.cli"]
_LOOK = [sys.executable, "-m", "tests.vm.look"]


def as_user(*words: str | Path, code: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """Run the command as the user, expect this exit code, and return what it said on both outputs."""
    done = _done(words, environment)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def refused(*words: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run the command as the user, which must fail with a message of its own; return that."""
    done = _done(words, environment)
    assert done.returncode in {1, 2}, (words, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def _done(words: Sequence[str | Path], environment: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *map(str, words)],
        **_user(),
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def _user() -> dict[str, Any]:
    return {"user": USER, "group": USER, "extra_groups": []}


def made(place: Path, *options: str) -> Image:
    """An image that the user builds; with ``--verity require`` its objects are sealed, as a user may do."""
    return tampering.made(place, as_user, *options, owner=USER)


def seen(said: str) -> tuple[str, dict[str, str | int]]:
    """The type of the file system and the files, as :mod:`tests.vm.look` printed them in its last line."""
    found = json.loads(said.splitlines()[-1])
    return found["type"], found["files"]


def run_and_look(one: Image, *options: str | Path) -> tuple[str, dict[str, str | int]]:
    """What a command sees that the user runs with the image on a directory."""
    where = one.home / "mnt"
    return seen(as_user("run", one.image, where, "--store", one.store, *options, "--", *_LOOK, where))


def processes() -> list[str]:
    """The processes of the user."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.stat().st_uid == USER:
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [one for one in found if one]


def nothing_remains(where: Path) -> None:
    """Wait until no process of the user is left; nothing is mounted on the directory."""
    end = time.monotonic() + _ENDS_WITHIN
    while (left := processes()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, left
    assert str(where) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


@contextmanager
def mounted(one: Image, *options: str | Path) -> Iterator[str]:
    """The image where all processes of the user see it; gives the method that was chosen."""
    where = one.home / "mnt"
    report = as_user("mount", one.image, where, "--store", one.store, "--json", *options)
    try:
        yield json.loads(report)["method"]
    finally:
        as_user("umount", where)
    nothing_remains(where)


def look_as_user(where: Path) -> tuple[str, dict[str, str | int]]:
    """What the user sees on a directory."""
    return seen(subprocess.run([*_LOOK, str(where)], **_user(), capture_output=True, text=True, check=True).stdout)


# Objects that the kernel checks for the user


@check(USERS)
def what_is_tampered_with_is_refused_when_the_user_requires_verity(place: Path) -> None:
    """All at once, since starting takes long here: before the first read, and after it below a mount that stays."""
    one = made(place, "--verity", "require")
    where = one.home / "mnt"
    words = ["run", one.image, where, "--store", one.store, "--verity", "require", "--", *_LOOK, where, "again"]
    command = [*_COMMAND, *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, **_user(), stdin=pipe, stdout=pipe, text=True) as process:
        assert seen(_line(process.stdout)) == ("overlay", one.wanted)
        tampering.tamper(one, owner=USER)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        _, again = seen(_line(process.stdout))
    tampering.right_or_refused(one, again)
    assert process.returncode == 0
    _, fresh = run_and_look(one, "--verity", "require")
    assert fresh == {**one.wanted, **tampering.WRONG}, fresh
    nothing_remains(where)


def _line(output: IO[str] | None) -> str:
    assert output is not None
    return output.readline()


# Which method is chosen


@check(OLD_USERS, USERS)
def a_user_mounts_by_fuse_and_runs_by_the_best_that_the_kernel_has(place: Path) -> None:
    one = made(place)
    with mounted(one) as method:
        assert method == "fuse", method
        assert look_as_user(one.home / "mnt") == ("fuse.mkcfs", one.wanted)
    wanted = "overlay" if Path("/sys/module/overlay").exists() and _takes_data_layers() else "fuse.mkcfs"
    assert run_and_look(one) == (wanted, one.wanted)
    nothing_remains(one.home / "mnt")


def _takes_data_layers() -> bool:
    """Whether this is the kernel whose overlay takes data layers from users; here, and only here, by its version."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 16)


@check(OLD_USERS, USERS)
def what_comes_lazily_is_right_for_users_and_root_and_is_kept(place: Path) -> None:
    one = made(place)
    where = one.home / "mnt"
    remote = one.home / "remote"
    ways: list[Callable[[], tuple[str, dict[str, str | int]]]] = [
        lambda: run_and_look(one, "--lazy", remote),
        lambda: _mounted_lazily(one, remote, as_user, look_as_user),
        lambda: _mounted_lazily(one, remote, mkcfs, look_as_root),
    ]
    one.store.rename(remote)
    there = {path.name for path in objects(remote)}
    assert len(there) >= len(tampering.VICTIMS)
    for way in ways:
        one.store.mkdir()
        os.chown(one.store, USER, USER)
        _, files = way()
        nothing_remains(where)
        assert files == one.wanted
        _wait_for_objects(one.store, there)
        shutil.rmtree(one.store)


def _wait_for_objects(store: Path, wanted: set[str]) -> None:
    """Wait until the server of a mount that is gone has published what it had fetched: it is root's own process."""
    end = time.monotonic() + _ENDS_WITHIN
    while (there := {path.name for path in objects(store)}) != wanted:
        assert time.monotonic() < end, (there, wanted)
        time.sleep(0.1)


def look_as_root(where: Path) -> tuple[str, dict[str, str | int]]:
    """What root sees on a directory."""
    return "", look(where)


def _mounted_lazily(
    one: Image, remote: Path, command: Callable[..., str], looked: Callable[[Path], tuple[str, dict[str, str | int]]]
) -> tuple[str, dict[str, str | int]]:
    where = one.home / "mnt"
    command("mount", one.image, where, "--store", one.store, "--lazy", remote)
    try:
        return looked(where)
    finally:
        command("umount", where)


# What is said where something is missing


@check(OLD_USERS)
def an_overlay_that_takes_no_data_layers_from_users_is_named(place: Path) -> None:
    one = made(place)
    where = one.home / "mnt"
    said = refused("run", one.image, where, "--store", one.store, "--method", "overlay", "--", "true")
    assert "this kernel's overlay takes no data layers from users" in said, said
    assert "6.16" in said
    assert "--method fuse" in said


@check(OLD_USERS, USERS)
def what_a_user_lacks_is_named(place: Path) -> None:
    one = made(place)
    where = one.home / "mnt"
    words: list[str | Path] = [one.image, where, "--store", one.store]
    namespaces = Path("/proc/sys/user/max_user_namespaces")
    with written(namespaces, "0"):
        said = refused("run", *words, "--", "true")
        assert "cannot make a user namespace" in said, said
        with mounted(one) as method:
            assert method == "fuse"
    with closed(DEVICE):
        for verb, end in (("mount", []), ("run", ["--", "true"])):
            said = refused(verb, *words, "--method", "fuse", *end)
            assert "open /dev/fuse: Permission denied" in said, said
    said = refused("mount", *words, environment={"PATH": "/nowhere"})
    assert "mounting as a user needs fusermount3" in said, said
    said = refused("mount", *words, "--allow-other")
    assert "fusermount3 refuses" in said, said
    assert "allow_other" in said, said
    assert "user_allow_other" in said, said
    said = refused("mount", *words, "--lazy", one.store, "--verity", "require")
    assert "objects fetched later cannot be sealed before they are opened" in said, said
    nothing_remains(where)


@contextmanager
def written(path: Path, text: str) -> Iterator[None]:
    """This text in a file of the kernel."""
    before = path.read_text(encoding="ascii")
    path.write_text(text, encoding="ascii")
    try:
        yield
    finally:
        path.write_text(before, encoding="ascii")


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """A device that only root may open."""
    before = path.stat().st_mode & 0o7777
    path.chmod(0o600)
    try:
        yield
    finally:
        path.chmod(before)
