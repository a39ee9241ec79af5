"""The commands of docs/registries.md and docs/usage.md about registries work on a real one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.oci.registry.conftest import Served, push, two_platforms, write_layout
from tests.requirements import REPOSITORY
from tests.servers.registries import docker_registry

DOCUMENTS = {"docs/registries.md": "# Registries\n", "docs/usage.md": "## Images in registries\n"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with the image that the documents name, for two platforms."""
    place = tmp_path_factory.mktemp("registry")
    layout = write_layout(place / "layout", two_platforms())
    with docker_registry(place / "server") as host:
        push(layout, Served(host), "app:2", "--all")
        yield host


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands(document: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = (REPOSITORY / document).read_text(encoding="utf-8").partition(DOCUMENTS[document])[2]
    lines = re.findall(r"^    mkcfs (.*)$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace("registry.example", registry))
        # The image of the documents is for one platform; this one is for two.
        done = mkcfs(*words, *([] if "--platform" in words else ["--platform", "linux/amd64"]))
        assert done.stderr == b""
        if "inspect" in words:
            assert b"platform: linux/amd64" in done.stdout
