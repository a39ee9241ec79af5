"""Files that appear complete or not at all, and what killed writers of them left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import InputError
from cfstools.output import files, temporaries
from cfstools.output.directories import output_directory
from cfstools.output.files import output_file
from tests.mkcfs import unmeasured

STALE = ".out.0123456789abcdef.tmp"

# Writes the file or directory "out" until it is told to go on, and says when there is something of it.
WRITER = """
import os, sys
from cfstools.output import files
from cfstools.output.directories import output_directory
how, text = sys.argv[1:]
if how == "named":
    files.open_tmpfile = lambda _: None
if how == "directory":
    with output_directory(b"out") as fd:
        os.mkdir(text, dir_fd=fd)
        print("begun", flush=True)
        sys.stdin.read(1)
else:
    with files.output_file(b"out") as file:
        file.write(text.encode())
        print("begun", flush=True)
        sys.stdin.read(1)
"""


class Writer:
    """A process that has begun to write ``out`` in *place*."""

    def __init__(self, place: Path, how: str, text: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, how, text],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=unmeasured(),
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"begun\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> int:
        self.process.communicate(b"x")
        return self.process.returncode


def write(path: Path, data: bytes = b"new") -> None:
    with output_file(bytes(path)) as file:
        file.write(data)


@pytest.fixture(params=["nameless", "named"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With files without names, and where the file system has none."""
    if request.param == "named":
        monkeypatch.setattr(files, "open_tmpfile", lambda _: None)
    made: str = request.param
    return made


