"""The shell around the verbs: streams, exit codes, one line for an error, nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfstools.errors import exit_codes
from tests.mkcfs import COMMAND, mkcfs


def small_tree(place: Path) -> Path:
    root = place / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("host\n")
    (root / "etc/large").write_bytes(b"x" * 5000)
    return root


def failing(*words: str | bytes | Path, code: int) -> str:
    """Run, expect *code*, nothing on standard output and one error line; return that line."""
    done = mkcfs(*words, check=False)
    said = done.stderr.decode()
    assert done.code == code, said
    assert done.stdout == b""
    lines = [line for line in said.splitlines() if not line.startswith("hint: ")]
    assert len(lines) == 1, said
    assert lines[0].startswith("mkcfs: ")
    assert "Traceback" not in said
    return lines[0]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str, tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    line = shlex.join([*COMMAND, "build", str(root), str(tmp_path / "image.cfs"), "--store", str(tmp_path / "objects")])
    done = subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert mkcfs("ls", tmp_path / "image.cfs").stdout.startswith(b"/etc/")
    line = shlex.join([*COMMAND, "ls", str(tmp_path / "image.cfs")])
    assert subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, check=False).returncode == 0
    line = shlex.join([*COMMAND, "ls", str(tmp_path / "absent")])
    assert subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("words", [["nonsense"], ["build", "--clamp-mtime", "abc"], ["build"], ["store", "nonsense"]])
def test_usage_errors_are_one_line_and_a_hint(words: list[str]) -> None:
    said = mkcfs(*words, check=False).stderr.decode().splitlines()
    assert len(said) == 2, said
    assert said[0].startswith("mkcfs: ")
    assert said[1].startswith("hint: mkcfs ")


def test_how_much_to_tell_may_stand_before_or_behind_the_verb(tmp_path: Path) -> None:
    words: list[str | Path] = ["build", small_tree(tmp_path), tmp_path / "image.cfs"]
    before = mkcfs("-v", *words).stderr
    assert before == mkcfs(*words, "-v").stderr
    assert b"v0-sha256-12" in before
    failing(*words, "-v", "-q", code=2)
    failing("-q", *words, "-v", code=2)


def test_exit_codes_are_the_documented_ones() -> None:
    assert list(exit_codes()) == [0, 1, 2, 3, 130]


def test_version_names_us_and_the_libraries() -> None:
    said = mkcfs("--version").stdout.decode()
    assert said.startswith("mkcfs 0.")
    for library in ("click", "zstandard", "cryptography", "tqdm"):
        assert library in said


def test_the_environment_chooses_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKCFS_NATIVE", "pure")
    assert b"(pure loops)" in mkcfs("--version").stdout
    monkeypatch.setenv("MKCFS_NATIVE", "fast")
    assert failing("--version", code=2) == "mkcfs: unknown implementation 'fast': pure, native or auto"


def test_version_loads_no_heavy_library() -> None:
    program = "import sys; from cfstools.cli.app import run; run(['--version']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    for heavy in ("'cryptography'", "'zstandard'", "'tqdm'", "'cfstools.api.build'"):
        assert heavy not in loaded


def test_help_lists_every_verb() -> None:
    said = mkcfs("--help").stdout.decode()
    for verb in ("build", "inspect", "ls", "dump", "objects", "digest"):
        assert f"\n  {verb}" in said


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["build"],
        ["build", "rootfs"],
        ["build", "rootfs", "image", "--print-digest-only"],
        ["build", "--skip-xattrs", "--user-xattrs", "rootfs", "image"],
        ["build", "--min-version", "2", "rootfs", "image"],
        ["build", "--hash", "md5", "rootfs", "image"],
        ["build", "rootfs", "-", "--json"],
        ["-v", "-q", "ls", "image"],
        ["objects", "--missing", "image"],
        ["objects", "--store", "x", "image"],
        ["ls", "--filter", "a/b", "image"],
        ["ls", ""],
        ["inspect", "image", "--tree", "/", "--layout"],
        ["digest", "--salt", "xyz", "file"],
        ["digest", "--block-size", "1000", "file"],
        ["ls", "--store", "a::b", "image"],
    ],
)
def test_usage_errors_exit_with_2(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rootfs").mkdir()
    done = mkcfs(*words, check=False)
    assert done.code == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "image").exists()


def test_build_writes_image_and_objects_and_says_nothing(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    done = mkcfs("build", root, tmp_path / "image.cfs", "--store", tmp_path / "objects")
    assert done.stdout == done.stderr == b""
    assert (tmp_path / "image.cfs").stat().st_size % 4096 == 0
    assert len([path for path in (tmp_path / "objects").glob("??/*") if path.is_file()]) == 1


def test_build_reports_objects_new_and_shared(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    words: list[str | Path] = ["build", root, tmp_path / "image.cfs", "--store", tmp_path / "objects", "--json"]
    first = json.loads(mkcfs(*words).stdout)
    assert (first["schema"], first["objects_new"], first["objects_shared"], first["bytes_new"]) == (1, 1, 0, 5000)
    assert first["format"] == "v0-sha256-12"
    second = json.loads(mkcfs(*words).stdout)
    assert (second["objects_new"], second["objects_shared"], second["bytes_shared"]) == (0, 1, 5000)
    assert second["digest"] == first["digest"]


def test_verbose_build_summarises_on_standard_error(tmp_path: Path) -> None:
    done = mkcfs("-v", "build", small_tree(tmp_path), tmp_path / "image.cfs", "--store", tmp_path / "objects")
    assert done.stdout == b""
    assert b"1 objects new" in done.stderr or b"1 object new" in done.stderr


def test_stores_form_a_chain(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    mkcfs("build", root, tmp_path / "a.cfs", "--store", tmp_path / "old")
    chain = f"{tmp_path / 'new'}:{tmp_path / 'old'}"
    report = json.loads(mkcfs("build", root, tmp_path / "b.cfs", "--store", chain, "--json").stdout)
    assert (report["objects_new"], report["objects_shared"]) == (0, 1)
    assert mkcfs("objects", "--missing", "--store", chain, tmp_path / "b.cfs").stdout == b""
    assert mkcfs("objects", "--missing", "--store", tmp_path / "new", tmp_path / "b.cfs").stdout != b""


def test_missing_source(tmp_path: Path) -> None:
    said = failing("build", tmp_path / "absent", tmp_path / "image.cfs", code=1)
    assert "absent" in said
    assert "No such file" in said
    assert list(tmp_path.iterdir()) == []


def test_image_path_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "image.cfs").mkdir()
    assert "is a directory" in failing("build", small_tree(tmp_path), tmp_path / "image.cfs", code=1)


def test_image_path_has_no_parent(tmp_path: Path) -> None:
    failing("build", small_tree(tmp_path), tmp_path / "nowhere/image.cfs", code=1)


def test_store_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("")
    said = failing("build", small_tree(tmp_path), tmp_path / "image.cfs", "--store", tmp_path / "objects", code=1)
    assert "objects" in said
    assert not (tmp_path / "image.cfs").exists()


@pytest.mark.parametrize("verb", ["ls", "dump", "objects", "inspect"])
def test_readers_refuse_what_is_no_image(verb: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image\n" * 1000)
    assert "text" in failing(verb, tmp_path / "text", code=1)
    (tmp_path / "empty").write_bytes(b"")
    failing(verb, tmp_path / "empty", code=1)
    failing(verb, tmp_path, code=1)
    failing(verb, tmp_path / "absent", code=1)
    failing(verb, "/dev/null", code=1)


@pytest.mark.parametrize("verb", ["ls", "dump", "objects", "inspect"])
def test_readers_refuse_a_truncated_image(verb: str, tmp_path: Path) -> None:
    image = tmp_path / "image.cfs"
    mkcfs("build", small_tree(tmp_path), image)
    image.write_bytes(image.read_bytes()[:-4096])
    failing(verb, image, code=1)


def test_malformed_dump_names_line_and_field(tmp_path: Path) -> None:
    dump = tmp_path / "bad.dump"
    dump.write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n/f x 100644 1 0 0 0 0.0 - - -\n")
    said = failing("build", "--from-file", dump, tmp_path / "image.cfs", code=1)
    assert "bad.dump" in said
    assert "line 2" in said
    assert "SIZE" in said
    assert not (tmp_path / "image.cfs").exists()


def test_strict_dumps_by_option_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = tmp_path / "tree.dump"
    dump.write_text("/ 4096 40755 2 0 0 7 0.0 - - -\n")
    words: list[str | Path] = ["build", "--from-file", "--print-digest-only", dump]
    mkcfs(*words)
    assert "RDEV" in failing(*words, "--strict", code=1)
    monkeypatch.setenv("CFS_PARSE_STRICT", "")
    assert "RDEV" in failing(*words, code=1)


def test_a_failed_build_leaves_the_old_image(tmp_path: Path) -> None:
    image = tmp_path / "image.cfs"
    mkcfs("build", small_tree(tmp_path), image)
    before = image.read_bytes()
    (tmp_path / "bad.dump").write_text("nonsense\n")
    failing("build", "--from-file", tmp_path / "bad.dump", image, code=1)
    assert image.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.dump", "image.cfs", "rootfs"]


@pytest.mark.root
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    for number in range(40):
        (root / f"f{number}").write_bytes(os.urandom(100_000))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        said = failing("build", root, small / "image.cfs", "--store", small / "objects", code=1)
        assert "No space left" in said
        assert not (small / "image.cfs").exists()
        for path in (small / "objects").glob("??/*"):
            assert path.is_dir() or path.stat().st_size == 100_000
    finally:
        subprocess.run(["umount", small], check=True)


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    done = mkcfs("--debug", "ls", tmp_path / "absent", check=False)
    assert done.code == 1
    assert b"Traceback" in done.stderr


def test_names_that_are_not_utf8_work_everywhere(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/root-\xff"
    os.mkdir(root)
    with open(root + b"/n\xff\n", "wb") as file:
        file.write(b"x" * 100)
    image = os.fsencode(tmp_path) + b"/image-\xff"
    mkcfs("build", root, image)
    assert mkcfs("ls", image).stdout.startswith(b"/n\\xff\\n\t@ ")
    assert json.loads(mkcfs("inspect", "--json", image).stdout)["contents"]["inodes"] == {"directory": 1, "regular": 1}
    said = failing("ls", image + b"-absent", code=1)
    assert "absent" in said


def test_image_to_standard_output_but_not_to_a_terminal(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    image = mkcfs("build", root, "-").stdout
    mkcfs("build", root, tmp_path / "image.cfs")
    assert image == (tmp_path / "image.cfs").read_bytes()
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, "build", root, "-"], stdout=slave, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
        )
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 2
    assert b"terminal" in done.stderr


def test_image_onto_a_device_is_written_in_place(tmp_path: Path) -> None:
    mkcfs("build", small_tree(tmp_path), "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_image_through_a_symbolic_link_replaces_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    mkcfs("build", small_tree(tmp_path), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size > 4096


def test_closed_pipe_is_no_error_message(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    for number in range(5000):
        (root / f"file-with-a-long-name-{number}").touch()
    mkcfs("build", root, tmp_path / "image.cfs")
    process = subprocess.Popen([*COMMAND, "ls", tmp_path / "image.cfs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_full_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["mkcfs: cannot write output: No space left on device"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_build_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    for item in range(300):
        (root / f"f{item}").write_bytes(os.urandom(200_000))
    process = subprocess.Popen(
        [*COMMAND, "build", root, tmp_path / "image.cfs", "--store", tmp_path / "objects"], stderr=subprocess.PIPE
    )
    while not (tmp_path / "objects").exists() and process.poll() is None:
        time.sleep(0.01)  # before it builds, it may not yet listen to signals
    time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been quicker than the signal
        assert process.returncode == 130
        assert said.decode().splitlines() == ["mkcfs: interrupted"]
        assert not (tmp_path / "image.cfs").exists()
    for path in (tmp_path / "objects").glob("??/*"):
        assert path.is_dir() or path.stat().st_size == 200_000


def test_progress_is_only_for_terminals(tmp_path: Path) -> None:
    done = mkcfs("build", small_tree(tmp_path), tmp_path / "image.cfs")
    assert done.stderr == b""


@pytest.mark.parametrize(("output", "printed"), [("pipe", b"some output"), ("full", b"")])
def test_what_was_printed_before_an_error_comes_out(output: str, printed: bytes) -> None:
    program = """
import sys
from cfstools.cli import app, main
def run():
    sys.stdout.write("some output")
    return 3
app.run = run
main()
"""
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE if output == "pipe" else full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert (ended.returncode, ended.stdout or b"", ended.stderr) == (3, printed, b"")
