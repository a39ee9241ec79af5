"""``mkcfs inspect``: what it lists is one document with ``--json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_app import failing
from tests.mkcfs import mkcfs

DUMP = b"""/ 4096 40755 5 0 0 0 1.0 - - -
/a 4096 40755 2 0 0 0 1.0 - - -
/a/link 3 120777 1 0 0 0 1.0 a\\x20b - -
/a/one 3 100644 2 7 8 0 1700000000.5 - hi! - user.x=y
/b 4096 40755 2 0 0 0 1.0 - - -
/b/dev 0 20600 1 0 0 259 1.0 - - -
/b/two 0 @100644 2 7 8 0 1700000000.5 /a/one - -
/bc 4096 40755 2 0 0 0 1.0 - - -
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    mkcfs("build", "--from-file", "-", tmp_path / "image.cfs", stdin=DUMP)
    return tmp_path / "image.cfs"


def listed(image: Path, *words: str) -> list[dict[str, Any]]:
    document = json.loads(mkcfs("inspect", image, "--json", *words).stdout)
    assert set(document) == {"schema", "names"}
    assert document["schema"] == 2
    names: list[dict[str, Any]] = document["names"]
    return names


def test_the_tree_has_what_ls_has(image: Path) -> None:
    lines = [json.loads(line) for line in mkcfs("ls", "--json-lines", image).stdout.splitlines()]
    for line in lines:
        del line["schema"]
    assert listed(image, "--tree") == lines
    one, two = (next(line for line in lines if line["path"] == path) for path in ("/a/one", "/b/two"))
    assert (one["mode"], one["uid"], one["gid"], one["size"], one["type"]) == ("0644", 7, 8, 3, "file")
    assert (one["mtime_sec"], one["mtime_nsec"], one["xattrs"]) == (1700000000, 5, {"user.x": "y"})
    assert two["link_to"] == "/a/one"


@pytest.mark.parametrize(
    ("start", "paths"),
    [
        ("/b", ["/b", "/b/dev", "/b/two"]),
        ("b//", ["/b", "/b/dev", "/b/two"]),
        ("/a/link", ["/a/link"]),
        ("/bc", ["/bc"]),
    ],
)
def test_a_part_of_the_tree(image: Path, start: str, paths: list[str]) -> None:
    names = listed(image, "--tree", start)
    assert [name["path"] for name in names] == paths
    # The first name of a hard link is told even if it is not in the list.
    assert all(name["link_to"] == "/a/one" for name in names if name["path"] == "/b/two")
    assert len(mkcfs("inspect", image, "--tree", start).stdout.splitlines()) == len(paths)


def test_the_text_is_as_before(image: Path) -> None:
    assert mkcfs("inspect", image, "--tree", "/a").stdout.decode().splitlines() == [
        "drwxr-xr-x         0:0             /a",
        "lrwxrwxrwx         0:0               link -> a\\x20b",
        "-rw-r--r--         7:8           3   one",
    ]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_is_not_there(image: Path, words: list[str]) -> None:
    said = failing("inspect", image, "--tree", "/no", *words, code=1)
    assert said.endswith("image.cfs: no /no in the image")


def test_the_layout_is_one_document_too(image: Path) -> None:
    document = json.loads(mkcfs("inspect", image, "--json", "--layout").stdout)
    assert set(document) == {"schema", "regions"}
    assert {"start", "end", "kind", "label"} <= set(document["regions"][0])
