"""Pipes and devices where files are expected, as shells hand them over."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.errors import InputError, LimitExceeded
from cfstools.linux import contents
from cfstools.text import shown_path
from tests.mkcfs import COMMAND, mkcfs
from tests.requirements import REPOSITORY


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a tree, its image and its dump."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/name").write_text("contents\n")
    mkcfs("build", "src", "image.cfs")
    (tmp_path / "image.dump").write_bytes(mkcfs("dump", "image.cfs").stdout)
    return tmp_path


def test_an_image_goes_to_a_pipe(place: Path) -> None:
    assert mkcfs("build", "src", "/dev/stdout").stdout == (place / "image.cfs").read_bytes()


def test_an_image_goes_to_a_device() -> None:
    mkcfs("build", REPOSITORY / "docs", "/dev/null", check=True)


def test_a_link_to_a_file_is_followed(place: Path) -> None:
    (place / "link.cfs").symlink_to("real.cfs")
    mkcfs("build", "src", "link.cfs")
    assert (place / "link.cfs").is_symlink()
    assert (place / "real.cfs").read_bytes() == (place / "image.cfs").read_bytes()


def test_a_dump_comes_from_a_pipe(place: Path) -> None:
    mkcfs("build", "--from-file", "/dev/stdin", "again.cfs", stdin=(place / "image.dump").read_bytes())
    assert (place / "again.cfs").read_bytes() == (place / "image.cfs").read_bytes()


def test_an_image_comes_from_a_process_substitution(place: Path) -> None:
    script = f'{COMMAND[0]} -m cfstools.cli build --from-file <({COMMAND[0]} -m cfstools.cli dump "$1") again.cfs'
    subprocess.run(["bash", "-euc", script, "bash", "image.cfs"], cwd=place, check=True)
    assert (place / "again.cfs").read_bytes() == (place / "image.cfs").read_bytes()


@pytest.mark.parametrize("name", ["fifo", "/dev/null"])
def test_what_nobody_writes_to_is_empty(name: str, place: Path) -> None:
    os.mkfifo(place / "fifo")
    done = mkcfs("build", "--from-file", name, "again.cfs", check=False)
    assert done.code == 1
    assert done.stderr.startswith(f"mkcfs: {name}: the text is empty".encode())
    assert not (place / "again.cfs").exists()


def test_a_pipe_is_read_up_to_a_limit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_STREAM", 1 << 21)
    with (
        pytest.raises(LimitExceeded, match="/dev/zero: is a pipe or device of more than 2097152 bytes"),
        contents.whole_file(b"/dev/zero"),
    ):
        pass
    with (
        Path("/dev/zero").open("rb") as endless,
        pytest.raises(LimitExceeded, match="standard input: is a pipe or device of more than 2097152 bytes"),
    ):
        build(b"-", None, options=BuildOptions(from_file=True), stdin=endless)


def test_a_directory_is_no_file(place: Path) -> None:
    with pytest.raises(InputError, match="src: is a directory"), contents.whole_file(b"src"):
        pass


ODD = b"n\xff\n\x1b\xc3\xa4.cfs"
SHOWN = "n\\xff\\n\\x1b\u00e4.cfs"


def test_names_that_are_no_text_are_escaped(place: Path) -> None:
    built = json.loads(mkcfs("build", "--json", "src", ODD).stdout)
    assert built["image"] == SHOWN
    signed = json.loads(mkcfs("inspect", "--json", ODD).stdout)
    assert signed["path"] == SHOWN
    for document in (built, signed):
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    assert SHOWN in mkcfs("inspect", ODD).stdout.decode()
    os.unlink(os.fsencode(place) + b"/" + ODD)
    assert (
        mkcfs("inspect", ODD, check=False).stderr.decode()
        == f"mkcfs: {SHOWN}: cannot open: No such file or directory\n"
    )


def test_what_is_shown_stays_when_shown_again() -> None:
    assert shown_path(ODD) == SHOWN
    assert shown_path(SHOWN) == SHOWN
    assert shown_path(os.fsdecode(ODD)) == SHOWN
    assert shown_path(Path("plain name\\")) == "plain name\\"
    assert shown_path("\ud800") == "\\xed\\xa0\\x80"
