"""The scripts that publish an image and that update a host, and the commands of the README, from end to end."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import COMMAND, mkcfs
from tests.mounts import unmount_below
from tests.requirements import REPOSITORY, need_mounts
from tests.servers.registries import docker_registry

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with ``mkcfs`` as a command, a tree to build and keys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mkcfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "bin/mkcfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rootfs/usr").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"rootfs/usr/file{number}").write_bytes(os.urandom(3000))
    mkcfs("keygen", "release", "--no-passphrase")
    mkcfs("keygen", "other", "--no-passphrase")
    yield tmp_path
    unmount_below(tmp_path)


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def publish(reference: str, place: Path) -> None:
    key = (place / "release.key").read_text()
    done = run(EXAMPLES / "publish/publish.sh", "rootfs", reference, "out", SIGNING_KEY=key)
    assert done.returncode == 0, done.stderr


def update(reference: str, key: str) -> subprocess.CompletedProcess[str]:
    return run(EXAMPLES / "update/update.sh", reference, key, "host")


def objects_on_host(place: Path) -> int:
    return len(list((place / "host/objects").glob("[0-9a-f][0-9a-f]/*")))


def test_an_image_is_published_and_a_host_updated(place: Path) -> None:
    need_mounts("erofs", "overlay")
    with docker_registry(place / "registry") as host:
        reference = f"docker://{host}/app:stable"
        publish(reference, place)
        assert update(reference, "other.pub").returncode == 3
        assert not (place / "host/image.cfs").exists()
        done = update(reference, "release.pub")
        assert done.returncode == 0, done.stderr
        root = place / "host/root"
        assert (root / "usr/file3").read_bytes() == (place / "rootfs/usr/file3").read_bytes()
        before = os.stat(root).st_dev
        assert update(reference, "release.pub").returncode == 0
        assert os.stat(root).st_dev == before  # nothing was mounted anew
        (place / "rootfs/usr/file3").write_bytes(b"changed" * 100)
        (place / "rootfs/usr/file4").unlink()
        publish(reference, place)
        done = update(reference, "release.pub")
        assert done.returncode == 0, done.stderr
        assert (root / "usr/file3").read_bytes() == b"changed" * 100
        assert objects_on_host(place) == 21  # what changed, and for as long as garbage may stay the old contents
        assert (
            run("mkcfs", "verify", "host/image.cfs", "--key", "release.pub", "--store", "host/objects").returncode == 0
        )


def commands(document: str) -> list[str]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    section = text.partition("## Push and pull\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (mkcfs .*)$", section, re.MULTILINE)


def test_the_commands_of_the_documents(place: Path) -> None:
    readme, usage = commands("README.md"), commands("docs/usage.md")
    assert len(readme) == 4
    assert len(usage) == 3
    with docker_registry(place / "registry") as host:
        for line in (*readme, *usage):
            done = run(*shlex.split(line.replace("registry.example", host)))
            assert done.returncode == 0, (line, done.stderr)
    assert (place / "app.cfs").read_bytes() == (place / "image.cfs").read_bytes()
