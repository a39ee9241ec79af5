"""Modules are large enough to be worth a name and small enough to be read at once, and so are functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.requirements import REPOSITORY

PACKAGE = REPOSITORY / "cfstools"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LARGEST_MODULE = 500
SMALL_MODULE = 50
SMALL_MODULES = 8
LONGEST_FUNCTION = 60


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_module_is_too_large() -> None:
    assert [f"{path}: {lines(path)}" for path in SOURCES if lines(path) > LARGEST_MODULE] == []


def test_few_modules_are_tiny() -> None:
    """An ``__init__.py`` is the label of its package, not a module to look for something in: it does not count."""
    tiny = [path for path in SOURCES if lines(path) < SMALL_MODULE and path.name != "__init__.py"]
    assert len(tiny) < SMALL_MODULES, "\n".join(f"{path}: {lines(path)}" for path in tiny)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_too_long(path: Path) -> None:
    """From ``def`` to its last line: what decorates a verb lists its options, one a line, and is no part of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name}"
