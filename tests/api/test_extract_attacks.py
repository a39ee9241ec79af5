"""Extraction by root where another user may write: nothing of root's changes, whatever is swapped meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.api.extract import ExtractOptions, extract_view
from cfstools.errors import CfsError, InputError
from cfstools.linux import files
from cfstools.linux.paths import UntrustedPath, make_directory
from cfstools.store import StoreChain
from cfstools.tree import Device, Directory, Entry, Fifo, Socket, Symlink
from cfstools.view.nodes import View
from tests.mkcfs import COMMAND, mkcfs, unmeasured

NOBODY = 65534
ROUNDS = int(os.environ.get("MKCFS_RACE_ROUNDS", "15"))
NAMES = 40

pytestmark = pytest.mark.root

# Another user who owns the place: takes what appears there away, puts own directories and links there, and puts links
# to root's files where names are made. Stopped by the end of its standard input.
ATTACKER = """
import os, select, sys
place, victim, names = sys.argv[1], sys.argv[2], [f"n{number}" for number in range(int(sys.argv[3]))]
os.chdir(place)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.umask(0)
print("ready", flush=True)
number = 0
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError:
        return None
def plant(directory):
    for name in names:
        path = directory + "/" + name
        if attempt(os.lstat, path) is not None:
            attempt(os.unlink, path)
            attempt(os.symlink, victim, path)
while not select.select([sys.stdin], [], [], 0)[0]:
    for found in os.listdir("."):
        if found.startswith(".out.") and not os.path.exists("done-" + found):
            number += 1
            attempt(os.close, attempt(os.open, "done-" + found, os.O_CREAT) or -1)
            attempt(os.rename, found, "taken%d" % number)
            if number % 3:
                attempt(os.mkdir, found, 0o777)
            else:
                attempt(os.symlink, os.path.dirname(victim), found)
        if found.startswith(".out.") or found == "out":
            plant(found)
"""


@contextmanager
def attacker(place: Path, victim: Path) -> Iterator[None]:
    command = [sys.executable, "-c", ATTACKER, str(place), str(victim), str(NAMES)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=unmeasured())
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        process.communicate(b"x")


def tree() -> Directory:
    def node(number: int) -> Entry:
        mode, times = 0o777, {"mtime_sec": 5}
        match number % 4:
            case 0:
                return Fifo(mode=stat.S_IFIFO | mode, **times)  # type: ignore[arg-type]
            case 1:
                return Socket(mode=stat.S_IFSOCK | mode, **times)  # type: ignore[arg-type]
            case 2:
                return Device(mode=stat.S_IFCHR | mode, rdev=os.makedev(1, 3), **times)  # type: ignore[arg-type]
            case _:
                return Symlink(mode=0o120777, target=b"x", uid=1234, gid=1234, **times)  # type: ignore[arg-type]

    entries: dict[bytes, Entry] = {b"n%d" % number: node(number) for number in range(NAMES)}
    return Directory(mode=stat.S_IFDIR | 0o755, mtime_sec=5, entries=entries)


def put(target: Path, *, shared: bool) -> None:
    extract_view(View(tree(), StoreChain([])), bytes(target), options=ExtractOptions(shared=shared))


def state(place: Path) -> list[tuple[object, ...]]:
    """All that an attack could change of root's files."""
    found: list[tuple[object, ...]] = []
    for path in sorted([place, *place.rglob("*")]):
        status = path.lstat()
        found.append(
            (
                path,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_ctime_ns,
                os.listxattr(path, follow_symlinks=False),
            )
        )
    return found


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Files of root that nobody else may read."""
    place = tmp_path / "secrets"
    place.mkdir()
    place.chmod(0o700)
    (place / "victim").touch(0o600)
    (place / "victim").chmod(0o600)
    return place


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user."""
    tmp_path.chmod(0o755)
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    return place


@pytest.mark.parametrize("existing", [False, True])
def test_races_against_another_user(theirs: Path, secrets: Path, existing: bool) -> None:
    """Lost by a version that set modes by name at the first attempts."""
    before = state(secrets)
    good = 0
    for number in range(ROUNDS):
        place = theirs / str(number)
        place.mkdir()
        os.chown(place, NOBODY, NOBODY)
        if existing:
            (place / "out").mkdir()
            os.chown(place / "out", NOBODY, NOBODY)
        with attacker(place, secrets / "victim"):
            try:
                put(place / "out", shared=True)
                good += 1
            except InputError:
                pass
        assert state(secrets) == before, number
    assert not existing or good == ROUNDS


# What is refused


