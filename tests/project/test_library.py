"""The examples of docs/library.md run, and its list of names is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cfstools import api
from tests.requirements import REPOSITORY

DOCUMENT = (REPOSITORY / "docs/library.md").read_text(encoding="utf-8")


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/hostname").write_text("host\n")
    (tmp_path / "rootfs/large").write_bytes(b"x" * 5000)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 5
    for snippet in snippets:
        exec(compile(snippet, "library.md", "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[0-9a-f]{64} 1", said[0])
    assert re.fullmatch(r"[0-9a-f]{128}", said[1])
    assert said[-1] == "1 nothing.cfs: cannot read: No such file or directory"
    assert (names["hostname"], names["missing"]) == (b"host\n", [])
    assert (tmp_path / "tree/etc/hostname").read_text() == "host\n"


def test_every_public_name_is_listed() -> None:
    listed = re.findall(r"`(\w+)`", DOCUMENT.partition("\n## Names\n")[2])
    assert sorted(listed) == sorted(api._HOME_OF)
