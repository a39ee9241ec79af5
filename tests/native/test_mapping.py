"""Large files are hashed where the kernel keeps them: with the same digests as by reading, also when they are cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cfstools import native
from cfstools.native import _pure
from tests.mkcfs import unmeasured

WINDOW = 4 << 20
CAUGHT_BUS = 1 << signal.SIGBUS - 1

pytestmark = pytest.mark.usefixtures("native_in_use")


@pytest.fixture(scope="module")
def contents() -> bytes:
    return os.urandom(65536) * (2 * WINDOW // 65536 + 1)


NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shim = tmp_path_factory.mktemp("shim") / "cut.so"
    source = Path(__file__).with_name("cut.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", shim, source, "-ldl"], check=True)
    return shim


def preloaded(shim: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with *arguments* and the library behind those that are preloaded already."""
    libraries = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))
    # A sanitizer would say more, in its own words, about signals.
    sanitizer = {name: f"{os.environ.get(name, '')}:handle_sigbus=0" for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**unmeasured(), **sanitizer, "LD_PRELOAD": libraries, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def caught() -> bool:
    """Whether the process has a handler of SIGBUS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask & CAUGHT_BUS)


@pytest.mark.parametrize("size", [1, 4095, 4096, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 4095])
@pytest.mark.parametrize("block_size", [1024, 4096, 65536])
def test_mapped_files_have_the_digests_of_read_ones(
    tmp_path: Path, contents: bytes, size: int, block_size: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents[:size])
    before = caught()
    with path.open("rb") as file:
        for offset, length in [(0, 2 * WINDOW + 4096), (0, size), (block_size, WINDOW), (4096, 8192), (512, WINDOW)]:
            words = "sha256", file.fileno(), offset, length, block_size, b"s" * 64, -1
            assert native.digest_range(*words) == _pure.digest_range(*words)
    assert caught() == before


DIGEST = """
import sys
from cfstools import native
native.use("native")
with open(sys.argv[1], "rb") as file:
    hashes, met, unwritten = native.digest_range("sha256", file.fileno(), 0, 1 << 24, 4096, b"", -1)
    print(hashes.hex(), met)
"""


@NEEDS_COMPILER
def test_a_file_that_is_cut_while_it_is_mapped_is_read_again(tmp_path: Path, shim: Path, contents: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents)
    said = preloaded(shim, ["-c", DIGEST, str(path)], MKCFS_TEST_CUT=str(path))
    with path.open("rb") as file:
        hashes, met, _ = _pure.digest_range("sha256", file.fileno(), 0, 1 << 24, 4096, b"", -1)
    assert met == 8192
    assert (said.stdout, said.returncode) == (f"{hashes.hex()} {met}\n", 0), said.stderr


@NEEDS_COMPILER
def test_a_build_names_the_file_that_was_cut(tmp_path: Path, shim: Path, contents: bytes) -> None:
    path = tmp_path / "root/sub/file"
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)
    words = ["-c", "from cfstools.cli import main; main()", "build", str(tmp_path / "root"), "--print-digest-only"]
    said = preloaded(shim, words, MKCFS_TEST_CUT=str(path), MKCFS_NATIVE="native")
    assert (said.stdout, said.returncode) == ("", 1)
    assert said.stderr == f"mkcfs: {path}: changed while it was read\n"


@NEEDS_COMPILER
@pytest.mark.parametrize("options", [[], ["-X", "faulthandler"]])
@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGTERM])
def test_signals_about_anything_else_end_the_process(
    tmp_path: Path, shim: Path, contents: bytes, options: list[str], number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(contents)
    said = preloaded(shim, [*options, "-c", DIGEST, str(path)], MKCFS_TEST_RAISE=str(int(number)))
    assert said.returncode == -number
    assert ("Fatal Python error: Bus error" in said.stderr) == (bool(options) and number == signal.SIGBUS)
