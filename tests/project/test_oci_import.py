"""The import script in examples/ and the commands of docs/usage.md work on images of every form."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mkcfs import COMMAND
from tests.oci import making
from tests.requirements import REPOSITORY

LARGE = making.member("usr/large", b"large" * 1000)
BASE = making.tar(making.member("usr/"), LARGE, making.member("usr/old", b"old" * 1000))
TOP = making.tar(making.member("usr/"), making.member("usr/.wh.old", b""), making.member("usr/new", b"new" * 1000))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one image of two layers in every form, and ``mkcfs`` as a command."""
    monkeypatch.chdir(tmp_path)
    layout = making.Layout()
    platform = {"os": "linux", "architecture": "amd64"}
    entry = layout.manifest([BASE, TOP], compression="+gzip", platform=platform)
    other = layout.manifest([BASE], platform={"os": "linux", "architecture": "arm64"})
    layout.tag(layout.index([entry, other]), "latest")
    for name, data in layout.files().items():
        (tmp_path / "layout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layout" / name).write_bytes(data)
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([BASE, TOP], "+zstd")))
    (tmp_path / "saved.tar").write_bytes(making.archive(making.docker([BASE, TOP])))
    (tmp_path / "base.tar.gz").write_bytes(gzip.compress(BASE))
    (tmp_path / "top.tar").write_bytes(TOP)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mkcfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "bin/mkcfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def run(script: str) -> str:
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), (script, done.stderr)
    return done.stdout


def test_the_usage(place: Path) -> None:
    section = (REPOSITORY / "docs/usage.md").read_text(encoding="utf-8").partition("## Container images\n")[2]
    lines = re.findall(r"^    (\S.*)$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(lines) >= 5
    images = set()
    for line in lines:
        said = run(line)
        if " inspect " in line:
            assert "layer 2:  sha256:" in said
        elif " app.cfs " in line:
            images.add((place / "app.cfs").read_bytes())
            (place / "app.cfs").unlink()
    assert len(images) == 1
    assert run("mkcfs ls base.cfs").splitlines()[-1].startswith("/usr/old")


@pytest.mark.parametrize("words", ["oci-archive:app.tar out", "oci:layout:latest out linux/amd64"])
def test_the_example(words: str, place: Path) -> None:
    said = run(f"{REPOSITORY / 'examples/oci-import/import.sh'} {words}")
    assert said.startswith("out/image.cfs: ok: digest ok, ")
    assert said.endswith(" 2 objects intact\n")
    report = json.loads((place / "out/import.json").read_text())
    assert (place / "out/image.digest").read_text() == f"sha256:{report['digest']} image.cfs\n"
    assert [layer["diff_id"] for layer in report["source"]["layers"]] == [making.digest(BASE), making.digest(TOP)]
