"""Only the room output makes temporaries for outputs; a store has its own for objects."""

from __future__ import annotations

import ast
from pathlib import Path

import cfstools

ROOT = Path(cfstools.__file__).parent
MAKERS = {"O_TMPFILE", "open_tmpfile", "temporary_name", "make_held", "mkstemp", "mkdtemp"}
MAKERS |= {"NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"}


def names_in(path: Path) -> set[str]:
    """Every name, attribute and imported name of a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def test_only_output_makes_temporaries() -> None:
    makers = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if names_in(path) & MAKERS}
    # linux has the system calls, native a copy of them, store makes objects, and mount holds those that come lazily.
    assert makers == {"output", "linux", "mount", "native", "store"}