@pytest.mark.usefixtures("how")
def test_a_file_appears_whole(tmp_path: Path) -> None:
    with output_file(bytes(tmp_path / "out")) as file:
        file.write(b"one ")
        assert not (tmp_path / "out").exists()
        file.write(b"two")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"one two"


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_lock_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_fd: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InputError, match=f"out: cannot write: {os.strerror(number)}"):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("how")
def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    (tmp_path / STALE).touch()
    write(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [STALE, "out"]


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    Writer(tmp_path, "named", "half").kill()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.")
    write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_extraction_left_goes(tmp_path: Path) -> None:
    Writer(tmp_path, "directory", "half").kill()
    (left,) = os.listdir(tmp_path)
    assert os.listdir(tmp_path / left) == ["half"]
    with output_directory(bytes(tmp_path / "out")):
        pass
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("slow", ["named", "directory"])
def test_two_writers_at_one_time(tmp_path: Path, slow: str) -> None:
    """The second takes nothing away from the first, whichever is done first."""
    first, second = Writer(tmp_path, slow, "first"), Writer(tmp_path, slow, "second")
    assert len(os.listdir(tmp_path)) == 2
    assert second.finish() == 0
    if slow == "named":
        assert (tmp_path / "out").read_bytes() == b"second"
        write(tmp_path / "out", b"third")
        assert first.finish() == 0
        assert (tmp_path / "out").read_bytes() == b"first"
    else:
        # A directory is never replaced.
        assert first.finish() == 1
        assert os.listdir(tmp_path / "out") == ["second"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_not_a_stale_temporary_stays(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "precious").touch()
    (tmp_path / ".out.0000000000000000.tmp").symlink_to(keep / "precious")
    (tmp_path / ".out.1111111111111111.tmp").mkdir()
    os.mkfifo(tmp_path / ".out.2222222222222222.tmp")
    others = [
        "out.0123456789abcdef.tmp",
        ".out.0123456789abcde.tmp",
        ".out.0123456789abcdeg.tmp",
        ".out.0123456789ABCDEF.tmp",
        ".out.0123456789abcdef.tmp.old",
        ".out.sig.0123456789abcdef.tmp",
        ".oxt.0123456789abcdef.tmp",
        f"{STALE}\n",
    ]
    for name in others:
        (tmp_path / name).touch()
    before = set(os.listdir(tmp_path))
    (tmp_path / STALE).touch()
    write(tmp_path / "out")
    assert set(os.listdir(tmp_path)) == before | {"out"}
    with output_directory(bytes(tmp_path / "o*t")):
        pass
    assert set(os.listdir(tmp_path)) == before | {"out", "o*t"}
    assert os.listdir(keep) == ["precious"]


def test_a_link_is_not_taken_for_a_stale_directory(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "precious").touch()
    (tmp_path / STALE).symlink_to(keep)
    with output_directory(bytes(tmp_path / "out")):
        pass
    assert sorted(os.listdir(tmp_path)) == [STALE, "keep", "out"]
    assert os.listdir(keep) == ["precious"]


@pytest.mark.root
def test_what_belongs_to_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / STALE).touch()
    os.chown(tmp_path / STALE, 1234, -1)
    write(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [STALE, "out"]


@pytest.mark.root
@pytest.mark.parametrize(("mode", "owner", "gone"), [(0o755, 0, True), (0o775, 0, False), (0o755, 1234, False)])
def test_a_stale_directory_that_has_its_owner_already(tmp_path: Path, mode: int, owner: int, gone: bool) -> None:
    """It is ours where nobody else can make names."""
    place = tmp_path / "place"
    (place / STALE / "sub").mkdir(parents=True)
    os.chown(place / STALE, 4321, 4321)
    os.chown(place, owner, owner)
    place.chmod(mode)
    with output_directory(bytes(place / "out"), shared=True):
        pass
    assert sorted(os.listdir(place)) == (["out"] if gone else [STALE, "out"])


def swapped(real: Callable[[int, int], None], before: Callable[[], None]) -> Callable[[int, int], None]:
    """The lock, with something happening just before the first."""
    todo = [before]

    def lock(fd: int, operation: int) -> None:
        if todo:
            todo.pop()()
        real(fd, operation)

    return lock


def test_a_temporary_that_is_given_its_name_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer ends between the look at it and the lock, and another file comes."""
    (tmp_path / STALE).write_bytes(b"whole")

    def finish() -> None:
        (tmp_path / STALE).rename(tmp_path / "done")
        (tmp_path / STALE).write_bytes(b"another")

    monkeypatch.setattr(fcntl, "flock", swapped(fcntl.flock, finish))
    write(tmp_path / "out")
    assert (tmp_path / "done").read_bytes() == b"whole"
    assert (tmp_path / STALE).read_bytes() == b"another"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_temporary_that_was_taken_for_stale_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Somebody cleans up between the making and the lock of a temporary."""
    monkeypatch.setattr(files, "open_tmpfile", lambda _: None)
    removed = []

    def clean() -> None:
        (left,) = tmp_path.iterdir()
        removed.append(left)
        left.unlink() if kind == "file" else left.rmdir()

    monkeypatch.setattr(fcntl, "flock", swapped(fcntl.flock, clean))
    if kind == "file":
        write(tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"new"
    else:
        with output_directory(bytes(tmp_path / "out")) as fd:
            os.mkdir("sub", dir_fd=fd)
        assert os.listdir(tmp_path / "out") == ["sub"]
    assert len(removed) == 1
    assert os.listdir(tmp_path) == ["out"]


def test_a_temporary_that_resists_is_no_error(tmp_path: Path) -> None:
    (tmp_path / STALE).touch()
    fd = os.open(tmp_path, os.O_RDONLY)

    def resist(_name: bytes, _fd: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    temporaries.remove_stale(fd, b"out", 0o100000, resist)
    os.close(fd)
    assert os.listdir(tmp_path) == [STALE]


def test_long_names(tmp_path: Path) -> None:
    name = "n" * 250
    (tmp_path / f".{'n' * 200}.0123456789abcdef.tmp").touch()
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


# Where other users may have put links and other things


OTHER = 4321


def link(place: Path, target: Path, *, owner: int = OTHER) -> Path:
    made = place / "link"
    made.symlink_to(target)
    os.chown(made, owner, owner, follow_symlinks=False)
    return made


@pytest.mark.root
@pytest.mark.parametrize("where", ["last", "on the way"])
@pytest.mark.parametrize(("owner", "mode"), [(0, 0o1777), (0, 0o755), (OTHER, 0o755), (0, 0o777)])
def test_links_of_others_are_not_followed_by_root(tmp_path: Path, where: str, owner: int, mode: int) -> None:
    """The kernel refuses only those in sticky directories, and only where it is told to."""
    place, real = tmp_path / "place", tmp_path / "real"
    place.mkdir()
    real.mkdir()
    os.chown(place, owner, owner)
    place.chmod(mode)
    (real / "out").write_bytes(b"precious")
    target = link(place, real / "out") if where == "last" else link(place, real) / "out"
    with pytest.raises(InputError, match=f"place/link:? is a symbolic link that belongs to user {OTHER}") as caught:
        write(target)
    assert caught.value.hint is not None
    assert (real / "out").read_bytes() == b"precious"
    assert os.listdir(real) == ["out"]


@pytest.mark.root
def test_links_of_root_are_followed(tmp_path: Path) -> None:
    """And the file in another user's directory is replaced, as a build with sudo wants it."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "out").write_bytes(b"old")
    os.chown(theirs, OTHER, OTHER)
    write(link(tmp_path, theirs / "out", owner=0))
    assert (theirs / "out").read_bytes() == b"new"
    write(theirs / "out", b"newer")
    assert (theirs / "out").read_bytes() == b"newer"
    (theirs / "link").symlink_to("out")
    with pytest.raises(InputError, match="is a symbolic link that is in a directory that belongs to user"):
        write(theirs / "link")


@pytest.mark.root
@pytest.mark.parametrize(("owner", "followed"), [(OTHER, True), (65534, True), (1234, False)])
def test_links_in_sticky_directories_of_another_user(tmp_path: Path, owner: int, followed: bool) -> None:
    """Anybody but root follows links of theirs and of the owner of the directory, elsewhere all."""
    tmp_path.chmod(0o755)
    sticky, real = tmp_path / "sticky", tmp_path / "real"
    sticky.mkdir()
    sticky.chmod(0o1777)
    real.mkdir()
    for path, uid in ((sticky, OTHER), (real, 65534)):
        os.chown(path, uid, uid)
    made = link(sticky, real / "out", owner=owner)
    os.seteuid(65534)
    try:
        if followed:
            write(made)
        else:
            with pytest.raises(InputError, match="is a symbolic link that belongs to user 1234"):
                write(made)
    finally:
        os.seteuid(0)
    assert os.listdir(real) == (["out"] if followed else [])


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "owner", "around", "mode"), [(0, OTHER, 0, 0o1777), (0, 0, OTHER, 0o755), (65534, OTHER, 0, 0o1777)]
)
def test_pipes_of_others_are_not_waited_for(tmp_path: Path, user: int, owner: int, around: int, mode: int) -> None:
    tmp_path.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    os.mkfifo(place / "out", 0o666)
    for path, uid in ((place / "out", owner), (place, around)):
        os.chown(path, uid, uid)
    (place / "out").chmod(0o666)
    place.chmod(mode)
    os.seteuid(user)
    try:
        with pytest.raises(InputError, match=r"is a fifo that (belongs to user|is in a directory that)") as caught:
            write(place / "out")
    finally:
        os.seteuid(0)
    assert caught.value.hint is not None


@pytest.mark.root
def test_pipes_of_others_behind_open_files_are_written(tmp_path: Path) -> None:
    """As `sudo mkcfs build DIR /dev/stdout | …` hands one over."""
    reading, writing = os.pipe()
    try:
        os.fchown(writing, OTHER, OTHER)
        write(Path(f"/proc/self/fd/{writing}"))
        assert os.read(reading, 100) == b"new"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_pipe_is_replaced_before_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into what came instead."""
    precious, pipe = tmp_path / "precious", tmp_path / "pipe"
    precious.write_bytes(b"precious")
    os.mkfifo(pipe)
    real = os.open

    def swap(path: bytes, flags: int, *rest: int, **options: int) -> int:
        if path == bytes(pipe):
            pipe.unlink()
            pipe.symlink_to(precious)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(InputError, match="pipe: was replaced while it was opened"):
        write(pipe)
    assert precious.read_bytes() == b"precious"


def test_a_temporary_that_stays_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.unlink
    monkeypatch.setattr(files, "open_tmpfile", lambda _: None)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(ValueError, match="stop") as caught, output_file(bytes(tmp_path / "out")):
        raise ValueError("stop")
    monkeypatch.setattr(os, "unlink", real)
    (left,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"{left} could not be removed (No space left on device): delete it"]
