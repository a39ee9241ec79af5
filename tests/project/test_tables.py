"""docs/tables.md says what is so, and no link between documents leads nowhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from cfstools.errors import exit_codes
from tests.requirements import REPOSITORY
from tools.manual import ENVIRONMENT, EVERY

DOCUMENT = (REPOSITORY / "docs/tables.md").read_text(encoding="utf-8")
UNITS = {"": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DOCUMENTS = sorted([*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"])


def rows(heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines[2:]]


def test_the_environment() -> None:
    assert {cells[0].strip("`"): (cells[2], cells[1]) for cells in rows("Environment")} == {
        name: (text, "all" if verbs is EVERY else ", ".join(f"`{verb}`" for verb in sorted(verbs)))
        for name, (text, verbs) in ENVIRONMENT.items()
    }


def test_the_exit_codes() -> None:
    assert {int(code): meaning for code, meaning in rows("Exit codes")} == exit_codes()


@pytest.mark.parametrize(("said", "constant"), [row[1:] for row in rows("Limits")], ids=lambda text: text.strip("`"))
def test_a_limit_is_that_of_the_code(said: str, constant: str) -> None:
    number, _, unit = said.partition(" ")
    home, _, name = constant.strip("`").removesuffix("()").rpartition(".")
    if home.endswith("()"):
        home, _, kind = home.removesuffix("()").rpartition(".")
        value = getattr(getattr(importlib.import_module(f"cfstools.{home}"), kind)(), name)
    else:
        value = getattr(importlib.import_module(f"cfstools.{home}"), name)
    assert int(number.replace(",", "")) * UNITS[unit] == value


def anchors(path: Path) -> set[str]:
    """The names by which links reach the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def test_the_architecture_names_every_room() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text.partition("\n## Rooms\n")[2].partition("\n## ")[0], re.MULTILINE)
    rooms = {path.stem for path in (REPOSITORY / "cfstools").iterdir() if not path.name.startswith(("_", "py."))}
    assert len(named) == len(set(named))
    assert set(named) == rooms
