"""Objects that somebody changes under a mount: wrong bytes are never given out, and other files go on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import pytest

from cfstools.verity import digest_bytes, object_path
from tests import requirements
from tests.mkcfs import mkcfs
from tests.mount.fuse.mounted import Served, served_to_root

pytestmark = [pytest.mark.root, pytest.mark.kernel]

BLOCK = 4096
_PROGRAM = Path("/usr/bin/echo")
_SMALL, _LARGE = 200_000, (3 << 20) + 5

Change = Callable[[Path], None]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def swap(path: Path) -> None:
    """Another object of the same size, in its place."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"x" * size)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    """A link to the very contents."""
    moved = path.with_suffix(".moved")
    path.rename(moved)
    path.symlink_to(moved)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, Change] = {
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, path.stat().st_size - 1),
    "cut at a block": lambda path: os.truncate(path, path.stat().st_size // 2 // BLOCK * BLOCK),
    "cut in a block": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "longer": lengthen,
    "swapped": swap,
    "gone": Path.unlink,
    "a pipe": pipe,
    "a link": link,
}
# What leaves the open file as it was.
_OTHER_FILE = {"swapped", "gone", "a pipe", "a link"}


class Tampered:
    """A mount of two files and a program, each in a small and a large form."""

    def __init__(self, top: Path) -> None:
        self.data = {
            "small": os.urandom(_SMALL),
            "large": os.urandom(_LARGE),
            "other-small": os.urandom(_SMALL),
            "other-large": os.urandom(_LARGE),
            "program-small": _PROGRAM.read_bytes(),
            "program-large": _PROGRAM.read_bytes() + os.urandom(_LARGE),
        }
        self.image, self.store = top / "image", top / "objects"
        source = top / "source"
        source.mkdir()
        for name, data in self.data.items():
            (source / name).write_bytes(data)
            (source / name).chmod(0o755)
        mkcfs("build", source, self.image, "--store", self.store)

    def object(self, name: str) -> Path:
        return self.store / os.fsdecode(object_path(digest_bytes(self.data[name])))

    @contextmanager
    def mounted(self, top: Path, *options: str) -> Iterator[Served]:
        directory = top / "mnt"
        directory.mkdir()
        with served_to_root(self.image, directory, [self.store], *options) as served:
            yield served

    def check_others(self, served: Served) -> None:
        """All other files are right."""
        for name in ("other-small", "other-large"):
            assert (served.path / name).read_bytes() == self.data[name]
        for name in ("program-small", "program-large"):
            done = subprocess.run([served.path / name, "runs"], capture_output=True, check=True)
            assert done.stdout == b"runs\n"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Tampered:
    requirements.need_mounts("fuse")
    return Tampered(tmp_path_factory.mktemp("tampering"))


@pytest.fixture
def tampered(untouched: Tampered, tmp_path: Path) -> Tampered:
    made = copy(untouched)
    made.store = tmp_path / "objects"
    shutil.copytree(untouched.store, made.store)
    return made


def blocks(path: Path) -> list[bytes | None]:
    """The file by blocks, ``None`` for those that cannot be read (EIO)."""
    found: list[bytes | None] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, os.fstat(fd).st_size, BLOCK):
            try:
                found.append(os.pread(fd, BLOCK, at))
            except OSError as error:
                found.append(None if error.errno == errno.EIO else b"")
    finally:
        os.close(fd)
    return found


_MAP = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data:
    sys.stdout.buffer.write(data[int(sys.argv[2]):][:4096])
"""


