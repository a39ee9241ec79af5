"""Real unprivileged users, made and removed by the tests, and what they do on this machine.

The fixtures ``user`` and ``stranger`` are two accounts of /etc/passwd, each with ranges of subordinate ids where the
machine has newuidmap, with directories of their own (HOME, TMPDIR, the XDG ones) and without any capability. What they
run, runs in a mount namespace made for the test (``place``), which ends with it: /dev/fuse there is a node of its own
(:meth:`Place.open_fuse`, :meth:`Place.close_fuse`), the interpreter, the checkout and the temporary directory of the
run are within reach, and root can look at and change what the users see (:meth:`Place.root`).
"""

from __future__ import annotations

import compileall
import fcntl
import itertools
import json
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from tests import requirements
from tests.reference import Completed

Word = str | bytes | Path

_PREFIX = "cfst"  # names are PREFIX-PID-NUMBER
_IDS = 65_536
_FUSE = os.makedev(10, 229)
_FURTHER = itertools.count(2)  # the fixtures have the first two
_PATIENCE = 60.0  # seconds for what must happen, but not at once


@dataclass(frozen=True)
class Account:
    """One user of the machine; ``ranges`` are the subordinate user ids as (first, count)."""

    name: str
    uid: int
    gid: int
    ranges: tuple[tuple[int, int], ...]

    def owns(self, uid: int) -> bool:
        """Whether processes with this id belong to the account."""
        return uid == self.uid or any(first <= uid < first + count for first, count in self.ranges)


