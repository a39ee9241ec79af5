"""Mounts that processes of ours serve: how they start, live, die and end, as root."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mkcfs import COMMAND, mkcfs
from tests.mounts import mounts_below, unmount_below
from tests.processes import alive, server_of, until
from tests.requirements import need_command, need_mounts

pytestmark = pytest.mark.kernel

ROUNDS = int(os.environ.get("MKCFS_RACE_ROUNDS", "1"))
Report = dict[str, object]
# The ways to mount here, and whether objects are fetched.
KINDS = [("fuse", False), ("fuse", True), ("kernel", True), ("overlay", True)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A source, its image, its objects in ``store`` and again in ``remote``; mounts made here do not stay."""
    need_mounts("fuse", "erofs", "overlay")
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/conf").write_text("text\n")
    (source / "etc/link").symlink_to("conf")
    for number in range(60):
        (source / f"file{number}").write_bytes(random.Random(number).randbytes(1000 + 997 * number))
    mkcfs("build", source, tmp_path / "image", "--store", tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "remote")
    (tmp_path / "mnt").mkdir()
    yield tmp_path
    for _ in range(3):
        with suppress(subprocess.CalledProcessError):
            unmount_below(tmp_path)


def words(place: Path, method: str, *, lazy: bool) -> list[str]:
    """The words that mount; with *lazy* the store is empty."""
    made = ["mount", str(place / "image"), str(place / "mnt"), "--method", method, "--log", str(place / "log")]
    made += ["--store", str(place / ("empty" if lazy else "store"))]
    return [*made, "--lazy", str(place / "remote")] if lazy else made


def mount(place: Path, method: str, *more: str, lazy: bool = False) -> Report:
    done = mkcfs(*words(place, method, lazy=lazy), "--json", *more)
    assert done.stderr == b""
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def keeper(report: Report) -> int:
    assert isinstance(report["pid"], int)
    return report["pid"]


def log_of(place: Path) -> str:
    return (place / "log").read_text(encoding="utf-8") if (place / "log").exists() else ""


@pytest.mark.parametrize(("method", "lazy"), KINDS)
def test_it_ends_with_the_umount_and_leaves_nothing(place: Path, method: str, lazy: bool) -> None:
    report = mount(place, method, lazy=lazy)
    assert report["method"] == method
    assert report["check"] == ("read" if method == "fuse" else "off")
    assert report["lazy"] == ([str(place / "remote")] if lazy else [])
    assert digest_of_tar(place / "mnt") == digest_of_tar(place / "source")
    mkcfs("umount", place / "mnt")
    assert mounts_below(place) == []
    until(lambda: not alive(keeper(report)))
    assert log_of(place) == ""
    if lazy:
        there = {path.relative_to(place / "empty") for path in (place / "empty").rglob("*") if path.is_file()}
        wanted = {path.relative_to(place / "remote") for path in (place / "remote").rglob("*") if path.is_file()}
        assert {path for path in there if len(path.parts) == 2} == {path for path in wanted if len(path.parts) == 2}
        assert not [path for path in there if path.name.startswith(".mkcfs-tmp")]