def mapped(path: Path, at: int) -> bytes | None:
    """A block of a mapped file; ``None`` if touching it ends the process with SIGBUS."""
    done = subprocess.run([sys.executable, "-c", _MAP, path, str(at)], capture_output=True, check=False)
    if done.returncode == -signal.SIGBUS:
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["small", "large"])
def test_before_the_first_read(tampered: Tampered, tmp_path: Path, name: str, change: str) -> None:
    data = tampered.data[name]
    CHANGES[change](tampered.object(name))
    with tampered.mounted(tmp_path) as served:
        assert mapped(served.path / name, len(data) // 2 // BLOCK * BLOCK) is None
        assert set(blocks(served.path / name)) == {None}
        assert (served.path / name).stat().st_size == len(data)
        tampered.check_others(served)
        # Once the store is repaired, so is the mount.
        tampered.object(name).unlink(missing_ok=True)
        tampered.object(name).write_bytes(data)
        assert (served.path / name).read_bytes() == data
    assert "object" in served.errors
    assert served.counters["failed"] > 1


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["small", "large"])
def test_after_the_first_read(tampered: Tampered, tmp_path: Path, name: str, change: str) -> None:
    data = tampered.data[name]
    with tampered.mounted(tmp_path) as served:
        with (served.path / name).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert file.read(BLOCK) == data[:BLOCK]
            CHANGES[change](tampered.object(name))
            assert os.pread(file.fileno(), BLOCK, 0) == data[:BLOCK]  # the kernel has it
        found = blocks(served.path / name)
        right = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        assert all(block in (None, whole) for block, whole in zip(found, right, strict=True))
        assert found[0] == right[0]
        if name == "small" or change in _OTHER_FILE or change == "longer":
            assert found == right  # from the buffer, or the file that is open
        elif change != "first byte":
            assert found[-1] is None
        last = (len(data) - 1) // BLOCK * BLOCK
        assert mapped(served.path / name, last) == found[-1]
        tampered.check_others(served)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["program-small", "program-large"])
def test_programs(tampered: Tampered, tmp_path: Path, name: str, change: str) -> None:
    CHANGES[change](tampered.object(name))
    with tampered.mounted(tmp_path) as served:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            subprocess.run([served.path / name, "runs"], check=False)
        assert caught.value.errno == errno.EIO
        assert (served.path / "small").read_bytes() == tampered.data["small"]


def test_a_program_that_changes_while_it_runs(tampered: Tampered, tmp_path: Path) -> None:
    """Pages that are not there yet are right or end it."""
    path = tampered.object("program-large")
    with tampered.mounted(tmp_path) as served:
        assert subprocess.run([served.path / "program-large", "a"], capture_output=True, check=True).stdout == b"a\n"
        for at in range(0, _PROGRAM.stat().st_size, BLOCK):
            flip(path, at)
        done = subprocess.run([served.path / "program-large", "b"], capture_output=True, check=False)
        assert (done.returncode, done.stdout) in ((0, b"b\n"), (-signal.SIGBUS, b""), (-signal.SIGSEGV, b""))


@pytest.mark.parametrize("check", ["open", "first", "off"])
@pytest.mark.parametrize("name", ["small", "large"])
def test_without_a_check_of_every_read(tampered: Tampered, tmp_path: Path, name: str, check: str) -> None:
    """What is changed before is found with ``open`` only; what is changed later is not, but its length is right."""
    data = tampered.data[name]
    flip(tampered.object(name), 5)
    with tampered.mounted(tmp_path, "--check", check) as served:
        found = blocks(served.path / name)
        if check == "open":
            assert set(found) == {None}
        else:
            assert found[0] == data[:5] + bytes([data[5] ^ 1]) + data[6:BLOCK]
        with (served.path / f"other-{name}").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert file.read(BLOCK) == tampered.data[f"other-{name}"][:BLOCK]
        os.truncate(tampered.object(f"other-{name}"), BLOCK)
        later = blocks(served.path / f"other-{name}")
        assert later[0] == tampered.data[f"other-{name}"][:BLOCK]
        assert later[-1] is None


def test_the_second_store_is_not_asked_for_a_damaged_object(tampered: Tampered, tmp_path: Path) -> None:
    """As in an overlay the first store that has an object counts; one that is missing there comes from the second."""
    first, directory = tmp_path / "first", tmp_path / "mnt"
    directory.mkdir()
    damaged = first / tampered.object("small").relative_to(tampered.store)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(tampered.data["small"][:-1])
    with served_to_root(tampered.image, directory, [first, tampered.store]) as served:
        assert set(blocks(directory / "small")) == {None}
        tampered.check_others(served)
    assert os.fspath(damaged) in served.errors
