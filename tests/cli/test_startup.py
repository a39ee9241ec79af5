"""What a verb loads that takes long to load: only what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs, unmeasured

# Modules of Python and of others that take a millisecond or many, and rooms of ours that most verbs do not need.
HEAVY = frozenset(
    {
        *("array", "asyncio", "base64", "concurrent", "cryptography", "ctypes", "dataclasses", "hashlib", "http"),
        *("isal", "json", "logging", "pathlib", "queue", "random", "shutil", "socket", "ssl", "subprocess", "tarfile"),
        *("tempfile", "tqdm", "traceback", "urllib3", "zstandard"),
        *("ast", "click", "datetime", "gettext", "inspect", "locale", "platform", "threading", "urllib.parse", "uuid"),
        *(f"cfstools.{name}" for name in ("mount", "oci.descriptor", "signing", "signing.keys", "transport", "view")),
        *(f"cfstools.sources.{name}" for name in ("directory", "oci")),
        *(f"cfstools.store.{name}" for name in ("cache", "care", "write.writer")),
        *(f"cfstools.formats.{name}" for name in ("dump.parse", "erofs.check", "tar.reader")),
        *(f"cfstools.{name}" for name in ("streams.decompress", "threadpool", "tree.diff", "tree.layers")),
    }
)
SIGNATURE = ("hashlib", "cfstools.signing")
THREADS = ("cfstools.threadpool", "queue", "threading")
STORE = ("array", "threading", "cfstools.store.care")
CONTENTS = ("cfstools.view", "hashlib", *STORE, *THREADS)
DATACLASSES = ("ast", "dataclasses", "inspect")
WRITING = ("ctypes", *DATACLASSES, *THREADS)

# The words of a call, and what it may load of all that.
ALLOWED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # click asks bash for its version
    "completion": (["completion", "bash"], ("gettext", "locale", "shutil", "subprocess", "threading")),
    "help": (["--help"], ("shutil",)),
    "ls": (["ls", "image.cfs"], ()),
    "dump": (["dump", "image.cfs"], ()),
    "objects": (["objects", "image.cfs"], ()),
    "inspect": (["inspect", "image.cfs"], SIGNATURE),
    "verify": (
        ["verify", "image.cfs", "--store", "store"],
        (*SIGNATURE, *CONTENTS),
    ),
    "digest": (["digest", "tree/file"], THREADS),
    "cat": (["cat", "image.cfs", "/file", "--store", "store"], CONTENTS),
    "extract": (["extract", "image.cfs", "out", "--store", "store", "--shared"], (*CONTENTS, *WRITING)),
    "diff": (["diff", "image.cfs", "image.cfs"], ("cfstools.tree.diff", *CONTENTS, *WRITING)),
    "build": (["build", "tree", "--print-digest-only"], ("cfstools.sources.directory", *WRITING)),
    "build a dump": (
        ["build", "--from-file", "tree.dump", "--print-digest-only"],
        ("cfstools.formats.dump.parse", *WRITING),
    ),
    "sign": (["sign", "image.cfs", "--remove"], (*SIGNATURE, "ctypes")),
    "stat": (["store", "stat", "--store", "store"], STORE),
    "fsck": (["store", "fsck", "--store", "store"], (*DATACLASSES, *STORE, *THREADS)),
    "gc": (
        ["store", "gc", "--store", "store", "--keep", "image.cfs", "--dry-run"],
        (*SIGNATURE, *STORE),
    ),
}

LOADED = """
import os, sys
if len(sys.argv) > 1:
    from cfstools.cli import main
    end = os._exit
    def tell(code):
        print(*sys.modules, file=sys.stderr)
        sys.stderr.flush()
        end(code)
    os._exit = tell
    main()
print(*sys.modules, file=sys.stderr)
"""


def loaded(*words: str) -> set[str]:
    """The modules of a process at its end; without a verb those of Python alone."""
    command = [sys.executable, "-c", LOADED, *words]
    done = subprocess.run(command, capture_output=True, check=True, env=unmeasured(), stdin=subprocess.DEVNULL)
    return set(done.stderr.decode().splitlines()[-1].split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("start")
    (here / "tree").mkdir()
    (here / "tree/file").write_bytes(b"x" * 5000)
    mkcfs("build", here / "tree", here / "image.cfs", "--store", here / "store")
    (here / "tree.dump").write_bytes(mkcfs("dump", here / "image.cfs").stdout)
    return here


@pytest.mark.parametrize("verb", ALLOWED)
def test_a_verb_loads_what_it_needs(verb: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words, allowed = ALLOWED[verb]
    assert sorted((loaded(*words) - loaded()) & HEAVY - {"click", *allowed}) == []


def test_the_version_needs_no_parser() -> None:
    assert sorted((loaded("--version") - loaded()) & HEAVY) == []


def test_the_search_finds_what_it_looks_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert {"ctypes", "cfstools.sources.directory"} <= loaded("build", "tree", "--print-digest-only") & HEAVY


def test_a_lazy_mount_leaves_networks_to_its_server() -> None:
    program = (
        "import sys, cfstools.api.lazy, cfstools.api.mount, cfstools.api.run, cfstools.api.serve; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=unmeasured())
    modules = set(done.stdout.decode().split())
    assert "cfstools.mount.fuse.server" in modules
    assert sorted(modules & {"dataclasses", "http", "ssl", "tarfile", "urllib3", "zstandard"}) == []


def test_a_mount_by_the_kernel_loads_no_server() -> None:
    """Nor does what looks for the helper of other mounts load all kinds of compression."""
    program = (
        "import sys, cfstools.api.mount, cfstools.mount.kernel; from cfstools import api;"
        "from cfstools.cli.mount_options import program;"
        "api.Serving(helper=program('fusermount3')); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=unmeasured())
    modules = set(done.stdout.decode().split())
    assert "cfstools.mount.kernel" in modules
    servers = {"cfstools.api.serve", "cfstools.mount.daemon", "cfstools.mount.fuse", "cfstools.mount.lazy"}
    assert sorted(modules & {*servers, "subprocess", "socket"}) == []