@pytest.mark.parametrize(
    ("owner", "mode", "refused"),
    [
        (0, 0o755, None),
        (0, 0o1777, None),
        (0, 0o3775, None),
        (0, 0o775, "can be written by other users"),
        (0, 0o777, "can be written by other users"),
        (0, 0o757, "can be written by other users"),
        (NOBODY, 0o755, f"belongs to user {NOBODY}"),
        (NOBODY, 0o1777, f"belongs to user {NOBODY}"),
    ],
)
@pytest.mark.parametrize(
    ("step", "existing"),
    [("parent", False), ("parent", True), ("ancestor", False), ("ancestor", True), ("target", True)],
)
def test_where_root_extracts(
    *, tmp_path: Path, step: str, owner: int, mode: int, refused: str | None, existing: bool
) -> None:
    target = tmp_path / "a" / "b" / "out"
    target.parent.mkdir(parents=True)
    if existing:
        target.mkdir()
    doubtful = {"parent": target.parent, "ancestor": target.parent.parent, "target": target}[step]
    os.chown(doubtful, owner, owner)
    doubtful.chmod(mode)
    if refused is None:
        put(target, shared=False)
    else:
        before = state(tmp_path)
        with pytest.raises(InputError, match=f"{doubtful}:? {refused}") as caught:
            put(target, shared=False)
        assert caught.value.hint is not None
        assert "shared=True" in caught.value.hint
        assert state(tmp_path) == before
        put(target, shared=True)
    assert len(os.listdir(target)) == NAMES
    assert os.listdir(target.parent) == ["out"]
    assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (0, 0o755)


@pytest.mark.parametrize(
    ("owner", "around", "refused"),
    [(0, 0o755, False), (0, 0o1777, False), (NOBODY, 0o755, True), (NOBODY, 0o1777, True)],
)
@pytest.mark.parametrize("target", ["relative", "absolute", "chain"])
@pytest.mark.parametrize("shared", [False, True])
def test_links_on_the_way(*, tmp_path: Path, owner: int, around: int, refused: bool, target: str, shared: bool) -> None:
    """A link is followed where its maker is root, in a directory that only root changes."""
    (tmp_path / "real").mkdir()
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(around)
    texts = {"relative": "../real", "absolute": str(tmp_path / "real"), "chain": "other"}
    (place / "other").symlink_to("../real")
    (place / "link").symlink_to(texts[target])
    os.chown(place / "link", owner, owner, follow_symlinks=False)
    if refused:
        with pytest.raises(InputError, match=f"{place}/link is a symbolic link that belongs to user {NOBODY}"):
            put(place / "link" / "out", shared=shared)
        assert os.listdir(tmp_path / "real") == []
    else:
        put(place / "link" / "out", shared=shared)
        assert len(os.listdir(tmp_path / "real/out")) == NAMES


def test_links_of_root_in_directories_of_others(tmp_path: Path, theirs: Path) -> None:
    """They may have been moved there."""
    (tmp_path / "real").mkdir()
    (theirs / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="theirs/link is a symbolic link that is in a directory that belongs to"):
        put(theirs / "link" / "out", shared=True)


