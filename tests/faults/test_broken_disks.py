"""Disks that cannot give what they hold: a loop device over a file that is cut while a file system on it is mounted.

Every read beyond the cut is an error of the device. No verb may hang, be killed by a signal or leave anything behind:
each says which file it was and where.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfstools.verity import digest_bytes
from tests import loops, requirements
from tests.mkcfs import unmeasured
from tests.processes import until

MIB = 1 << 20
FIBMAP = 1
BROKEN = r"offset \d+: cannot read: Input/output error"

pytestmark = pytest.mark.root


class Disk:
    """A file system on a loop device; what a file holds can be taken away from some place on."""

    def __init__(self, work: Path) -> None:
        self.backing = work / "disk.img"
        self.place = work / "disk"
        self.place.mkdir()
        with self.backing.open("wb") as file:
            file.truncate(96 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", self.backing], check=True)
        self._device = subprocess.run(
            ["losetup", "-f", "--show", self.backing], check=True, capture_output=True, text=True
        ).stdout.strip()
        self._mount("rw")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", options, self._device, self.place], check=True)

    def lose(self, file: Path, offset: int) -> None:
        """Reads of *file* from *offset* on fail; what was read before is forgotten."""
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            place = fcntl.ioctl(opened.fileno(), FIBMAP, struct.pack("i", offset // 4096))
        (block,) = struct.unpack("i", place)
        assert block > 0
        subprocess.run(["umount", self.place], check=True)
        loops.await_release(Path(self._device))
        self._mount("ro")
        os.truncate(self.backing, block * 4096)
        with file.open("rb") as opened, pytest.raises(OSError, match="Input/output error"):
            os.pread(opened.fileno(), 4096, offset)

    def close(self) -> None:
        subprocess.run(["umount", self.place], check=False)
        subprocess.run(["losetup", "-d", self._device], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    requirements.need_mounts("ext4")
    requirements.need_command("mkfs.ext4", "losetup")
    made = Disk(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["native", "pure"])
def mkcfs(request: pytest.FixtureRequest) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with native or with pure functions; a minute is enough for anything here."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "cfstools.cli", *words],
            env={**os.environ, "MKCFS_NATIVE": request.param},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


Mkcfs = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_source_file(disk: Disk, mkcfs: Mkcfs, tmp_path: Path, threads: str) -> None:
    source = disk.place / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(30 * MIB))
    disk.lose(source / "large", 13 * MIB)
    for words in (
        ["digest", source / "large"],
        ["build", source, "--print-digest-only", "-j", threads],
        ["build", source, tmp_path / "image.cfs", "--store", tmp_path / "store", "-j", threads],
    ):
        code, out, said = mkcfs(*words)
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"mkcfs: {re.escape(str(source / 'large'))}: {BROKEN}\n", said)
        (offset,) = map(int, re.findall(r"offset (\d+)", said))
        assert 12 * MIB <= offset <= 13 * MIB
    assert not (tmp_path / "image.cfs").exists()
    assert [name for name in os.listdir(tmp_path / "store") if not name.startswith(".")] == []


@pytest.mark.parametrize("size", [60, 5000, 900_000])
def test_a_small_source_file(disk: Disk, mkcfs: Mkcfs, size: int) -> None:
    source = disk.place / "source"
    source.mkdir()
    (source / "small").write_bytes(os.urandom(size))
    # Small enough for ext4 to keep elsewhere, were it not for the feature that is off by default.
    disk.lose(source / "small", 0)
    code, out, said = mkcfs("build", source, "--print-digest-only")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"mkcfs: {re.escape(str(source / 'small'))}: (offset 0: )?cannot read: Input.*error\n", said)


def test_an_image(disk: Disk, mkcfs: Mkcfs, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(8_000):
        (tmp_path / f"source/{number}").touch()
    image = disk.place / "image.cfs"
    assert mkcfs("build", tmp_path / "source", image)[0] == 0
    disk.lose(image, image.stat().st_size // 2 // 4096 * 4096)
    for words in (
        ["inspect", image],
        ["inspect", "--tree", "/", image],
        ["ls", image],
        ["dump", image],
        ["objects", image],
        ["verify", image],
        ["digest", image],
        ["cat", image, "/1"],
        ["extract", image, tmp_path / "tree"],
        ["diff", image, tmp_path / "source"],
        ["build", image, tmp_path / "again.cfs"],
        ["store", "gc", "--store", tmp_path, "--keep", image],
    ):
        code, out, said = mkcfs(*words)
        assert (code, out) == (1, ""), words
        assert re.match(rf"mkcfs: {re.escape(str(image))}: {BROKEN}\n", said), words
    assert not (tmp_path / "tree").exists()
    assert not (tmp_path / "again.cfs").exists()


def test_a_store(disk: Disk, mkcfs: Mkcfs, tmp_path: Path) -> None:
    """What cannot be read of an object is a finding of a check; whoever needs the contents fails."""
    (tmp_path / "source").mkdir()
    data = os.urandom(20 * MIB)
    (tmp_path / "source/large").write_bytes(data)
    image, store = tmp_path / "image.cfs", disk.place / "store"
    assert mkcfs("build", tmp_path / "source", image, "--store", store)[0] == 0
    name = digest_bytes(data).hex()
    found = store / name[:2] / name[2:]
    disk.lose(found, 11 * MIB)
    code, out, said = mkcfs("verify", image, "--store", store)
    assert code == 3
    assert re.search(BROKEN, out + said)
    assert name[2:] in out + said
    code, out, said = mkcfs("store", "fsck", "--store", store)
    assert code == 3
    assert re.search(rf"{name[:2]}/{name[2:]}: {BROKEN}", out + said)
    for words in (["cat", image, "/large", "--store", store], ["extract", image, tmp_path / "tree", "--store", store]):
        code, out, said = mkcfs(*words)
        assert (code, out) == (1, "")
        assert re.search("/large: object .*cannot be read: .*Input/output error", said)
    assert not (tmp_path / "tree").exists()


def has_read(pid: int) -> int:
    """How many bytes a process has read since it was started; 0 once it has ended."""
    try:
        counters = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(counters.split()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("implementation", ["native", "pure"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_signals_end_the_hashing_of_a_large_file(
    tmp_path: Path, number: int, implementation: str, threads: str
) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source/large").open("wb") as file:
        file.truncate(1 << 40)
    # A file of holes that nobody tells of: hours of reading.
    program = (
        "from cfstools.linux import files\nfiles.filesystem_type = lambda fd: 0\nfrom cfstools.cli import main; main()"
    )
    words = ["build", str(tmp_path / "source"), "--print-digest-only", "-j", threads]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**unmeasured(), "MKCFS_NATIVE": implementation},
        stderr=subprocess.PIPE,
    ) as child:
        try:
            until(lambda: has_read(child.pid) > 256 * MIB or child.poll() is not None)
            assert child.poll() is None
            child.send_signal(number)
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, said) == (130, b"mkcfs: interrupted\n")