class Place:
    """A mount namespace for one test, kept by a process of root."""

    def __init__(self, top: Path) -> None:
        _compile()
        self.top = top
        self._device = top / "fuse-device"
        os.mknod(self._device, stat.S_IFCHR | 0o600, _FUSE)
        os.chmod(self._device, 0o666)
        script = "\n".join(
            [_leave(top), *_uncover(top), _bind(self._device, Path("/dev/fuse")), "echo ready", "exec sleep infinity"]
        )
        # Killed with this process, so that a run that is killed leaves no namespace.
        with_us = ["setpriv", "--pdeathsig", "KILL"]
        command = [*with_us, "unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.namespace = f"/proc/{self._holder.pid}/ns/mnt"
        self._first = self.mounts()

    def open_fuse(self) -> None:
        """Let everybody open /dev/fuse, as distributions do."""
        os.chmod(self._device, 0o666)

    def close_fuse(self) -> None:
        """Let only root open /dev/fuse."""
        os.chmod(self._device, 0o600)

    def inside(self, directory: Path, *words: Word) -> list[bytes]:
        """Return the command that runs *words* in the namespace, as root."""
        # By their paths: the user's PATH may have less.
        nsenter, env = (shutil.which(name) or name for name in ("nsenter", "env"))
        enter = [nsenter, f"--mount={self.namespace}", env, f"--chdir={directory}", *words]
        return [os.fsencode(word) for word in enter]

    def root(self, *words: Word, stdin: bytes = b"", check: bool = True, cwd: Path | None = None) -> Completed:
        """Run a command as root where the users are."""
        return _run(self.inside(cwd or self.top, *words), dict(os.environ), stdin, check)

    def mounts(self) -> list[str]:
        """Return what is mounted there, as ``TYPE PLACE``, oldest first."""
        lines = (
            Path(f"/proc/{self._holder.pid}/mountinfo")
            .read_text(encoding="utf-8", errors="surrogateescape")
            .splitlines()
        )
        split = [line.split() for line in lines]
        return [f"{words[words.index('-') + 1]} {words[4]}" for words in split]

    def new_mounts(self) -> list[str]:
        """Return what is mounted there that was not there at first."""
        before = list(self._first)
        new = []
        for mount in self.mounts():
            if mount in before:
                before.remove(mount)
            else:
                new.append(mount)
        return new

    def close(self) -> None:
        """End the namespace and what is mounted in it."""
        self._holder.kill()
        self._holder.communicate()


@dataclass
class User:
    """An account in a place. Paths: ``home`` (also where commands start), ``temporary``, ``runtime``, all 0700."""

    account: Account
    place: Place
    home: Path
    temporary: Path = field(init=False)
    runtime: Path = field(init=False)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.temporary, self.runtime = self.home / "tmp", self.home / "run"
        for path in (self.home, self.temporary, self.runtime, *(self.home / name for name in (".cache", ".config"))):
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, self.uid, self.gid)
        self.environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "USER": self.account.name,
            "LOGNAME": self.account.name,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            **_measured(self.home / ".cache"),
        }

    @property
    def uid(self) -> int:
        """The user's number."""
        return self.account.uid

    @property
    def gid(self) -> int:
        """The number of the user's only group."""
        return self.account.gid

    def command(self, *words: Word, cwd: Path | None = None) -> list[bytes]:
        """Return the command that root runs to have this user run *words*; use it with :attr:`environment`."""
        # The bounding set stays as it is: without it programs such as fusermount3 would not get their rights.
        setpriv = shutil.which("setpriv") or "setpriv"
        drop = [setpriv, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--inh-caps=-all"]
        return self.place.inside(cwd or self.home, *drop, "--ambient-caps=-all", *words)

    def run(
        self,
        *words: Word,
        stdin: bytes = b"",
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command as this user; with *check* any exit code but 0 fails the test with what it said."""
        return _run(self.command(*words, cwd=cwd), {**self.environment, **(env or {})}, stdin, check)

    def shell(self, script: str, *words: Word, check: bool = True, cwd: Path | None = None) -> Completed:
        """Run a script with ``sh -eu``; *words* are its arguments."""
        return self.run("sh", "-euc", script, "sh", *words, check=check, cwd=cwd)

    def mkcfs(self, *words: Word, stdin: bytes = b"", check: bool = True, cwd: Path | None = None) -> Completed:
        """Run ``mkcfs`` as this user."""
        return self.run(sys.executable, "-m", "cfstools.cli", *words, stdin=stdin, check=check, cwd=cwd)

    def module(self, name: str, *words: Word, check: bool = True) -> Completed:
        """Run a module of the tests as a program."""
        return self.run(
            sys.executable, "-m", name, *words, check=check, env={"PYTHONPATH": str(requirements.REPOSITORY)}
        )

    def start(self, *words: Word, cwd: Path | None = None, **options: object) -> subprocess.Popen[bytes]:
        """Start a command as this user; *options* are those of Popen."""
        return subprocess.Popen(self.command(*words, cwd=cwd), env=self.environment, **options)  # type: ignore[call-overload,no-any-return]

    def give(self, *paths: Path) -> None:
        """Make *paths*, and all below them, this user's own."""
        for path in paths:
            subprocess.run(["chown", "-hR", f"{self.uid}:{self.gid}", "--", path], check=True)

    def processes(self) -> dict[int, str]:
        """Return the processes of this user, also those under subordinate ids: number to command line."""
        return dict(_processes(self.account))

    def end_processes(self) -> None:
        """Kill everything that this user runs."""
        deadline = time.monotonic() + _PATIENCE
        while pids := [pid for pid, _ in _processes(self.account)]:
            for pid in pids:
                _kill(pid)
            assert time.monotonic() < deadline, f"processes that cannot be killed: {self.processes()}"
            time.sleep(0.01)

    def wait_for_no_process(self, allowed: int = 0) -> None:
        """Wait until at most *allowed* processes of this user are left; fails the test with what they are."""
        deadline = time.monotonic() + _PATIENCE
        while len(left := self.processes()) > allowed:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def accounts() -> Iterator[tuple[Account, Account]]:
    """Two accounts for all tests of this process, removed with it."""
    requirements.need_mounts()
    requirements.need_command("useradd", "userdel", "setpriv", "nsenter")
    with _account(0) as first, _account(1) as second:
        yield first, second


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where the users of a test are."""
    requirements.need_mounts()
    top = tmp_path_factory.mktemp("place")
    top.chmod(0o711)
    made = Place(top)
    yield made
    made.close()


@pytest.fixture
def user(accounts: tuple[Account, Account], place: Place) -> Iterator[User]:
    """An ordinary user."""
    with at_home(accounts[0], place) as made:
        yield made


@pytest.fixture
def stranger(accounts: tuple[Account, Account], place: Place) -> Iterator[User]:
    """Another ordinary user of the same machine, in the same place."""
    with at_home(accounts[1], place) as made:
        yield made


@contextmanager
def somebody(top: Path) -> Iterator[tuple[Place, User]]:
    """Make a place at a directory and an ordinary user in it, for programs that are no tests; both end with it."""
    place = Place(top)
    try:
        with _account(next(_FURTHER)) as account, at_home(account, place) as made:
            yield place, made
    finally:
        place.close()


@contextmanager
def at_home(account: Account, place: Place) -> Iterator[User]:
    """The user of an account in a place; what it still runs afterwards is killed."""
    made = User(account, place, place.top / account.name)
    try:
        yield made
    finally:
        made.end_processes()
        _collect(made.home / ".cache")


@contextmanager
def _account(number: int) -> Iterator[Account]:
    name = f"{_PREFIX}-{os.getpid()}-{number}"
    with _lock():
        _sweep()
        # Away from the ids that people, systemd and the trees of the tests have.
        choices = ["-K", "UID_MIN=40000", "-K", "UID_MAX=49999", "-K", "GID_MIN=40000", "-K", "GID_MAX=49999"]
        home = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", "--no-log-init"]
        subprocess.run(["useradd", *choices, *home, "--user-group", name], check=True, capture_output=True)
        entry = pwd.getpwnam(name)
        if shutil.which("newuidmap") and not _ranges("/etc/subuid", name):
            _give_ranges(name)
        account = Account(name, entry.pw_uid, entry.pw_gid, _ranges("/etc/subuid", name))
    try:
        yield account
    finally:
        for pid, _ in _processes(account):
            _kill(pid)
        with _lock():
            subprocess.run(["userdel", name], check=True, capture_output=True)


@contextmanager
def _lock() -> Iterator[None]:
    # useradd refuses while another one runs; and what is free must not be asked twice.
    path = Path(tempfile.gettempdir()) / "cfstools-tests-users.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep() -> None:
    """Remove the accounts of runs that were killed."""
    for entry in pwd.getpwall():
        prefix, _, rest = entry.pw_name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == _PREFIX and pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run(["userdel", entry.pw_name], check=False, capture_output=True)


def _ranges(file: str, name: str) -> tuple[tuple[int, int], ...]:
    try:
        lines = [line.split(":") for line in Path(file).read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        return ()
    return tuple((int(first), int(count)) for owner, first, count in lines if owner == name)


def _give_ranges(name: str) -> None:
    """Give an account ranges that nobody has."""
    for kind in ("uid", "gid"):
        file = Path(f"/etc/sub{kind}")
        file.touch(mode=0o644)
        taken = [line.split(":") for line in file.read_text(encoding="ascii").splitlines()]
        first = max([100_000, *(int(start) + int(count) for _, start, count in taken)])
        subprocess.run(["usermod", f"--add-sub{kind}s", f"{first}-{first + _IDS - 1}", name], check=True)


def _processes(account: Account) -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            status = Path("/proc", entry, "status").read_text(encoding="utf-8", errors="replace")
            line = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if not fields["State"].startswith("Z") and any(account.owns(int(uid)) for uid in fields["Uid"].split()):
            yield int(entry), " ".join(os.fsdecode(line).split("\0")) or fields["Name"]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _run(command: list[bytes], environment: dict[str, str], stdin: bytes, check: bool) -> Completed:
    # Into files, not pipes: what a command leaves behind must not keep the test waiting for the end of a pipe.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = subprocess.run(
            command, input=stdin or None, stdin=None if stdin else subprocess.DEVNULL, stdout=out, stderr=err,
            env=environment, check=False,
        ).returncode  # fmt: skip
        out.seek(0)
        err.seek(0)
        done = Completed(code, out.read(), err.read())
    if check:
        said = f"{done.stderr.decode(errors='replace')}{done.stdout[-2000:].decode(errors='replace')}"
        assert done.code == 0, f"{command}: exit code {done.code}: {said}"
    return done


@cache
def _compile() -> None:
    """Compile the package, as installing it does: users may not write here, and would compile it with each command."""
    compileall.compile_dir(requirements.REPOSITORY / "cfstools", quiet=2)


def _leave(top: Path) -> str:
    """Return a shell line that takes off, in this namespace only, what other tests of this run have mounted.

    Its copies would keep their file systems, and the processes that serve these, for as long as the namespace lives.
    """
    own = shlex.quote(f"{os.path.realpath(top.parent.parent)}/")
    # The escapes of mountinfo are not quite those of printf.
    return f"""
        awk -v own={own} 'index($5, own) == 1 {{ print $5 }}' /proc/self/mountinfo | tac | sed 's/\\\\/\\\\0/g' |
        while read -r where; do
            # A mount goes by itself when another test removes its directory.
            umount --internal-only --no-canonicalize --lazy "$(printf %b "$where")" 2>/dev/null || :
        done
    """


def _uncover(top: Path) -> Iterator[str]:
    """Yield shell lines that put what the users need from closed directories within reach, in this namespace only."""
    needed = [Path(os.path.realpath(path)) for path in (sys.base_prefix, sys.prefix, requirements.REPOSITORY, top)]
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                closed.setdefault(parent, []).append(path)
                break
    for number, (parent, paths) in enumerate(closed.items()):
        keep = [top / f"keep-{number}-{index}" for index in range(len(paths))]
        for path, kept in zip(paths, keep, strict=True):
            kept.mkdir()
            yield f"mount --rbind {shlex.quote(str(path))} {shlex.quote(str(kept))}"
        yield f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(parent))}"
        for path, kept in zip(paths, keep, strict=True):
            yield f"mkdir -p {shlex.quote(str(path))}"
            yield f"mount --move {shlex.quote(str(kept))} {shlex.quote(str(path))}"


def _bind(source: Path, target: Path) -> str:
    return f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}"


def _measured(directory: Path) -> dict[str, str]:
    """Return the variable that makes commands write coverage data, into *directory*; nothing without coverage."""
    config = os.environ.get("COVERAGE_PROCESS_CONFIG", "")
    if not config.startswith(":data:"):
        return {}
    data = json.loads(config.removeprefix(":data:"))
    data["data_file"] = str(directory / ".coverage")
    return {"COVERAGE_PROCESS_CONFIG": f":data:{json.dumps(data)}"}


def _collect(directory: Path) -> None:
    """Put coverage data of a user's commands where those of the suite are."""
    config = os.environ.get("COVERAGE_PROCESS_CONFIG", "")
    if config.startswith(":data:"):
        target = Path(json.loads(config.removeprefix(":data:"))["data_file"]).parent
        for file in directory.glob(".coverage.*"):
            shutil.copyfile(file, target / file.name)
