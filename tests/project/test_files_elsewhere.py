"""The commands of docs/usage.md about files elsewhere work on a web server, a bucket and a registry."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.api.places import Served, make, stored
from tests.mkcfs import mkcfs
from tests.requirements import NEEDS_GO, REPOSITORY
from tests.servers.faulty import FaultyServer
from tests.servers.registries import docker_registry
from tests.servers.s3 import versitygw

USAGE = (REPOSITORY / "docs/usage.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    section = USAGE.partition("## Images as files elsewhere\n")[2].partition("\n## ")[0].replace("\\\n", "")
    return [re.sub(r"\s+#.*", "", line) for line in re.findall(r"^    mkcfs (.*)$", section, re.MULTILINE)]


@NEEDS_GO
def test_the_commands_work_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    for directory in ("srv/www", "mnt/nfs"):
        (tmp_path / directory).mkdir(parents=True)
    lines = commands()
    assert len(lines) == 8
    with (
        FaultyServer(Served(tmp_path / "srv/www")) as server,
        docker_registry(tmp_path / "registry") as registry,
        versitygw(tmp_path / "s3") as storage,
    ):
        for name, value in storage.environment.items():
            monkeypatch.setenv(name, value)
        places = {
            "https://example.com/": server.address(),
            "https://mirror.example/": server.address("images/"),
            "registry.example": registry,
            "/srv/": f"{tmp_path}/srv/",
            "/mnt/": f"{tmp_path}/mnt/",
        }
        mkcfs("push", made.image, "--store", "objects", f"docker://{registry}/app:2")
        mkcfs("push", made.image, "--store", "objects", "s3://bucket/images/")
        mkcfs("store", "push", "--store", "objects", "mnt/nfs/objects", made.image)
        for line in lines:
            for place, here in places.items():
                line = line.replace(place, here)  # noqa: PLW2901
            mkcfs(*shlex.split(line))
        assert stored(storage.bucket / "objects") == stored(tmp_path / "mnt/nfs/objects") == made.objects
        mkcfs("verify", "app.cfs", "--key", "release.pub", "--store", server.address("images/objects"))
