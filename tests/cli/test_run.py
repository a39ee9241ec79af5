"""``mkcfs run`` as an ordinary user: what the command sees, how it ends, and that nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import requirements
from tests.mkcfs import mkcfs
from tests.processes import until
from tests.reference import Completed
from tests.users import User, Word

pytestmark = [pytest.mark.kernel, pytest.mark.root]

MKCFS = (sys.executable, "-m", "cfstools.cli")
BIG = b"contents of an object\n" * 1000


class Image(NamedTuple):
    path: Path
    store: Path
    digest: str


@pytest.fixture
def image(user: User) -> Image:
    """An image with objects, which belongs to root."""
    requirements.need_overlay_for_users()
    source = user.place.top / "source"
    for name in ("etc", "dev", "proc", "sys", "sub/dir"):
        (source / name).mkdir(parents=True)
    (source / "etc/resolv.conf").write_text("of the image\n")
    (source / "big").write_bytes(BIG)
    (source / "small").write_bytes(b"inline\n")
    (source / "sub/dir/file").write_bytes(BIG[::-1])
    os.chown(source / "small", 1, 1)
    store = user.place.top / "store"
    code, out, _ = mkcfs("build", "--print-digest", source, user.place.top / "image.cfs", "--store", store)
    assert code == 0
    return Image(user.place.top / "image.cfs", store, out.decode().strip())


@pytest.fixture
def shown(user: User) -> Path:
    """The directory that the image is mounted on."""
    path = user.home / "mnt"
    path.mkdir()
    user.give(path)
    return path


@pytest.fixture(scope="module")
def debian_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the image of a whole system and its store."""
    top = tmp_path_factory.mktemp("debian")
    root = requirements.debian_root("bookworm")
    assert mkcfs("build", root, top / "image.cfs", "--store", top / "store")[0] == 0
    return top


@pytest.fixture
def debian(user: User, debian_image: Path) -> Image:
    """The same where the user can read it."""
    requirements.need_overlay_for_users()
    top = user.place.top / "debian"
    shutil.copytree(debian_image, top, copy_function=os.link)
    top.chmod(0o755)
    return Image(top / "image.cfs", top / "store", "")


def objects(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("??/*") if path.is_file())


def run(user: User, image: Image, *words: Word, check: bool = True) -> Completed:
    return user.mkcfs("run", image.path, "--store", image.store, *words, check=check)


def test_the_command_alone_sees_the_image(user: User, image: Image, shown: Path) -> None:
    done = run(user, image, shown, "--", "sh", "-c", "cat $1/big; cat $1/sub/dir/file >&2", "sh", shown)
    assert done == (0, BIG, BIG[::-1])
    assert list(shown.iterdir()) == []
    assert user.place.new_mounts() == []
    user.wait_for_no_process()


def test_without_the_fuse_device(user: User, image: Image, shown: Path) -> None:
    user.place.close_fuse()
    done = run(user, image, "--method", "overlay", shown, "--json", "--", "cat", shown / "small")
    text, _, document = done.stdout.partition(b"{")
    assert text == b"inline\n"
    report = json.loads(b"{" + document)
    assert report["method"] == "overlay"
    assert report["exit_code"] == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143), ("exit 255", 255)],
)
def test_exit_codes_are_those_of_the_command(user: User, image: Image, shown: Path, script: str, code: int) -> None:
    assert run(user, image, shown, "--", "sh", "-c", script, check=False).code == code


def test_commands_that_cannot_be_started(user: User, image: Image, shown: Path) -> None:
    done = run(user, image, shown, "--", "no-such-command", "x", check=False)
    assert done == (127, b"", b"mkcfs: no-such-command: No such file or directory\n")
    done = run(user, image, shown, "--", shown / "small", check=False)
    assert (done.code, done.stderr) == (126, f"mkcfs: {shown}/small: Permission denied\n".encode())
    done = run(user, image, shown, "--json", "--", "./no", check=False)
    assert done.code == 127
    assert json.loads(done.stdout)["not_started"] == "No such file or directory"


def test_the_root_directory(user: User, debian: Image) -> None:
    script = "cat /etc/debian_version; ls -d /proc/$$ /sys/kernel; echo x > /dev/null; pwd; cat /etc/resolv.conf"
    done = run(user, debian, "--chroot", "--", "/bin/sh", "-c", script)
    ours = Path("/etc/resolv.conf")
    same = ours.read_bytes() if (requirements.debian_root("bookworm") / "etc/resolv.conf").exists() else b""
    pid = done.stdout.split()[1].removeprefix(b"/proc/")
    assert done.stdout == b"12.%b\n/proc/%b\n/sys/kernel\n/\n%b" % (done.stdout.split()[0][3:], pid, same)


