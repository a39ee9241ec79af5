"""``make demo`` does what it says, with debootstrap and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import REPOSITORY


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.demo", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_on_a_debian_root(debian_tree: Path) -> None:
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a minimal Debian 12" in done.stdout
    assert "bit for bit" in done.stdout
    assert len(done.stdout.splitlines()) < 80


@pytest.mark.slow
def test_on_the_files_of_this_machine(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    done = demo("--host", "--keep", str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "assembled from this machine's own files" in done.stdout
    assert (place / "image.cfs").read_bytes() == (place / "third.cfs").read_bytes()
