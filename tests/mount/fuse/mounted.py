"""Images mounted by FUSE for the length of a block, by users and by root."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import requirements
from tests.users import User


@dataclass
class Served:
    """A mount and its server; ``counters`` and ``errors`` are there when it has ended."""

    path: Path
    process: subprocess.Popen[bytes]
    counters: dict[str, int] = field(default_factory=dict)
    errors: str = ""


def module(name: str, *words: str | Path) -> list[str]:
    """The command that runs a module of the tests."""
    return ["env", f"PYTHONPATH={requirements.REPOSITORY}", sys.executable, "-m", name, *map(str, words)]


def serving(image: Path, directory: Path, stores: list[Path], *options: str) -> list[str]:
    """The command that mounts and serves."""
    return module("tests.mount.fuse.serving", image, directory, *stores, *options)


@contextmanager
def served_to(user: User, image: Path, directory: Path, stores: list[Path], *options: str) -> Iterator[Served]:
    """*image*, mounted by *user* with fusermount3; ends with the mount."""
    requirements.need_command("fusermount3")
    command = user.command(*serving(image, directory, stores, *options))
    unmount = user.command("fusermount3", "-u", directory)
    with _served(command, unmount, directory, user.environment) as made:
        yield made


@contextmanager
def served_to_root(image: Path, directory: Path, stores: list[Path], *options: str) -> Iterator[Served]:
    """*image*, mounted by root where the test is."""
    command = [word.encode() for word in serving(image, directory, stores, "--detached", *options)]
    with _served(command, [b"umount", bytes(directory)], directory, None) as made:
        yield made


@contextmanager
def _served(
    command: list[bytes], unmount: list[bytes], directory: Path, environment: dict[str, str] | None
) -> Iterator[Served]:
    # Into a file: the server must not wait for somebody to read what it says.
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    made = Served(directory, process)
    try:
        line = process.stdout.readline()
        log.seek(0)
        assert line == b"ready\n", log.read().decode()
        yield made
    finally:
        if process.poll() is None:
            subprocess.run(unmount, env=environment, check=False)
        try:
            out, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        with log:
            log.seek(0)
            made.errors = log.read().decode()
        if out:
            made.counters = json.loads(out)