def test_namespaces_can_be_made_in_the_root_directory(user: User, debian: Image) -> None:
    """A process in an ordinary chroot may not."""
    done = run(
        user, debian, "--chroot", "--", "unshare", "--user", "--map-root-user", "--mount", "cat", "/proc/self/uid_map"
    )
    assert done.stdout.split() == [b"0", b"0", b"1"]


def test_a_container_of_bubblewrap(user: User, debian: Image, shown: Path) -> None:
    requirements.need_command("bwrap")
    words: list[Word] = [
        "bwrap",
        "--bind",
        shown,
        "/",
        "--proc",
        "/proc",
        "--unshare-pid",
        "cat",
        "/etc/debian_version",
    ]
    assert run(user, debian, shown, "--", *words).stdout.startswith(b"12.")


def test_only_the_way_out_is_shut(user: User, debian: Image) -> None:
    """Above the root directory there is nothing, however it is approached."""
    done = run(user, debian, "--chroot", "--", "sh", "-c", "cd /../../..; ls; stat -c %i / /.. /proc/1/../..")
    names = done.stdout.split()
    assert b"debian_version" not in names
    assert b"etc" in names
    assert len(set(names[-3:])) == 1


def test_maps(user: User, image: Image, shown: Path) -> None:
    script = "id -u; id -g; awk '{print $3}' /proc/self/uid_map; stat -c %u $0/small"
    for choice, expected in (
        ("root", [0, 0, 1, 0]),
        ("same", [user.uid, user.gid, 1, user.uid]),
        *([("sub", [0, 0, 1, 65536, 1]), ("auto", [0, 0, 1, 65536, 1])] if user.account.ranges else []),
    ):
        done = run(user, image, "--map", choice, shown, "--", "sh", "-c", script, shown)
        assert [int(word) for word in done.stdout.split()] == expected, choice


def test_a_map_without_ranges(user: User, image: Image, shown: Path) -> None:
    """Without tools, or without ranges, the caller is told; auto does with one id."""
    words: list[Word] = [
        "env",
        "PATH=/nowhere",
        *MKCFS,
        "run",
        image.path,
        "--store",
        image.store,
        shown,
    ]
    done = user.run(*words, "--map", "sub", "--", "/bin/true", check=False)
    assert (done.code, done.stderr.splitlines()[0]) == (
        1, b"mkcfs: %b: subordinate ids need newuidmap and newgidmap" % bytes(image.path),
    )  # fmt: skip
    done = user.run(*words, "--json", "--", "/bin/true")
    assert json.loads(done.stdout)["map"] == "root"


def test_writes_go_to_the_upper_directory(user: User, image: Image, shown: Path) -> None:
    user.shell("mkdir upper work")
    options: list[Word] = ["--rw", "--upper", user.home / "upper", "--work", user.home / "work"]
    script = "cd $0; echo new > file; rm small; mv sub other; echo more >> big; mkdir made"
    run(user, image, *options, shown, "--", "sh", "-euc", script, shown)
    look = "cd $0; cat file; test ! -e small; cat other/dir/file | wc -c; tail -n 1 big; ls -d made"
    done = run(user, image, *options, shown, "--", "sh", "-euc", look, shown)
    assert done.stdout.split() == [b"new", b"%d" % len(BIG), b"more", b"made"]
    assert (user.home / "upper/file").read_text() == "new\n"
    # The image and its objects are as they were.
    assert run(user, image, shown, "--", "cat", shown / "big").stdout == BIG


def test_without_upper_nothing_can_be_written(user: User, image: Image, shown: Path) -> None:
    done = run(user, image, shown, "--", "touch", shown / "new", check=False)
    assert b"Read-only file system" in done.stderr


def test_the_working_directory_is_the_one_that_is_seen(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store]
    assert user.run(*words, ".", "--", "cat", "small", cwd=shown).stdout == b"inline\n"
    assert user.run(*words, shown, "--", "pwd").stdout == f"{user.home}\n".encode()


def test_the_command_gets_no_descriptors_of_ours(user: User, image: Image, shown: Path) -> None:
    done = run(user, image, shown, "--", "ls", "/proc/self/fd")
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # the last is that of ls


def test_the_environment_is_the_callers(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store, shown, "--", "sh", "-c"]
    assert user.run(*words, 'echo "$OF_THE_TEST"', env={"OF_THE_TEST": "x y"}).stdout == b"x y\n"


