"""docs/json.md says what the reports are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cfstools.formats.base import Region
from tests.mkcfs import mkcfs
from tests.project.reports import classes, members, parts, schema
from tests.requirements import REPOSITORY

DOCUMENT = (REPOSITORY / "docs/json.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^### `(\w+)`(?:, schema (\d+))?$")
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*) \|$")
# The command shows paths as text where the report has bytes.
SHOWN = {("FileDigest", "path"): "text", ("ExpectReport", "choices"): "list of texts"}


def tables() -> dict[str, tuple[int | None, dict[str, str]]]:
    """Name of each report in the document to its schema, if it is one by itself, and its members and their types."""
    found: dict[str, tuple[int | None, dict[str, str]]] = {}
    name = ""
    for line in DOCUMENT.splitlines():
        if heading := HEADING.match(line):
            name = heading[1]
            assert name not in found
            found[name] = (int(heading[2]) if heading[2] else None, {})
        elif row := ROW.match(line):
            found[name][1][row[1]] = row[2]
    return found


TABLES = tables()


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {"Region"}))
def test_a_table_is_what_the_code_says(name: str) -> None:
    number, rows = TABLES[name]
    kind = classes()[name]
    assert number in (None, schema(kind))
    assert rows == {member: SHOWN.get((name, member), words) for member, words in members(kind).items()}
    assert list(rows) == list(members(kind))


def test_the_regions_of_a_layout() -> None:
    assert list(TABLES["Region"][1]) == list(Region._fields)


def test_no_report_is_left_out() -> None:
    documents = [name for name, (number, _) in TABLES.items() if number is not None]
    needed = {part.__name__ for name in documents for part in parts(classes()[name])}
    assert needed <= TABLES.keys()
    assert TABLES.keys() - needed == {*documents, "Region"} - needed


def test_the_commands_print_what_the_tables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rootfs").mkdir()
    Path("rootfs/large").write_bytes(b"x" * 5000)
    Path("rootfs/small").write_bytes(b"x")
    mkcfs("keygen", "key", "--no-passphrase")
    printed = {
        "BuildReport": mkcfs("build", "rootfs", "image", "--store", "objects", "--sign-key", "key.key", "--json"),
        "InspectReport": mkcfs("inspect", "image", "--json"),
        "TreeReport": mkcfs("inspect", "image", "--tree", "--json"),
        "VerifyReport": mkcfs("verify", "image", "--key", "key.pub", "--store", "objects", "--json"),
        "PushReport": mkcfs("push", "image", "oci:layout", "--store", "objects", "--json"),
        "FilesPushReport": mkcfs("push", "image", "there/", "--store", "objects", "--json"),
        "PullReport": mkcfs("pull", "there/image", "--store", "none", "--dry-run", "--json"),
        "PlanReport": mkcfs("plan", "image", "there/image", "--json"),
        "StorePushReport": mkcfs("store", "push", "--store", "objects", "mirror", "--json"),
        "SignReport": mkcfs("sign", "image", "--key", "key.key", "--json"),
        "FileDigest": mkcfs("digest", "image", "--json-lines"),
        "ObjectReport": mkcfs("objects", "image", "--json-lines"),
        "ExtractReport": mkcfs("extract", "image", "tree", "--store", "objects", "--json"),
        "DiffReport": mkcfs("diff", "image", "image", "--json"),
        "ExpectReport": mkcfs("diff", "rootfs", "--expect", "0" * 64, "--json", check=False),
        "StoreFsckReport": mkcfs("store", "fsck", "--store", "objects", "--json"),
        "StoreGcReport": mkcfs("store", "gc", "--store", "objects", "--keep", "image", "--json"),
        "StoreStatReport": mkcfs("store", "stat", "--store", "objects", "image", "--json"),
        "RemoveReport": mkcfs("sign", "image", "--remove", "--json"),
    }
    for name, done in printed.items():
        number, rows = TABLES[name]
        document = json.loads(done.stdout)
        assert list(document) == ["schema", *rows], name
        assert document["schema"] == number, name
