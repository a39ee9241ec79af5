"""The pipeline in examples/ and the one in docs/usage.md do what they say, and notice what they must."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mkcfs import COMMAND
from tests.requirements import REPOSITORY

PIPELINE = REPOSITORY / "examples" / "ci-pipeline"
HEADING = "## Sign and verify in CI"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout as the pipelines expect it: a tree to build, the scripts, and ``mkcfs`` as a command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/hostname").write_text("host\n")
    (tmp_path / "rootfs/etc/large").write_bytes(b"x" * 5000)
    (tmp_path / "ci-pipeline").symlink_to(PIPELINE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mkcfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "bin/mkcfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=False)


def damage_an_object(store: Path) -> None:
    (path,) = [path for path in store.glob("[0-9a-f][0-9a-f]/*") if path.is_file()]
    path.write_bytes(b"y" + path.read_bytes()[1:])


def steps(name: str) -> list[str]:
    """The steps of a pipeline that run its scripts."""
    text = (PIPELINE / name).read_text(encoding="utf-8")
    return [match[1] for match in re.finditer(r"^ *- (?:run: )?(ci-pipeline/.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
@pytest.mark.parametrize("passphrase", [False, True])
def test_the_example(name: str, passphrase: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if passphrase:
        monkeypatch.setenv("MKCFS_PASSPHRASE", "secret")
    assert run("mkcfs keygen release" + ("" if passphrase else " --no-passphrase")).returncode == 0
    monkeypatch.setenv("SIGNING_KEY", (place / "release.key").read_text())
    (place / "release.key").unlink()
    build, verify = steps(name)
    done = run(build)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("SIGNING_KEY")
    done = run(verify)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/image.cfs: ok: signature verified by Ed25519 key ")
    damage_an_object(place / "out/objects")
    done = run(verify)
    assert done.returncode == 3
    assert "damaged: /etc/large: " in done.stdout


def test_the_example_without_a_key(place: Path) -> None:
    done = run(steps("github.yml")[0])
    assert done.returncode != 0
    assert "SIGNING_KEY: the private key in PEM" in done.stderr
    assert not (place / "out").exists()


def test_the_readme(place: Path) -> None:
    section = (REPOSITORY / "docs/usage.md").read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    match = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert match is not None
    script = match[1]
    assert len(script.splitlines()) <= 10
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "image.cfs: ok: signature verified by Ed25519 key " in done.stdout
    damage_an_object(place / "objects")
    verify = script.strip().splitlines()[-1]
    assert verify.startswith("mkcfs verify ")
    assert run(verify).returncode == 3