@pytest.mark.parametrize(("method", "lazy"), KINDS)
def test_many_in_a_row(place: Path, method: str, lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount is there when the command ends, and it can be mounted again at once."""
    scratch = place / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    keepers = []
    for _ in range(100 * (ROUNDS > 1) or 3):
        keepers.append(keeper(mount(place, method, lazy=lazy)))
        assert (place / "mnt/etc/conf").read_text() == "text\n"
        mkcfs("umount", place / "mnt")
    until(lambda: not any(map(alive, keepers)))
    assert mounts_below(place) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("method", ["fuse", "kernel", "overlay"])
def test_what_fails_in_the_server_is_the_result_of_the_command(place: Path, method: str) -> None:
    shutil.rmtree(place / "remote")
    done = mkcfs(*words(place, method, lazy=True), check=False)
    assert done.code == 1
    assert done.stderr.decode().splitlines()[0].startswith(f"mkcfs: {place}/remote: ")
    assert mounts_below(place) == []


def test_what_only_one_method_has(place: Path) -> None:
    for more, text in (
        (["--verity", "require", "--lazy", str(place / "remote")], "cannot be sealed before they are opened"),
        (["--method", "fuse", "--verity", "require"], "does not let the kernel check objects"),
        (["--method", "fuse", "--rw", "--upper", "u", "--work", "w"], "takes no writes"),
        (["--method", "kernel", "--check", "read"], "does not check contents when they are read"),
        (["--method", "fuse", "-o", "idmap=/proc/self/ns/user"], "owners are only mapped by the method kernel"),
        (["--readahead", "3"], "is only for objects from elsewhere"),
    ):
        done = mkcfs("mount", place / "image", place / "mnt", "--store", place / "store", *more, check=False)
        assert (done.code, text in done.stderr.decode()) == (2, True), done.stderr
    assert mounts_below(place) == []


@pytest.mark.parametrize("method", ["fuse", "kernel", "overlay"])
def test_all_objects_checked_first(place: Path, method: str) -> None:
    assert mount(place, method, "--check", "first")["check"] == "first"
    mkcfs("umount", place / "mnt")
    victim = next(path for path in sorted((place / "store").glob("??/*")))
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[0] ^= 1
    victim.write_bytes(data)
    done = mkcfs(*words(place, method, lazy=False), "--check", "first", check=False)
    assert done.code == 3
    assert "1 object of the image is wrong, first" in done.stderr.decode()
    assert mounts_below(place) == []


@pytest.mark.parametrize(("method", "lazy"), KINDS)
def test_a_server_that_is_killed_breaks_nothing(place: Path, method: str, lazy: bool) -> None:
    """At random moments of the first reading of everything; five times a minute at most."""
    wanted = digest_of_tar(place / "source")
    for turn in range(2 * ROUNDS):
        chance = random.Random(turn)
        shutil.rmtree(place / "empty", ignore_errors=True)
        pid = keeper(mount(place, method, lazy=lazy))
        reading = subprocess.Popen(["tar", "-C", place / "mnt", "-cf", "-", "--sort=name", "."], stdout=subprocess.PIPE)
        assert reading.stdout is not None
        digest = hashlib.sha256()
        for kill in range(5):
            for _ in range(chance.randrange(1, 20)):
                digest.update(os.read(reading.stdout.fileno(), 10_000))
            if kill < 4 and (server := server_of(pid)) is not None:
                with suppress(ProcessLookupError):  # the one killed before, which its keeper has collected meanwhile
                    os.kill(server, signal.SIGKILL)
        digest.update(reading.communicate()[0])
        assert reading.returncode == 0
        assert digest.hexdigest() == wanted
        mkcfs("umount", place / "mnt")
        until(lambda: not alive(pid))  # noqa: B023 - called at once


def digest_of_tar(directory: Path) -> str:
    command = ["tar", "-C", str(directory), "-cf", "-", "--sort=name", "."]
    return hashlib.sha256(subprocess.run(command, capture_output=True, check=True).stdout).hexdigest()


@pytest.mark.parametrize(("method", "lazy"), KINDS)
def test_without_keeper_and_server_there_are_errors_only(place: Path, method: str, lazy: bool) -> None:
    pid = keeper(mount(place, method, lazy=lazy))
    assert (place / "mnt/file1").read_bytes() == (place / "source/file1").read_bytes()
    server = server_of(pid)
    assert server is not None
    os.kill(pid, signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    until(lambda: not alive(pid) and not alive(server))
    for name in ("file2", "file50"):
        try:
            assert (place / "mnt" / name).read_bytes() == (place / "source" / name).read_bytes()
        except OSError:
            continue
    mkcfs("umount", place / "mnt")
    assert mounts_below(place) == []


@pytest.mark.parametrize(("method", "lazy"), KINDS)
def test_a_signal_takes_it_off(place: Path, method: str, lazy: bool) -> None:
    pid = keeper(mount(place, method, lazy=lazy))
    with (place / "mnt/file3").open("rb") as file:
        os.kill(pid, signal.SIGTERM)
        until(lambda: mounts_below(place) == [])
        # Whoever has a file open can still read it.
        assert file.read() == (place / "source/file3").read_bytes()
        assert alive(pid)
    until(lambda: not alive(pid))


def test_counters_go_to_the_log(place: Path) -> None:
    pid = keeper(mount(place, "fuse", lazy=True))
    (place / "mnt/file1").read_bytes()
    os.kill(pid, signal.SIGUSR1)
    until(lambda: "objects of" in log_of(place))
    assert " 0 failures, 0 waiting" in log_of(place)
    mkcfs("umount", place / "mnt")


def test_the_trace_is_written_at_the_end_and_used(place: Path) -> None:
    pid = keeper(mount(place, "kernel", "--trace", str(place / "image.trace"), "--readahead", "0", lazy=True))
    (place / "mnt/file7").read_bytes()
    (place / "mnt/file3").read_bytes()
    mkcfs("umount", place / "mnt")
    until(lambda: not alive(pid))
    assert len(json.loads((place / "image.trace").read_text())["objects"]) == 2
    shutil.rmtree(place / "empty")
    pid = keeper(mount(place, "kernel", "--readahead", "0", lazy=True))
    until(lambda: len(list((place / "empty").glob("??/*"))) == 2)
    mkcfs("umount", place / "mnt")
    until(lambda: not alive(pid))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_foreground(place: Path, number: signal.Signals, code: int) -> None:
    """It tells the service manager when it is ready, and a signal is the umount."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(b"\0cfstools-test-%d" % os.getpid())
        manager.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": f"@cfstools-test-{os.getpid()}"}
        command = [*COMMAND, *words(place, "fuse", lazy=True), "--foreground"]
        running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        assert manager.recv(100) == b"READY=1"
        assert (place / "mnt/etc/conf").read_text() == "text\n"
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (code, b"mkcfs: interrupted\n" if code else b"")
    assert mounts_below(place) == []


# mount(8) and its helper


def as_helper(place: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a mount namespace of its own, in which /sbin has mount.mkcfs."""
    need_command("unshare", "mount", "findmnt")
    helper = place / "sbin/mount.mkcfs"
    helper.parent.mkdir(exist_ok=True)
    (place / "sbin.work").mkdir(exist_ok=True)
    # The command as the tests run it, under the name that mount(8) looks for.
    program = "import sys; sys.argv[0] = 'mount.mkcfs'; from cfstools.cli import main; main()"
    helper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    helper.chmod(0o755)
    options = f"lowerdir=/usr/sbin,upperdir={place}/sbin,workdir={place}/sbin.work"
    script = f"set -e\nmount -t overlay none /usr/sbin -o {options}\ncd {place}\n{script}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_mount_calls_the_helper(place: Path) -> None:
    done = as_helper(
        place,
        "mount -t mkcfs image mnt -o basedir=store,nosuid,noexec,noatime\n"
        "cat mnt/etc/conf\n"
        "findmnt -n -o FSTYPE,VFS-OPTIONS mnt\n"
        "umount mnt\n"
        "mount -t mkcfs.fuse image mnt -o ro,basedir=empty,lazy=remote\n"
        "cat mnt/etc/conf\n"
        "findmnt -n -o FSTYPE mnt\n"
        "umount mnt\n"
        "mount -f -t mkcfs image mnt -o basedir=store\n"
        "! findmnt -n mnt\n"
        "! mount -t mkcfs image mnt -o basedir=store,odd\n"
        "mount -s -t mkcfs image mnt -o basedir=store,odd\n",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert (lines[0], lines[2], lines[3].strip()) == ("text", "text", "fuse.mkcfs")
    kind, flags = lines[1].split()
    assert kind == "overlay"
    assert set(flags.split(",")) >= {"ro", "nosuid", "noexec", "noatime"}
    assert "unknown mount option: odd" in done.stderr


def test_lines_of_fstab(place: Path) -> None:
    (place / "other").mkdir()
    (place / "fstab").write_text(
        f"{place}/image {place}/mnt mkcfs basedir={place}/store,_netdev,nofail,x-systemd.automount 0 0\n"
        f"{place}/image {place}/other mkcfs noauto,user,basedir={place}/empty,lazy={place}/remote 0 0\n"
    )
    done = as_helper(
        place,
        "mount -a -T fstab\n"
        "cat mnt/etc/conf\n"
        "! findmnt -n other\n"
        "mount -T fstab other\n"
        "cat other/file1 | wc -c\n"
        "cat /proc/self/mountinfo > mountinfo\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["text", str((place / "source/file1").stat().st_size)]
    assert " - overlay composefs " in (place / "mountinfo").read_text()
    # The namespace has ended with the script, and with it the mount and what served that.
    until(lambda: not [line for line in processes() if str(place) in line])


def processes() -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and alive(int(entry)):
            with suppress(OSError):
                found.append(Path(f"/proc/{entry}/cmdline").read_text(encoding="utf-8", errors="replace"))
    return found


@pytest.mark.parametrize("arguments", [[], ["image"], ["image", "mnt", "more"], ["image", "mnt", "-x"]])
def test_words_that_the_helper_does_not_take(place: Path, arguments: list[str]) -> None:
    done = as_helper(place, f"/usr/sbin/mount.mkcfs {' '.join(arguments)}")
    assert done.returncode == 2
    assert done.stderr.startswith("mkcfs: mount.mkcfs: ")
    assert "hint: mount.mkcfs SPEC DIR" in done.stderr


def test_the_helper_enters_a_namespace(place: Path) -> None:
    done = as_helper(
        place,
        "unshare --mount --propagation private sleep infinity >/dev/null 2>&1 & HOLDER=$!\n"
        "trap 'kill $HOLDER' EXIT\n"
        'until [ "$(cat /proc/$HOLDER/comm)" = sleep ]; do sleep 0.05; done\n'  # it is in its namespace
        "/usr/sbin/mount.mkcfs image mnt -N $HOLDER -o basedir=store\n"
        "! findmnt -n mnt\n"
        "cat /proc/$HOLDER/root/$PWD/mnt/etc/conf\n"
        "! /usr/sbin/mount.mkcfs image mnt -N /nowhere -o basedir=store\n",
    )
    assert (done.returncode, done.stdout) == (0, "text\n"), done.stderr
    assert "/nowhere: cannot enter the namespace: No such file or directory" in done.stderr
