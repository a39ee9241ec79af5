"""The manual pages are those of the commands, and say what they read."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import REPOSITORY, need_command
from tools.manual import ENVIRONMENT, PAGES, RELATED, outdated, pages

FOREIGN = {"unshare", "bwrap", "mkcomposefs", "composefs-info", "fsverity", "mount", "umount"}
# What the completion scripts set when they call the command; no user does.
OF_SCRIPTS = {"_MKCFS_COMPLETE"}
# A class that the command has a stand-in for.
OTHER_CAPITALS = {"UUID"}


def test_the_pages_are_current() -> None:
    assert outdated() == [], "make man writes them"


@pytest.mark.parametrize("seed", ["0", "2", "3"])
def test_the_pages_do_not_hang_on_the_order_of_sets(seed: str) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "tools.manual", "--check"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_page_leads_to_pages_that_exist() -> None:
    assert set(RELATED) == set(pages()) - {"mkcfs"}
    for page, related in RELATED.items():
        assert page not in related
        assert set(related) <= RELATED.keys() | FOREIGN


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.1")), ids=lambda path: path.stem)
def test_groff_has_nothing_to_say_about_a_page(path: Path) -> None:
    need_command("groff")
    done = subprocess.run(["groff", "-man", "-ww", "-Tascii", path], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    plain = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    titles = re.findall(r"^[A-Z][A-Z ]+$", plain, re.MULTILINE)
    expected = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"]
    assert [title for title in titles if title not in ("VERBS", "EXAMPLES")] == expected


def test_the_environment_is_what_the_code_reads() -> None:
    read = {name for path in (REPOSITORY / "cfstools/cli").rglob("*.py") for name in variables_of(path)}
    assert read - OF_SCRIPTS - OTHER_CAPITALS == set(ENVIRONMENT)


def variables_of(path: Path) -> Iterator[str]:
    """Text in capitals that is no metavar: names of variables and nothing else are written like that in ``cli``."""
    tree = ast.parse(path.read_bytes())
    metavars = {
        id(node)
        for keyword in ast.walk(tree)
        if isinstance(keyword, ast.keyword) and keyword.arg == "metavar"
        for node in ast.walk(keyword.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in metavars:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if re.fullmatch("_?[A-Z][A-Z0-9]+(_[A-Z0-9]+)*", text):
                yield text