def test_pipes_break_as_for_any_command(user: User, image: Image, shown: Path) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; the command must not."""
    done = run(user, image, shown, "--", "sh", "-c", "yes | head -n 1; grep SigIgn /proc/self/status")
    assert (done.code, done.stderr) == (0, b"")
    line, ignored = done.stdout.splitlines()
    assert line == b"y"
    # Whoever runs the tests may have others ignored.
    assert not int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_go_to_the_command(user: User, image: Image, shown: Path, number: signal.Signals) -> None:
    trap = f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    words: list[Word] = [
        sys.executable,
        "-m",
        "cfstools.cli",
        "run",
        image.path,
        "--store",
        image.store,
        shown,
        "--",
        "sh",
        "-c",
        trap,
    ]
    process = user.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (9, b"got\n", b"")
    user.wait_for_no_process()


def test_what_the_caller_ignores_is_ignored(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = ["nohup", *MKCFS, "run", image.path, "--store", image.store, shown, "--", "sh", "-c"]
    done = user.run(*words, "kill -HUP $$; echo still here; kill -TERM $$", check=False)
    assert (done.code, done.stdout) == (128 + signal.SIGTERM, b"still here\n")


def test_a_signal_that_ends_the_command(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store, shown, "--"]
    process = user.start(*words, "sh", "-c", "echo ready; exec sleep 1000", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    user.wait_for_no_process()


def test_digests_and_keys_come_first(user: User, image: Image, shown: Path) -> None:
    """No byte of an image that is not the wanted one is interpreted."""
    assert run(user, image, "--digest", image.digest, shown, "--", "true").code == 0
    done = run(user, image, "--digest", "ab" * 32, shown, "--", "touch", user.home / "ran", check=False)
    assert done.code == 3
    assert b"has the fs-verity digest" in done.stderr
    broken = user.home / "broken.cfs"
    broken.write_bytes(b"\xff" * 8192)
    done = user.mkcfs("run", broken, "--store", image.store, "--digest", image.digest, shown, "--", "true", check=False)
    assert (done.code, b"has the fs-verity digest" in done.stderr) == (3, True)
    key = user.place.top / "key"
    assert mkcfs("keygen", key, "--no-passphrase")[0] == 0
    public = Path(f"{key}.pub")
    done = run(user, image, "--key", public, shown, "--", "touch", user.home / "ran", check=False)
    assert done.code == 3
    assert not (user.home / "ran").exists()
    assert mkcfs("sign", image.path, "--key", Path(f"{key}.key"))[0] == 0
    assert run(user, image, "--key", public, shown, "--", "cat", shown / "small").stdout == b"inline\n"


def test_all_objects_checked_first(user: User, image: Image, shown: Path) -> None:
    assert run(user, image, "--check", "first", shown, "--", "true").code == 0
    first = objects(image.store)[0]
    data = bytearray(first.read_bytes())
    data[5] ^= 1
    first.chmod(0o644)
    first.write_bytes(data)
    done = run(user, image, "--check", "first", shown, "--", "touch", user.home / "ran", check=False)
    assert done.code == 3
    assert b"1 object of the image is wrong" in done.stderr
    assert not (user.home / "ran").exists()


def test_a_missing_object_is_an_error_of_that_file_alone(user: User, image: Image, shown: Path) -> None:
    shutil.rmtree(image.store)
    image.store.mkdir()
    done = run(user, image, shown, "--", "sh", "-c", "cat $0/small; ls -l $0/big >&2 && cat $0/big", shown, check=False)
    assert (done.code, done.stdout) == (1, b"inline\n")
    assert b"/big" in done.stderr.splitlines()[-1]


def test_several_stores(user: User, image: Image, shown: Path) -> None:
    other = user.place.top / "other"
    first = objects(image.store)[0]
    (other / first.parent.name).mkdir(parents=True)
    shutil.move(first, other / first.parent.name)
    script = "cat $0/big $0/sub/dir/file"
    done = run(user, image, "--store", other, shown, "--", "sh", "-c", script, shown)
    assert done.stdout == BIG + BIG[::-1]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["DIR"], "there is no command to run: put it behind --"),
        (["DIR", "--"], "there is no command to run: put it behind --"),
        (["--", "true"], "either on DIR or, with --chroot"),
        (["DIR", "--chroot", "--", "true"], "either on DIR or, with --chroot"),
        (["DIR", "--rw", "--", "true"], "--rw needs --upper and --work"),
        (["DIR", "--upper", "DIR", "--work", "DIR", "--", "true"], "--upper only has a meaning with --rw"),
        (["DIR", "--method", "link", "--", "true"], "--method"),
        (["DIR", "--check", "open", "--method", "overlay", "--", "true"], "does not check contents"),
    ],
)
def test_contradictions(user: User, image: Image, shown: Path, words: list[str], what: str) -> None:
    done = run(user, image, *[shown if word == "DIR" else word for word in words], check=False)
    assert (done.code, done.stdout) == (2, b"")
    assert what in done.stderr.decode()


def test_where_no_namespace_can_be_made(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store, "--map", "root", shown]
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = user.run(
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", forbid, "sh", *words, "--", "true", check=False
    )
    assert done.code == 1
    assert b"cannot make a user namespace: there are as many as the system allows" in done.stderr
    assert b"--method fuse" in done.stderr


def test_what_is_not_there(user: User, image: Image, shown: Path) -> None:
    cases: list[tuple[list[Word], bytes]] = [
        ([image.path, "--store", image.store, shown / "none"], b"cannot open"),
        ([image.path, "--store", image.store / "none", shown], b"cannot open"),
        ([image.store, "--store", image.store, shown], b""),
    ]
    for words, what in cases:
        done = user.mkcfs("run", *words, "--", "true", check=False)
        assert done.code == 1
        assert what in done.stderr
    user.wait_for_no_process()


def test_namespaces_end_with_the_last_of_the_commands(user: User, image: Image, shown: Path) -> None:
    """A child that is left behind keeps its mount, and loses it with its own end."""
    script = "(until test -e $1; do sleep 0.05; done; wc -c < $0/big > $2) > /dev/null 2>&1 & exit 0"
    go, out = user.home / "go", user.home / "out"
    run(user, image, shown, "--", "sh", "-c", script, shown, go, out)
    assert user.processes()
    go.touch()
    user.wait_for_no_process()
    assert out.read_text().strip() == str(len(BIG))
    assert user.place.new_mounts() == []


def where_all_may_write(user: User) -> set[Path]:
    """What belongs to the user in the directories of temporaries, where other tests have theirs meanwhile."""
    found = set()
    for path in (path for top in ("/tmp", "/var/tmp") for path in Path(top).iterdir()):
        with suppress(FileNotFoundError):
            if user.account.owns(path.lstat().st_uid):
                found.add(path)
    return found


@pytest.mark.slow
def test_a_hundred_runs_leave_nothing(user: User, image: Image, shown: Path) -> None:
    script = 'for i in $(seq 100); do "$@" || exit 1; done'
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store, shown, "--", "true"]
    before = sorted(os.listdir(user.temporary)), where_all_may_write(user)
    user.shell(script, *words)
    user.wait_for_no_process()
    assert user.place.new_mounts() == []
    assert (sorted(os.listdir(user.temporary)), where_all_may_write(user)) == before


def test_root_needs_no_user_namespace(user: User, image: Image, shown: Path) -> None:
    words: list[Word] = [*MKCFS, "run", image.path, "--store", image.store, shown, "--json", "--"]
    done = user.place.root(*words, "stat", "-c", "%u", shown / "small")
    text, _, document = done.stdout.partition(b"{")
    assert text == b"1\n"
    report = json.loads(b"{" + document)
    assert (report["map"], report["method"]) == (None, "overlay")
    assert (report["nosuid"], report["nodev"]) == (True, True)
    assert user.place.new_mounts() == []


def test_files_served_by_a_process(user: User, image: Image, shown: Path) -> None:
    """Where the kernel's overlay is too old; the process ends with the command."""
    requirements.need_fuse_for_users()
    done = run(user, image, "--method", "fuse", shown, "--json", "--", "cat", shown / "big")
    text, _, document = done.stdout.partition(b"{")
    assert text == BIG
    assert json.loads(b"{" + document)["method"] == "fuse"
    user.wait_for_no_process()


def test_objects_that_are_fetched(user: User, image: Image, shown: Path) -> None:
    requirements.need_fuse_for_users()
    trace = user.home / "trace"
    own = user.home / "own"
    words: list[Word] = [
        "run",
        image.path,
        "--store",
        own,
        "--lazy",
        image.store,
        "--readahead",
        "0",
        "--trace",
        trace,
        shown,
        "--",
    ]
    assert user.mkcfs(*words, "cat", shown / "big").stdout == BIG
    user.wait_for_no_process()
    until(trace.exists)
    assert [path.stat().st_size for path in objects(own)] == [len(BIG)]
    assert len(json.loads(trace.read_bytes())["objects"]) == 1
