"""Who else can have a key: files that others read are warned about, and a process with a key leaves no core dump."""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cfstools
from cfstools.signing import keys
from tests.cli.hostile import Ran
from tests.mkcfs import COMMAND, mkcfs, unmeasured
from tests.requirements import REPOSITORY

SIGNING = {
    "sign": ("sign", "image.cfs", "--key", "k.key"),
    "build": ("build", "rootfs", "new.cfs", "--sign-key", "k.key"),
}
READABLE = "others than its owner can read or change it"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "rootfs").mkdir()
    mkcfs("build", "rootfs", "image.cfs")
    mkcfs("keygen", "k", "--no-passphrase")
    (tmp_path / "pass").write_text("secret\n")
    (tmp_path / "pass").chmod(0o600)
    mkcfs("keygen", "locked", "--passphrase-file", "pass")
    return tmp_path


@pytest.mark.parametrize("verb", SIGNING)
@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700, 0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o777])
def test_a_key_that_others_can_have(verb: str, mode: int, place: Path) -> None:
    (place / "k.key").chmod(mode)
    said = mkcfs(*SIGNING[verb]).stderr.decode()
    if mode & 0o077:
        assert said == f"mkcfs: warning: k.key: {READABLE} (mode {mode:04o}); chmod 600 keeps them out\n"
        assert mkcfs("-q", *SIGNING[verb]).stderr == b""
    else:
        assert said == ""


def test_a_key_behind_a_link_and_one_through_a_pipe(place: Path) -> None:
    (place / "k.key").chmod(0o644)
    (place / "link").symlink_to("k.key")
    assert READABLE in mkcfs("sign", "image.cfs", "--key", "link").stderr.decode()
    done = mkcfs("sign", "image.cfs", "--key", "/dev/stdin", stdin=(place / "k.key").read_bytes())
    assert done.stderr == b""


def test_a_passphrase_that_others_can_read(place: Path) -> None:
    (place / "pass").chmod(0o644)
    words = ("sign", "image.cfs", "--key", "locked.key", "--passphrase-file", "pass")
    assert mkcfs(*words).stderr.decode().startswith(f"mkcfs: warning: pass: {READABLE} (mode 0644)")
    new = mkcfs("keygen", "more", "--passphrase-file", "pass").stderr.decode()
    assert new.startswith(f"mkcfs: warning: pass: {READABLE}")
    with (place / "pass").open("rb") as file:
        done = subprocess.run(
            [*COMMAND, *words[:4], "--passphrase-fd", "0"], stdin=file, capture_output=True, check=True
        )
    assert done.stderr == b""


def test_a_public_key_may_be_read_by_all(place: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "k.key")
    (place / "k.pub").chmod(0o644)
    assert mkcfs("verify", "image.cfs", "--key", "k.pub").stderr == b""


@pytest.mark.root
def test_a_key_of_somebody_else(place: Path) -> None:
    os.chown("k.key", 65534, 0)
    said = mkcfs("sign", "image.cfs", "--key", "k.key").stderr.decode()
    assert said == "mkcfs: warning: k.key: belongs to user 65534, who can read and change it\n"


CRASH = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
from cfstools.cli import app
from {room} import {module}
def crash(*words, **options):
    os.abort()
{module}.{function} = crash
sys.exit(app.run(sys.argv[1:]))
"""
PASSPHRASE = ("--passphrase-file", "pass")
# What is called when the key, or nothing secret, is in memory.
ABORTED = {
    "sign": ("cfstools", "api", "sign", ("sign", "image.cfs", "--key", "k.key")),
    "sign encrypted": ("cfstools", "api", "sign", ("sign", "image.cfs", "--key", "locked.key", *PASSPHRASE)),
    "keygen": ("cfstools.cli.commands", "keygen", "make", ("keygen", "new", "--no-passphrase")),
    "build": ("cfstools.cli.commands", "build", "run_build", ("build", "rootfs", "new.cfs", "--sign-key", "k.key")),
    "nothing secret": ("cfstools.cli.commands", "build", "run_build", ("build", "rootfs", "new.cfs")),
}


@pytest.mark.parametrize("verb", ABORTED)
def test_a_crash_with_a_key_in_memory_leaves_no_core_dump(verb: str, place: Path) -> None:
    room, module, function, words = ABORTED[verb]
    script = CRASH.format(room=room, module=module, function=function)

    process = subprocess.Popen([sys.executable, "-c", script, *words], env=unmeasured(), stderr=subprocess.DEVNULL)
    status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    assert status.si_status == signal.SIGABRT
    process.wait()
    for core in place.glob("core*"):
        core.unlink()
    dumped = status.si_code == os.CLD_DUMPED
    if verb != "nothing secret":
        assert not dumped
    elif Path("/proc/sys/kernel/core_pattern").read_text().startswith("core"):
        assert dumped or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0


def test_the_process_says_so_itself(place: Path) -> None:
    """Its limits while it waits for a second key, which nobody writes into the pipe."""
    os.mkfifo("second.key")
    process = subprocess.Popen(
        [*COMMAND, "sign", "image.cfs", "--key", "k.key", "--key", "second.key"], env=unmeasured()
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
            [line] = [line for line in limits if line.startswith("Max core file size")]
            if line.split()[4:6] == ["0", "0"]:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
def test_another_user_can_build_and_sign_all_the_same(place: Path) -> None:
    """What cannot be dumped belongs to root below /proc; that must not be in the way."""
    for path in (place, *place.iterdir(), *place.parents):
        if path.is_relative_to(place):
            os.chown(path, 65534, 65534)
        elif path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    (place / "rootfs/file").write_bytes(b"x" * 5000)
    for words in (
        ("build", "rootfs", "new.cfs", "--store", "objects", "--sign-key", "k.key"),
        ("sign", "new.cfs", "--key", "locked.key", "--passphrase-file", "pass"),
        ("keygen", "other", "--no-passphrase"),
    ):
        done = Ran(words, become_nobody)
        assert (done.code, done.stderr) == (0, b"")


def become_nobody() -> None:
    """Be another user from here on, with all modules, whose files that user may not be able to read."""
    for module in pkgutil.walk_packages(cfstools.__path__, "cfstools."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def test_the_library_leaves_the_process_as_it_is(place: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    keys.load_private_key((place / "k.key").read_bytes())
    assert resource.getrlimit(resource.RLIMIT_CORE) == before
