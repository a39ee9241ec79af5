"""The names of ``cfstools.api`` are the public library, whatever was imported before."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cfstools import api

SOURCE = Path(api.__file__)
IMPORTED = {
    alias.name: node.module
    for node in ast.walk(ast.parse(SOURCE.read_bytes()))
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cfstools")
    for alias in node.names
}


def test_type_checkers_and_the_interpreter_are_told_the_same() -> None:
    assert IMPORTED == api._HOME_OF


@pytest.mark.parametrize("name", sorted(api._HOME_OF))
def test_a_name_is_what_its_module_defines(name: str) -> None:
    assert getattr(api, name) is getattr(sys.modules[api._HOME_OF[name]], name)
    assert name in dir(api)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(api, "nothing")  # noqa: B009


@pytest.mark.parametrize("first", ["import cfstools.api.verify", "from cfstools.api.verify import Outcome", "pass"])
def test_the_function_wins_over_the_module_of_its_name(first: str) -> None:
    script = (
        f"{first}\nfrom cfstools.api import verify\nimport cfstools.api.verify\nassert verify is cfstools.api.verify"
    )
    subprocess.run([sys.executable, "-c", f"{script}\nverify.__code__"], check=True)


def test_nothing_is_loaded_before_it_is_used() -> None:
    script = (
        "import sys\nimport cfstools.api\nassert not [name for name in sys.modules if name.startswith('cfstools.api.')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
