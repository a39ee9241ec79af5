"""Click starts without modules that it hardly uses, and has them when it does."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfstools.cli import standins
from tests.mkcfs import unmeasured
from tests.requirements import REPOSITORY

NAMES = ("datetime", "gettext", "inspect", "threading", "uuid")


def said(program: str) -> list[str]:
    """What a new process prints that loads click as the command does first."""
    start = "import sys; from cfstools.cli.standins import load_click; load_click(); import click\n"
    command = [sys.executable, "-c", start + program]
    return subprocess.run(command, capture_output=True, check=True, env=unmeasured(), text=True).stdout.split()


def test_nothing_stands_in_afterwards() -> None:
    assert said(f"print(*[name for name in {NAMES} if name in sys.modules])") == []


@pytest.mark.parametrize("name", NAMES)
def test_imports_find_the_real_module(name: str) -> None:
    assert said(f"import {name}; print({name}.__spec__.name, {name}.__file__)") == [name, sys.modules[name].__file__]


def test_click_has_the_real_module_when_it_asks() -> None:
    program = """
import click.core
print(click.core.inspect.isfunction(len), click.core.inspect.isfunction(click.core.inspect.cleandoc))
import inspect
print(click.core.inspect.getsource is inspect.getsource)
"""
    assert said(program) == ["False", "True", "True"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_module_does_not_have(name: str) -> None:
    program = f"""
from cfstools.cli.standins import _StandIn
try:
    _StandIn({name!r}).nonsense
except AttributeError as error:
    print("AttributeError")
print(type(sys.modules[{name!r}]).__name__)
"""
    assert said(program) == ["AttributeError", "module"]


def test_click_is_left_alone_where_it_was_loaded_before() -> None:
    import click

    standins.load_click()
    assert sys.modules["click"] is click


@given(st.text(alphabet="ab \n\t."))
@example("a\n\n  b\n\tc\n  \n")
def test_texts_are_straightened_like_those_of_python(text: str) -> None:
    assert standins._straightened(text) == inspect.cleandoc(text)


def test_messages_count_what_they_count() -> None:
    assert [standins._counted("one", "several", count) for count in (0, 1, 2)] == ["several", "one", "several"]
    assert standins._same("a message") == "a message"


def test_no_verb_has_the_types_that_are_left_out() -> None:
    for path in (REPOSITORY / "cfstools/cli").rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Attribute)}
        assert not names & {"DateTime", "UUID"}, path
