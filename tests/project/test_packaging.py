"""What pyproject.toml promises."""

from __future__ import annotations

import re
import tomllib
from itertools import chain

from tests.requirements import REPOSITORY


def test_the_lower_group_is_exactly_the_lower_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    bounds = {re.sub(">=", "==", bound) for bound in chain(project["project"]["dependencies"], *extras)}
    pinned = {entry for entry in project["dependency-groups"]["lower"] if isinstance(entry, str)}
    assert pinned == bounds


def test_linters_are_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    loose = [entry for entry in project["dependency-groups"]["lint"] if "==" not in entry and "types-" not in entry]
    assert loose == []
