"""What the code cites is there: pages and headings of docs/, sections and oddities of the image format; and tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
FORMAT = "composefs format"

_NUMBER = r"\d+(?:\.\d+)*"
_PAGE = re.compile(r'docs/([\w-]+\.md)((?:(?:, | and |, and )"[^"]+")*)')
_SECTION = re.compile(rf"(?:(\w+ \w+), )?\bsections? ({_NUMBER}(?:(?:, | and | to ){_NUMBER})*)")
_ODDITY = re.compile(r"\bQ\d+\b")


@cache
def headings(page: str) -> frozenset[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return frozenset(title.strip() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))


@cache
def sections() -> frozenset[str]:
    """Numbers of the image format's sections; those of its section 6 stand in brackets on the page of the dump text."""
    numbered = re.findall(rf"^#+ ({_NUMBER})\.? ", (DOCS / "image-format.md").read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(numbered) | frozenset(
        number for title in headings("dump-format.md") for number in re.findall(rf"\[({_NUMBER})\]$", title)
    )


@cache
def oddities() -> frozenset[str]:
    text = (DOCS / "image-format.md").read_text(encoding="utf-8")
    return frozenset(_ODDITY.findall(text.partition("### 10.3")[2].partition("\n## ")[0]))


def flowing(text: str) -> str:
    """*text* without the line breaks and comment marks that a citation may be broken by."""
    return re.sub(r"\s*\n\s*(?:#|\*(?!/))?\s*", " ", text)


def wrong_citations(text: str) -> Iterator[str]:
    text = flowing(text)
    for page, cited in _PAGE.findall(text):
        if not (DOCS / page).is_file():
            yield f"there is no docs/{page}"
            continue
        for title in re.findall(r'"([^"]+)"', cited):
            if title not in headings(page):
                yield f'docs/{page} has no heading "{title}"'
    for source, numbers in _SECTION.findall(text):
        if source.startswith("RFC "):
            continue
        if source not in {"", FORMAT}:
            yield f"section {numbers} of {source}, which is no document here"
        yield from (f"no section {number}" for number in re.findall(_NUMBER, numbers) if number not in sections())
    yield from (f"no oddity {name}" for name in _ODDITY.findall(text) if name not in oddities())


def sources() -> list[Path]:
    return sorted(path for path in (PROJECT / "cfstools").rglob("*") if path.suffix in {".py", ".pyi", ".c", ".h"})


def test_what_the_code_cites_is_there() -> None:
    wrong = {str(path.relative_to(PROJECT)): [*wrong_citations(path.read_text(encoding="utf-8"))] for path in sources()}
    assert {path: found for path, found in wrong.items() if found} == {}


def test_citations_are_found() -> None:
    text = " ".join(flowing(path.read_text(encoding="utf-8")) for path in sources())
    assert len(_PAGE.findall(text)) > 20
    assert len(_SECTION.findall(text)) > 60
    assert {"Headers of tar archives", "Applying layers", "Verifying"} <= {
        title for _, cited in _PAGE.findall(text) for title in re.findall(r'"([^"]+)"', cited)
    }
    assert {"1", "6.2", "6.4", "10.3"} <= sections()
    assert {"Q1", "Q8"} <= oddities()


@pytest.mark.parametrize(
    "text",
    [
        "see docs/nothing.md",
        'as docs/oci.md, "What\n    is red" says',
        'docs/oci.md, "What is read" and\n# "Nothing"',
        "(composefs format, section 7.2)",
        "(composefs format,\n# section 12)",
        "sections 4.5 to 4.9",
        "(section 10.3, Q99)",
        "OCI reading, section 3.3",
        " * Rules (section\n * 2.99).",
    ],
)
def test_wrong_citations_are_noticed(text: str) -> None:
    assert len(list(wrong_citations(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        'docs/oci.md, "What is\n    read" and "Applying layers"',
        "composefs format, sections 6.2,\n6.4 and 10.1",
        "(RFC 8878, section 3.1.1.1)",
        " * (section\n * 2.6)",
    ],
)
def test_right_citations_are_left_alone(text: str) -> None:
    assert list(wrong_citations(text)) == []


@pytest.mark.parametrize(
    "script", ["Makefile", ".ci/run", *sorted(f"tools/{path.name}" for path in (PROJECT / "tools").glob("check-*"))]
)
def test_tests_that_scripts_name_exist(script: str) -> None:
    """What was moved would be left out without a word, or end the script before its first test."""
    named = re.findall(r"\btests/[\w/]+(?:\.\w+)?", (PROJECT / script).read_text(encoding="utf-8"))
    assert [name for name in named if not (PROJECT / name).exists()] == []
