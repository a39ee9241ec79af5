"""What the security document promises is tested where it says."""

from __future__ import annotations

import re

from tests.requirements import REPOSITORY

TEXT = (REPOSITORY / "docs/security.md").read_text(encoding="utf-8")


def test_every_promise_names_tests_that_are_there() -> None:
    section = TEXT.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named, row
        for path in named:
            assert "def test_" in (REPOSITORY / path).read_text(encoding="utf-8"), path
