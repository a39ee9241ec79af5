"""``mkcfs diff`` as a user sees it: lines, exit codes, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs

BEFORE = b"""\
/ 4096 40755 4 0 0 0 0.0 - - -
/big 70000 100644 2 0 0 0 5.0 ab/cd - 1111111111111111111111111111111111111111111111111111111111111111
/dir 4096 40755 2 0 0 0 0.0 - - -
/dir/again 0 @120000 - - - - 0.0 /big - -
/dir/gone 3 100644 1 0 0 0 0.0 - abc -
/moved 80 100644 1 0 0 0 0.0 a/b - -
/name\\x20with\\nodd 0 100755 1 0 0 0 0.0 - - - user.a=1
/same 3 100644 1 0 0 0 0.0 - abc -
/sl 3 120777 1 0 0 0 0.0 abc - -
"""
AFTER = b"""\
/ 4096 40755 4 0 0 0 0.0 - - -
/big 80000 100644 3 0 0 0 5.25 ef/01 - 2222222222222222222222222222222222222222222222222222222222222222
/dir 4096 40755 2 0 0 0 0.0 - - -
/dir/again 0 @120000 - - - - 0.0 /big - -
/dir/come 0 @120000 - - - - 0.0 /big - -
/moved 80 100644 1 0 0 0 0.0 a/c - -
/name\\x20with\\nodd 0 104755 1 7 8 0 0.0 - - - user.b=1
/same 3 100644 1 0 0 0 0.0 - xyz -
/sl 3 100777 1 0 0 0 0.0 - abc -
"""

LINES = rb"""M /big: mtime 5.000000000 -> 5.000000025; content 70000 -> 80000 bytes
+ /dir/come: a link to /big
- /dir/gone
M /moved: payload a/b -> a/c
M /name\x20with\nodd: mode 0755 -> 4755; owner 0:0 -> 7:8; xattr user.a removed; xattr user.b added
M /same: content of 3 bytes
M /sl: type symlink -> file
"""
SUMMARY = b"""\
changes:   1 added, 1 removed, 5 changed (type 1, mode 1, owner 1, mtime 1, xattrs 1, content 2, payload 1)
fetch:     2 objects (78.2 KiB) and the image (16.0 KiB); 0 objects shared
A:         v0-sha256-12 DIGEST dump before
B:         v0-sha256-12 DIGEST dump after
"""


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "before").write_bytes(BEFORE)
    (tmp_path / "after").write_bytes(AFTER)
    for name in ("before", "after"):
        mkcfs("build", "--from-file", tmp_path / name, tmp_path / f"{name}.cfs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest_of(dump: str) -> bytes:
    return mkcfs("build", "--from-file", dump, "--print-digest-only").stdout.strip()


def test_every_change_has_a_line(sides: Path) -> None:
    done = mkcfs("diff", "before", "after", check=False)
    summary = SUMMARY
    for name in ("before", "after"):
        summary = summary.replace(b"DIGEST", digest_of(name), 1)
    assert done.stdout == LINES + summary
    assert (done.code, done.stderr) == (3, b"")
    assert mkcfs("diff", "--summary", "before", "after", check=False).stdout == summary


def test_nothing_to_say_of_the_same(sides: Path) -> None:
    digest = digest_of("before").decode()
    assert mkcfs("diff", "before", "before.cfs").stdout.decode() == (
        "changes:   none\n"
        "fetch:     nothing; 2 objects shared\n"
        f"A:         v0-sha256-12 {digest} dump before\n"
        f"B:         v0-sha256-12 {digest} image before.cfs\n"
    )


def test_why_digests_differ(sides: Path) -> None:
    mkcfs("build", "before.cfs", "v1.cfs", "--min-version", "1")
    done = mkcfs("diff", "before.cfs", "v1.cfs", check=False)
    assert done.code == 3
    rows = done.stdout.decode().splitlines()
    assert rows[:2] == ["changes:   none", "fetch:     only the image (16.0 KiB); 2 objects shared"]
    assert rows[4] == "why:       format version: A is version 0, B is version 1"
    assert rows[5] == "unknown:   1 file without a digest, compared by size and object"
    ignored = mkcfs("diff", "before.cfs", "v1.cfs", "--ignore", "format").stdout.decode().splitlines()
    assert ignored[:2] == ["changes:   none", "ignored:   format"]
    assert not any(row.startswith("why") for row in ignored)


def test_two_algorithms(tmp_path: Path, sides: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "large").write_bytes(bytes(9000))
    (root / "linked").hardlink_to(root / "large")
    mkcfs("build", root, "a.cfs", "--hash", "sha512")
    mkcfs("diff", "a.cfs", root)
    forced = mkcfs("diff", "--hash", "sha256", "a.cfs", root, check=False)
    assert b"\nwhy:       hash algorithm: A has sha512, B has sha256; of 1 file only" in forced.stdout
    assert b"\nunknown:" not in forced.stdout
    ignoring = mkcfs("diff", "--hash", "sha256", "--ignore=format,mtime", "a.cfs", root).stdout
    assert b"\nunknown:   1 file with digests of two algorithms, compared by size\n" in ignoring


def test_hard_links_that_come_and_go(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    (root / "b").hardlink_to(root / "a")
    mkcfs("build", root, tmp_path / "kept.cfs")
    mkcfs("build", root, tmp_path / "split.cfs", "--no-hardlinks")
    done = mkcfs("diff", tmp_path / "kept.cfs", tmp_path / "split.cfs", check=False)
    assert done.stdout.startswith(b"M /b: a link to /a -> an inode of its own\n")
    assert done.code == 3
    mkcfs("diff", tmp_path / "kept.cfs", tmp_path / "split.cfs", "--ignore", "links")


def test_aspects_can_be_ignored(sides: Path) -> None:
    everything = "mode,owner,mtime,xattrs,content,payload"
    done = mkcfs("diff", "before", "after", "--ignore", everything, "--ignore", "links", check=False)
    assert done.stdout.splitlines()[:3] == [
        b"+ /dir/come: a link to /big",
        b"- /dir/gone",
        b"M /sl: type symlink -> file",
    ]
    assert b"\nignored:   mode, owner, mtime, xattrs, content, payload, links\n" in done.stdout
    for wrong in ("type", "mode,", "nonsense"):
        refused = mkcfs("diff", "before", "after", "--ignore", wrong, check=False)
        assert refused.code == 2
        assert b"is not one of mode, owner" in refused.stderr


def test_json_is_one_document(sides: Path) -> None:
    done = mkcfs("diff", "before", "after", "--json", check=False)
    assert done.code == 3
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert not document["same"]
    assert [change["path"] for change in document["changes"]][:2] == ["/big", "/dir/come"]
    assert document["changes"][2] == {
        "path": "/dir/gone", "change": "removed", "type": "file", "link_to": None, "differences": [],
    }  # fmt: skip
    short = json.loads(mkcfs("diff", "before", "after", "--json", "--summary", check=False).stdout)
    del document["changes"]
    assert short == document
    same = json.loads(mkcfs("diff", "before", "before.cfs", "--json").stdout)
    assert same["same"]
    assert same["reasons"] == []


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff\n")
    os.mkdir(path)
    said = mkcfs("diff", path, path).stdout
    assert said.count(b"\n") == 4
    assert said.endswith(b"/\\xff\\n\n")


def test_errors_are_one_line(tmp_path: Path, sides: Path) -> None:
    missing = mkcfs("diff", "before", "missing", check=False)
    assert (missing.code, missing.stdout) == (1, b"")
    assert missing.stderr.startswith(b"mkcfs: missing: ")
    assert mkcfs("diff", "-", "-", check=False).code == 2


def test_which_options_give_a_digest(sides: Path) -> None:
    digest = mkcfs("build", "--from-file", "before", "--print-digest-only", "--no-hardlinks").stdout.decode().strip()
    assert mkcfs("diff", "before", "--expect", digest).stdout == b"v0-sha256-12: hard links split (--no-hardlinks)\n"
    defaults = mkcfs("diff", "before", "--expect", digest_of("before").decode())
    assert defaults.stdout == b"v0-sha256-12: the defaults\n"
    document = json.loads(mkcfs("diff", "before", "--expect", digest, "--json").stdout)
    assert document["choices"] == ["hard links split (--no-hardlinks)"]
    done = mkcfs("diff", "before", "--expect", "00" * 32, check=False)
    assert done.code == 3
    assert done.stdout.startswith(b"none of ")
    for words in (["after", "--expect", digest], ["--expect", "x"], ["--expect", digest, "--summary"], []):
        assert mkcfs("diff", "before", *words, check=False).code == 2
