"""``mkcfs extract`` and ``mkcfs cat`` as users run them."""

from __future__ import annotations

import ast
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.mounted import differences
from tests.mkcfs import AS_NOBODY, COMMAND, NOBODY, mkcfs, unmeasured


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An image with its store."""
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/conf").write_text("text\n")
    (source / "etc/link").symlink_to("/etc/conf")
    (source / "etc/binary").write_bytes(bytes(range(256)) * 20)
    (source / "large").write_bytes(os.urandom(3 << 20))
    mkcfs("build", source, tmp_path / "image", "--store", tmp_path / "store")
    return tmp_path


def said(place: Path, *words: str | Path, code: int) -> str:
    """Run, expect *code* and one error line that names the image or the directory; return it."""
    done = mkcfs(*words, check=False)
    assert (done.code, done.stdout) == (code, b"")
    lines = done.stderr.decode().replace(str(place), "").splitlines()
    assert len([line for line in lines if not line.startswith("hint: ")]) == 1
    return lines[0]


def test_extract(place: Path) -> None:
    done = mkcfs("extract", place / "image", place / "out", "--store", place / "store")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert list(differences(bytes(place / "source"), bytes(place / "out"))) == []
    done = mkcfs("-v", "extract", place / "image", place / "part", "--path", "/etc", "-j1", "--store", place / "store")
    assert done.stderr.decode() == (
        f"{place}/part: 2 directories, 2 files, 1 symlink, 0 special files, 0 hard links; "
        "5.0 KiB copied, 0 B cloned, 0 B linked\n"
    )
    words = ["--store", str(place / "store"), "--hardlink", "--sync", "--json"]
    report = json.loads(mkcfs("-q", "extract", place / "image", place / "linked", *words).stdout)
    assert report["bytes_linked"] == (3 << 20) + 5120
    assert report["left_out"][0]["what"] == "modification times of hard-linked objects"
    assert (place / "linked/large").stat().st_nlink == 2


def test_options_that_contradict(place: Path) -> None:
    for words in (["--hardlink", "--copy"], ["--reflink", "--copy"], ["--skip-xattrs", "--user-xattrs"]):
        line = said(place, "extract", place / "image", place / "out", *words, code=2)
        assert line.startswith("mkcfs: ")
    assert not (place / "out").exists()


def test_copies_and_clones(place: Path) -> None:
    for word in ("--copy", "--no-owner", "--no-xattrs", "--user-xattrs", "--skip-devices"):
        mkcfs("extract", place / "image", place / word, word, "--store", place / "store")
        assert (place / word / "etc/conf").read_text() == "text\n"
    done = mkcfs("extract", place / "image", place / "cloned", "--reflink", "--store", place / "store", check=False)
    assert done.code == 0 or b"objects cannot be cloned there" in done.stderr


def test_what_fails_is_one_line(place: Path) -> None:
    image, out, store = place / "image", place / "out", place / "store"
    assert said(place, "extract", image, place / "source", "--store", store, code=1) == "mkcfs: /source: is not empty"
    line = said(place, "extract", image, out, code=3)
    assert line.startswith("mkcfs: /image: /etc/binary: object ")
    assert line.endswith(" is in none of the stores")
    objects = sorted(path for path in store.glob("??/*") if path.is_file())
    (largest,) = (path for path in objects if path.stat().st_size == 3 << 20)
    with largest.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"?")
    line = said(place, "extract", image, out, "--store", store, code=3)
    assert line.startswith(
        f"mkcfs: /image: /large: object /store/{largest.relative_to(store)} is damaged: its fs-verity"
    )
    assert sorted(path.name for path in place.iterdir()) == ["image", "source", "store"]
    assert said(place, "cat", image, "/large", "--store", store, code=3) == line


def test_cat(place: Path) -> None:
    for path, source in [("/etc/conf", "etc/conf"), ("etc/link", "etc/conf"), ("/etc/../large", "large")]:
        done = mkcfs("cat", place / "image", path, "--store", place / "store")
        assert done.stdout == (place / "source" / source).read_bytes()
        assert done.stderr == b""
    assert mkcfs("cat", place / "image", "/etc/conf").stdout == b"text\n"
    assert said(place, "cat", place / "image", "/etc", code=1) == "mkcfs: /image: /etc: is a directory, not a file"
    assert said(place, "cat", place / "image", "/no", code=1) == "mkcfs: /image: /no: no such name in the image"


def test_cat_to_a_terminal(place: Path) -> None:
    """As with cat(1), whoever asks for binary contents gets them."""
    master, slave = pty.openpty()
    command = [*COMMAND, "cat", str(place / "image"), "/etc/conf"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE, check=True)
    os.close(slave)
    assert (os.read(master, 100), done.stderr) == (b"text\r\n", b"")
    os.close(master)


def test_a_closed_pipe_ends_cat_quietly(place: Path) -> None:
    line = 'set -o pipefail; "$0" -m cfstools.cli cat image /large --store store | head -c 10 | wc -c'
    done = subprocess.run(["bash", "-c", line, COMMAND[0]], cwd=place, capture_output=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (b"10", b"")


@pytest.mark.parametrize("existing", [False, True])
def test_a_signal_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    """Stopped when some files are there and many are not."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(12_000):
        (source / f"f{number}").write_bytes(b"%d" % number)
    mkcfs("build", source, tmp_path / "image", "--store", tmp_path / "store")
    if existing:
        out.mkdir()
    before = sorted(os.listdir(tmp_path))
    process = subprocess.Popen([*COMMAND, "extract", tmp_path / "image", out], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(
        len(os.listdir(path)) > 200 for path in tmp_path.iterdir() if path.name.startswith(".") or path == out
    ):
        assert process.poll() is None, "too fast to be stopped"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"mkcfs: interrupted\n")
    assert sorted(os.listdir(tmp_path)) == before
    assert not existing or os.listdir(out) == []


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody can reach, owned by nobody."""
    made = Path(tempfile.mkdtemp(prefix="cfstools-"))
    made.chmod(0o755)
    os.chown(made, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)


@pytest.mark.slow
def test_a_debian_root_comes_back(debian_tree: Path, tmp_path: Path) -> None:
    image, store = tmp_path / "image", tmp_path / "store"
    mkcfs("build", debian_tree, image, "--store", store)
    done = mkcfs("extract", image, tmp_path / "out", "--store", store)
    assert done.stderr == b""
    assert list(differences(bytes(debian_tree), bytes(tmp_path / "out"))) == []
    again = mkcfs("build", tmp_path / "out", "--print-digest-only").stdout
    assert again == mkcfs("digest", "--compact", image).stdout
    report = json.loads(
        mkcfs("-q", "extract", image, tmp_path / "linked", "--hardlink", "--store", store, "--json").stdout
    )
    assert report["bytes_linked"] > report["bytes_copied"] > 0
    # All but the times of the files that are linked, whose link counts are those of their objects.
    for line in differences(bytes(debian_tree), bytes(tmp_path / "linked")):
        assert ": mtime_ns is " in line or ": nlink is " in line or line.startswith("hard links are "), line
    assert mkcfs("build", debian_tree, "--store", store, tmp_path / "same").stderr == b""
    assert (tmp_path / "same").read_bytes() == image.read_bytes()


@pytest.mark.slow
def test_a_debian_root_as_nobody(debian_tree: Path, open_place: Path) -> None:
    """All that an ordinary user can hold is equal, and what is not was announced."""
    image, store, out = open_place / "image", open_place / "store", open_place / "out"
    mkcfs("build", debian_tree, image, "--store", store)
    words = ["extract", str(image), str(out), "--store", str(store), "--json"]
    command = [sys.executable, "-c", AS_NOBODY, *words]
    done = subprocess.run(command, capture_output=True, check=True, env=unmeasured())
    left = {item["what"]: item["count"] for item in json.loads(done.stdout)["left_out"]}
    assert left["owners"] > 6000
    set_id = 0
    for line in differences(bytes(debian_tree), bytes(out)):
        name, _, what = line.partition(": ")
        field = what.split(" ")[0]
        if field == "mode":
            before, after = (
                int(text.strip("'"), 8) for text in (what.split("source ")[1], what.split(" ")[2].rstrip(","))
            )
            assert before & ~(stat.S_ISUID | stat.S_ISGID) == after, line
            set_id += 1
        elif field not in ("uid", "gid"):
            assert "is only in the source" in line, line
            path = debian_tree / os.fsdecode(ast.literal_eval(name.split(" is only")[0]))
            assert stat.S_ISCHR(path.lstat().st_mode) or stat.S_ISBLK(path.lstat().st_mode), line
    assert left["setuid and setgid bits"] == set_id > 5
    for what, count in left.items():
        noun = "name" if count == 1 else "names"
        assert f"mkcfs: warning: left out: {what} of {count} {noun}, first /" in done.stderr.decode()
    # A line for each, and nothing else.
    assert done.stderr.decode().count("\n") == len(left)
