"""The tutorial works as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import COMMAND
from tests.mounts import unmount_below
from tests.project.tutorial_image import archive
from tests.requirements import REPOSITORY, need_mounts

DOCUMENT = (REPOSITORY / "docs/tutorial.md").read_text(encoding="utf-8")
USER, ROOT = "$ ", "# "


def steps() -> list[tuple[str, str, str]]:
    """Every command of the tutorial: the prompt it stands behind, the command, and what it prints."""
    found: list[tuple[str, str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        assert block.startswith((USER, ROOT))
        for line in block.splitlines(keepends=True):
            if line.startswith((USER, ROOT)):
                found.append((line[:2], line[2:].rstrip("\n"), ""))
            else:
                prompt, command, printed = found[-1]
                found[-1] = (prompt, command, printed + line)
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the image, an empty one to mount on, and ``mkcfs`` as a command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.tar").write_bytes(archive())
    (tmp_path / "root").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mkcfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "bin/mkcfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    yield tmp_path
    unmount_below(tmp_path)


def run(command: str, printed: str) -> None:
    """Run a command of the tutorial: it ends well and prints this, where ``…`` stands for anything on a line."""
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout)
    pattern = ".*".join(re.escape(part) for part in printed.split("…"))
    assert re.fullmatch(pattern, done.stdout), f"{command}\n{done.stdout}"


def test_the_tutorial(place: Path) -> None:
    commands = [step for step in steps() if step[0] == USER]
    assert len(commands) >= 10
    for _, command, printed in commands:
        run(command, printed)


@pytest.mark.root
@pytest.mark.kernel
def test_the_tutorial_as_root(place: Path) -> None:
    need_mounts("erofs", "overlay")
    mounts = [number for number, step in enumerate(steps()) if step[0] == ROOT]
    assert len(mounts) == 3
    for _, command, printed in steps()[: mounts[-1] + 1]:
        run(command, printed)
    assert not any(Path("root").iterdir())


def test_there_are_ten_commands_until_it_is_unmounted() -> None:
    lines = [command for _, command, _ in steps()]
    assert lines.index("mkcfs umount root") == 9