def test_relative_paths(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(theirs)
    with pytest.raises(InputError, match=rf"out: the current directory belongs to user {NOBODY}"):
        put(Path("out"), shared=False)
    (theirs / "below").mkdir()
    monkeypatch.chdir(theirs / "below")
    put(Path("out"), shared=False)
    with pytest.raises(InputError, match=r"\.\./out: \.\. belongs to user"):
        put(Path("../out"), shared=False)


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        put(tmp_path / "a" / "out", shared=False)


# Swapped between two calls


@pytest.mark.parametrize("kind", ["link", "other", "full", "file", "gone"])
def test_a_new_directory_is_swapped_before_it_is_open(
    theirs: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = os.mkdir
    before = state(secrets)
    swapped: list[Path] = []

    def mkdir(name: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        if swapped:
            return
        path = theirs / os.fsdecode(name)
        swapped.append(path)
        path.rename(theirs / "taken")
        match kind:
            case "link":
                path.symlink_to(secrets)
            case "other":
                real(path, 0o777)
                os.chown(path, NOBODY, NOBODY)
            case "full":
                (theirs / "taken").rename(path)
                (path / "planted").touch()
            case "file":
                path.touch()
            case _:
                pass

    monkeypatch.setattr(os, "mkdir", mkdir)
    if kind == "gone":
        put(theirs / "out", shared=True)
    else:
        with pytest.raises(InputError):
            put(theirs / "out", shared=True)
        assert not (theirs / "out").exists()
    assert state(secrets) == before
    if kind == "full":
        assert (swapped[0] / "planted").exists()


@pytest.mark.parametrize("call", ["mknod", "symlink"])
@pytest.mark.parametrize("kind", ["link", "hard link", "other"])
def test_a_new_name_is_swapped_before_it_has_its_attributes(
    tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: str
) -> None:
    """As nobody else can: but if somebody could, nothing would be followed."""
    real: Callable[..., None] = getattr(os, call)
    symlink, mkfifo = os.symlink, os.mkfifo
    victim = secrets / "victim"
    os.mkfifo(secrets / "fifo", 0o600)
    (secrets / "symlink").symlink_to("x")
    before = state(secrets)

    def make(*arguments: object, dir_fd: int) -> None:
        real(*arguments, dir_fd=dir_fd)
        name = arguments[1 if call == "symlink" else 0]
        assert isinstance(name, bytes)
        os.unlink(name, dir_fd=dir_fd)
        match kind:
            case "link":
                symlink(victim, name, dir_fd=dir_fd)
            case "hard link":
                source = secrets / ("symlink" if call == "symlink" else "fifo")
                os.link(source, name, dst_dir_fd=dir_fd, follow_symlinks=False)
            case _:
                mkfifo(name, 0o600, dir_fd=dir_fd)
                os.chown(name, NOBODY, NOBODY, dir_fd=dir_fd)

    monkeypatch.setattr(os, call, make)
    with pytest.raises(InputError, match="it was replaced while it was made"):
        put(tmp_path / "out", shared=False)
    after = [entry[:4] for entry in state(secrets)]
    assert after == [entry[:4] for entry in before]
    assert victim.stat().st_mtime != 5
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_gets_a_name_before_it_is_closed(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another user made there is neither taken for ours nor removed, and the directory is given back."""
    target = theirs / "out"
    target.mkdir(mode=0o750)
    os.chown(target, NOBODY, NOBODY)
    real = os.fchmod

    def fchmod(fd: int, mode: int) -> None:
        if not (target / "planted").exists():
            (target / "planted").touch()
        real(fd, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)
    with pytest.raises(InputError, match="out: is not empty"):
        put(target, shared=True)
    assert os.listdir(target) == ["planted"]
    assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (NOBODY, 0o750)


def test_the_new_directory_is_replaced_at_the_end(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.rename_noreplace

    def rename(place: int, name: bytes, there: int, new: bytes) -> None:
        (theirs / os.fsdecode(name)).rename(theirs / "taken")
        (theirs / os.fsdecode(name)).mkdir()
        real(place, name, there, new)

    monkeypatch.setattr("cfstools.output.directories.rename_noreplace", rename)
    with pytest.raises(CfsError, match="out was replaced by another one"):
        put(theirs / "out", shared=True)


def test_a_directory_of_ours_that_others_gave_a_stale_name(theirs: Path) -> None:
    """It is not emptied: in a directory of theirs, other users can name anything so."""
    moved = theirs / ".out.0123456789abcdef.tmp"
    moved.mkdir()
    (moved / "precious").touch()
    put(theirs / "out", shared=True)
    assert (moved / "precious").exists()


def test_file_systems_that_choose_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where new files are somebody else's (a squashed NFS, FAT), a new directory of the same owner is the one made."""
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        status = real(fd)
        return os.stat_result((*status[:4], 4711, *status[5:10]))

    fd = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(os, "fstat", fstat)
    os.close(make_directory(fd, b"made"))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["made"]
    real_mkdir = os.mkdir

    def mkdir(name: bytes, mode: int, *, dir_fd: int) -> None:
        real_mkdir(name, mode, dir_fd=dir_fd)
        os.chown(name, NOBODY, NOBODY, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(UntrustedPath, match="was replaced"):
        make_directory(fd, b"theirs")
    assert os.listdir(tmp_path) == ["made"]
    os.close(fd)


def test_root_of_a_user_namespace(tmp_path: Path, theirs: Path) -> None:
    """Owners without a number there, as root of the machine often is, do not keep it from extracting."""
    (tmp_path / "dump").write_text("/ 0 40755 2 0 0 0 0.0 - - -\n/f 1 100644 1 0 0 0 0.0 - x -\n")
    mkcfs("build", "--from-file", tmp_path / "dump", tmp_path / "image")
    (theirs / "below").mkdir()
    words = ["extract", str(tmp_path / "image"), str(theirs / "below/out")]
    done = mkcfs(*words, check=False)
    assert (done.code, b"belongs to user" in done.stderr) == (1, True)
    inside = ["unshare", "--user", "--map-root-user", *COMMAND, *words]
    subprocess.run(inside, check=True, env=unmeasured(), stdin=subprocess.DEVNULL)
    assert (theirs / "below/out/f").read_bytes() == b"x"
