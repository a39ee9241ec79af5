"""How the command spells something is known to ``cli`` alone: the library names parameters and functions."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cfstools import api
from cfstools.cli.app import VERBS
from cfstools.cli.hints import OPTIONS, spelled
from cfstools.cli.verbs import mkcfs
from cfstools.errors import Phrase, Remedy
from tests.requirements import REPOSITORY

PACKAGE = REPOSITORY / "cfstools"
SOURCES = sorted(
    path
    for pattern in ("*.py", "*.pyi", "*.c", "*.h")
    for path in PACKAGE.rglob(pattern)
    if PACKAGE / "cli" not in path.parents
)
REMEDIES: dict[str, str] = {name: value for name, value in vars(Remedy).items() if name.isupper()}


def commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


LONG = {text for one in commands(mkcfs) for option in one.params for text in option.opts if text.startswith("--")}
WORDS = [*(rf"{re.escape(option)}(?![\w-])" for option in sorted(LONG)), r"--help\b", "-o basedir"]
SPELLINGS = re.compile(rf"(?<![\w-])(?:{'|'.join(WORDS)})|\bmkcfs (?:{'|'.join(VERBS)})\b")


def test_the_search_finds_what_it_looks_for() -> None:
    assert {"--store", "--skip-xattrs", "--forget-missing", "--json", "--verbose"} <= LONG
    assert len(SPELLINGS.findall("say --store, `--json`; `mkcfs store fsck`, or --sync=none; -o basedir=")) == 5
    assert not SPELLINGS.search("tar --sparse, --stores, x--store, a mkcfs file")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_spells_no_option(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not SPELLINGS.search(line), f"{path}:{number}"


def test_every_remedy_is_spelled_and_every_spelling_exists() -> None:
    assert set(OPTIONS) == set(REMEDIES.values())
    for text in OPTIONS.values():
        for option in re.findall(r"--[a-z-]+", text):
            assert option in LONG
        for verb in re.findall(r"mkcfs (\w+)", text):
            assert verb in VERBS


def arguments(value: object) -> set[str]:
    """The names of what a function takes, or of the fields of a class."""
    if isinstance(value, type):
        return {name for base in value.__mro__ for name in inspect.get_annotations(base)}
    return set(inspect.signature(value).parameters) if callable(value) else set()


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
def test_what_a_remedy_says_is_in_the_public_library(remedy: str) -> None:
    known = set().union(*(arguments(getattr(api, name)) for name in api._HOME_OF))
    for text in remedy.split(" or "):
        if text.endswith("()"):
            assert inspect.isroutine(getattr(api, text.removesuffix("()")))
        elif "." in text:
            kind, _, member = text.partition(".")
            owner = getattr(api, kind)
            assert hasattr(owner, member) or member in arguments(owner)
        else:
            assert text.partition("=")[0] in known


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".py"], ids=str)
def test_phrases_are_made_of_remedies(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Phrase":
            for argument in call.args[1:]:
                assert ast.unparse(argument).startswith(("Remedy.", "*")), ast.unparse(call)


def test_a_phrase_is_text_in_both_languages() -> None:
    phrase = Phrase("raise {}, or see {{}}", Remedy.MAX_ENTRIES)
    assert phrase == "raise LayerRules.max_entries, or see {}"
    assert spelled(phrase) == "raise --max-entries, or see {}"
    assert spelled("raise {}") == "raise {}"
