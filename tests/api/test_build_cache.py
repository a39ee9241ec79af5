"""Builds with the digest cache, of what comes back with numbers, names and times that were there before."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cfstools.api.build import BuildReport, ObjectOptions, build
from cfstools.linux.files import reflink
from cfstools.store.cache import digest_cache as cache
from tests.loops import loop_device, made, mounted
from tests.mkcfs import COMMAND, mkcfs
from tests.requirements import need_command, need_mounts
from tests.store.conftest import as_nobody

WRITABLE = ["ext4", "xfs", "btrfs"]
_XFS_SWAPEXT = 0xC0C0586D
_EXT4_MOVE_EXT = 0xC028660F


class Builder(NamedTuple):
    """Builds into one store, with one cache."""

    tmp_path: Path
    cache: Path

    def build(self, source: Path, *, cached: bool = True) -> BuildReport:
        return build(
            os.fsencode(source),
            None,
            stores=[os.fsencode(self.tmp_path / "store")],
            objects=ObjectOptions(cache=os.fsencode(self.cache) if cached else None),
        )

    def hits(self, source: Path) -> int:
        """How many files were known; whatever was, the image is the one that reading all of them gives."""
        report = self.build(source)
        assert report.digest == self.build(source, cached=False).digest
        return report.cache_hits


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(cache, "RACY_NS", 0)
    return Builder(tmp_path, tmp_path / "cache")


def fill(place: Path, letter: bytes = b"A", count: int = 3) -> None:
    """A tree with times of today, which are over once this returns."""
    (place / "usr").mkdir(exist_ok=True)
    for number in range(count):
        (place / f"usr/app{number}").write_bytes(letter * (5000 + number))
    time.sleep(0.05)


def rewrite(disk: Path, image: Path, device: str) -> None:
    """Put *image* onto the *disk* that *device* shows."""
    with image.open("rb") as source, disk.open("r+b") as target:
        shutil.copyfileobj(source, target)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)


def set_fields(image: Path, **fields: str) -> None:
    """Set fields of the inode of ``usr/app0`` in an ext4 that is not mounted."""
    need_command("debugfs")
    request = "".join(f"set_inode_field /usr/app0 {name} {value}\n" for name, value in fields.items())
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=request, text=True, check=True, capture_output=True)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["squashfs", "erofs", "ext4"])
@pytest.mark.parametrize("options", ["ro", "rw"])
def test_images_one_after_the_other_on_one_device(builder: Builder, kind: str, options: str) -> None:
    """Reproducible images have the same UUIDs, inode numbers, sizes and times."""
    images = []
    for letter in (b"A", b"B"):
        tree = builder.tmp_path / letter.decode()
        tree.mkdir()
        fill(tree, letter, 1)
        for path in (tree / "usr/app0", tree / "usr", tree):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        images.append(made(builder.tmp_path, kind, tree=tree, name=letter.decode()))
        if kind == "ext4":  # mke2fs before 1.47.1 takes the ctimes of the tree
            set_fields(images[-1], ctime="@1700000000")
    seen = []
    disk = builder.tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(max(image.stat().st_size for image in images))
    with loop_device(disk) as device:
        for image in (*images, images[0]):
            rewrite(disk, image, device)
            with mounted(device, kind, options, place=builder.tmp_path / "mnt") as place:
                assert builder.hits(place) == 0
                assert builder.hits(place) == 0  # its ctimes are the image maker's, without nanoseconds
                status = os.stat(place / "usr/app0")
                same = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                seen.append((same, builder.build(place).digest))
    assert {one[0] for one in seen} == {seen[0][0]}
    assert [one[1] == seen[0][1] for one in seen] == [True, False, True]


@pytest.mark.root
@pytest.mark.parametrize("when", ["past", "now", "future", "2038"])
def test_a_disk_image_whose_maker_chose_the_times(builder: Builder, when: str) -> None:
    """A tenant's disk with the inode, size and times that another's had: debugfs sets all of them."""
    seconds = {"past": 1_600_000_000, "now": int(time.time()), "future": int(time.time()) + 86_400, "2038": 2**31 - 1}[
        when
    ]
    image = made(builder.tmp_path, "ext4")
    digests = []
    with mounted(image, "ext4") as place:
        fill(place)
    for letter in (b"A", b"B"):
        with mounted(image, "ext4") as place, (place / "usr/app0").open("r+b") as file:
            file.write(letter * 5000)
        at, nanoseconds = f"@{seconds}", str(500 << 2)
        set_fields(image, ctime=at, ctime_extra=nanoseconds, mtime=at, mtime_extra=nanoseconds)
        with mounted(image, "ext4") as place:
            status = os.stat(place / "usr/app0")
            if when != "2038":
                assert status.st_ctime_ns == status.st_mtime_ns == seconds * 10**9 + 500
            # Kept for this mount if its time was over, never for the next.
            assert [builder.hits(place), builder.hits(place)] == [0, 3 if when in {"past", "now"} else 2]
            with (place / "usr/app0").open("r+b") as file:
                file.write(b"C" * 5000)
            os.utime(place / "usr/app0", ns=(0, status.st_mtime_ns))
            assert builder.hits(place) == 2
            digests.append(builder.build(place).digest)
    assert digests[0] == digests[1]


@pytest.mark.root
@pytest.mark.parametrize("kind", WRITABLE)
def test_a_file_system_mounted_again(builder: Builder, kind: str) -> None:
    """Restored from a backup meanwhile, say: to the same UUID, device, inode and times."""
    image = made(builder.tmp_path, kind)
    with mounted(image, kind) as place:
        fill(place)
    backup = builder.tmp_path / "backup"
    shutil.copyfile(image, backup)
    with loop_device(image) as device:
        with mounted(device, kind, place=builder.tmp_path / "mnt") as place:
            assert [builder.hits(place), builder.hits(place)] == [0, 3]
            with (place / "usr/app0").open("r+b") as file:
                file.write(b"B")
            assert [builder.hits(place), builder.hits(place)] == [2, 3]
            number = os.stat(place).st_dev
        rewrite(image, backup, device)
        with mounted(device, kind, place=builder.tmp_path / "mnt") as place:
            assert kind == "btrfs" or os.stat(place).st_dev == number
            assert [builder.hits(place), builder.hits(place)] == [0, 3]


@pytest.mark.root
def test_snapshots(builder: Builder) -> None:
    """Files of a snapshot have the inode numbers and times of those that they were."""
    with mounted(made(builder.tmp_path, "btrfs"), "btrfs") as place:

        def subvolume(*words: str) -> None:
            subprocess.run(["btrfs", "subvolume", *words], cwd=place, check=True, capture_output=True)

        subvolume("create", "one")
        fill(place / "one")
        assert [builder.hits(place / "one"), builder.hits(place / "one")] == [0, 3]
        subvolume("snapshot", "one", "two")
        with (place / "two/usr/app0").open("r+b") as file:
            file.write(b"B")
        assert [builder.hits(place / "two"), builder.hits(place / "two")] == [0, 3]
        # Rolled back, under the name that the other had; and another one under a device number that is free again.
        subvolume("delete", "one")
        subvolume("snapshot", "two", "one")
        assert [builder.hits(place / "one"), builder.hits(place / "two")] == [0, 3]


def write_clone(path: Path) -> None:
    """Blocks of another file in the place of these."""
    other = path.with_name("other")
    other.write_bytes(b"Z" * path.stat().st_size)
    with other.open("rb") as source, path.open("r+b") as target:
        assert reflink(source.fileno(), target.fileno())
    other.unlink()


def swap_xfs(path: Path) -> None:
    """The blocks of two files change places: their times do not say so."""
    other = path.with_name("other")
    other.write_bytes(b"Z" * path.stat().st_size)
    status = path.stat()
    # struct xfs_bstat, of which the times are compared
    times = b"".join(
        struct.pack("=qiI", ns // 10**9, ns % 10**9, 0) for ns in (0, status.st_mtime_ns, status.st_ctime_ns)
    )
    with path.open("r+b") as file, other.open("r+b") as second:
        os.fsync(file.fileno())
        os.fsync(second.fileno())
        head = struct.pack("=qqqqq16x", 0, file.fileno(), second.fileno(), 0, status.st_size)
        fcntl.ioctl(file, _XFS_SWAPEXT, (head + bytes(40) + times).ljust(192, b"\0"))
    other.unlink()


def move_ext4(path: Path) -> None:
    """As a defragmentation does, with the file as what gives its blocks."""
    other = path.with_name("other")
    other.write_bytes(b"Z" * path.stat().st_size)
    with path.open("r+b") as file, other.open("r+b") as second:
        os.fsync(file.fileno())
        os.fsync(second.fileno())
        fcntl.ioctl(second, _EXT4_MOVE_EXT, struct.pack("=IIQQQQ", 0, file.fileno(), 0, 0, 1, 0))
        os.fsync(second.fileno())
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # only what was written back is let go of
    other.unlink()


def write_map(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0] = 90


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "change", "owner"),
    [
        *[(kind, write_clone, owner) for kind in ("xfs", "btrfs") for owner in (0, 65534)],
        *[(kind, write_map, owner) for kind in WRITABLE for owner in (0, 65534)],
        ("xfs", swap_xfs, 65534),
        ("ext4", move_ext4, 65534),
    ],
)
def test_contents_that_change_in_unusual_ways(
    builder: Builder, kind: str, change: Callable[[Path], None], owner: int
) -> None:
    """Whoever owns a file can exchange its blocks in secret, so only root's own files are remembered."""
    with mounted(made(builder.tmp_path, kind), kind) as place:
        fill(place)
        path = place / "usr/app0"
        os.chown(path, owner, owner)
        time.sleep(0.05)
        known = 3 if owner == 0 else 2
        assert [builder.hits(place), builder.hits(place)] == [0, known]
        was = path.stat()
        change(path)
        in_secret = change in {swap_xfs, move_ext4}
        if not in_secret:
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        now = path.stat()
        assert (now.st_ino, now.st_size, now.st_mtime_ns) == (was.st_ino, was.st_size, was.st_mtime_ns)
        assert (now.st_ctime_ns == was.st_ctime_ns) is in_secret
        assert path.read_bytes() != b"A" * 5000
        assert builder.hits(place) == 2


@pytest.mark.root
@pytest.mark.parametrize("kind", WRITABLE)
def test_read_only(builder: Builder, kind: str) -> None:
    """What is below a read-only file system may change without the kernel: nothing of it is remembered, or recalled."""
    image = made(builder.tmp_path, kind)
    with mounted(image, kind) as place:
        fill(place)
        assert [builder.hits(place), builder.hits(place)] == [0, 3]
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert builder.hits(place) == 0
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        assert builder.hits(place) == 3
    with mounted(image, kind, "ro") as place:
        assert [builder.hits(place), builder.hits(place)] == [0, 0]


@pytest.mark.root
@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("options", ["rw", "ro"])
def test_containers_know_what_the_machine_knows(builder: Builder, kind: str, options: str) -> None:
    """Bind mounts, also read-only ones, in other mount, PID, network and host name spaces."""
    need_mounts()
    with mounted(made(builder.tmp_path, kind), kind) as place:
        fill(place)
        assert [builder.hits(place), builder.hits(place)] == [0, 3]
        (builder.tmp_path / "bound").mkdir()
        inside = (
            'mount --bind "$1" "$2" && mount -o "remount,bind,$3" "$2" && mount -t proc proc /proc && cd "$2" && '
            'mount -o remount,ro /sys; shift 3; exec "$@"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "sh", "-c", inside, "sh", place,
             builder.tmp_path / "bound", options, *COMMAND, "build", ".", builder.tmp_path / "out.cfs", "--json",
             "--store", builder.tmp_path / "store", "--cache-dir", builder.cache],
            capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert '"cache_hits": 3' in done.stdout


@pytest.mark.root
def test_a_file_system_with_whole_seconds(builder: Builder) -> None:
    """Two changes within a second would have the same time."""
    image = made(builder.tmp_path, "ext4")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-I", "128", image], check=True, capture_output=True)
    with mounted(image, "ext4") as place:
        fill(place)
        time.sleep(1)
        assert [builder.hits(place), builder.hits(place)] == [0, 0]


def test_an_old_cache_in_the_store_is_passed_over(builder: Builder) -> None:
    """Neither read nor written nor opened: it may be somebody else's."""
    source = builder.tmp_path / "source"
    source.mkdir()
    fill(source)
    builder.build(source, cached=False)
    hidden = builder.tmp_path / "store/.mkcfs"
    hidden.mkdir()
    database = sqlite3.connect(hidden / "digests.sqlite")
    database.execute("CREATE TABLE buckets (records)")
    database.commit()
    database.close()
    os.mkfifo(hidden / "digests.sqlite-journal")

    def there() -> dict[str, object]:
        found: dict[str, object] = {}
        for path in hidden.iterdir():
            status = path.lstat()
            data = path.is_fifo() or path.read_bytes()
            found[path.name] = (data, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
        return found

    before = there()
    hidden.chmod(0)
    assert [builder.hits(source), builder.hits(source)] == [0, 3]
    for words in (["fsck"], ["gc", "--keep-nothing", "--grace", "0"], ["stat"]):
        mkcfs("store", *words, "--store", builder.tmp_path / "store")
    hidden.chmod(0o700)
    assert there() == before


@pytest.mark.root
def test_each_user_has_a_cache_of_their_own(builder: Builder) -> None:
    """Neither root nor the user believes what is the other's."""
    source = builder.tmp_path / "source"
    source.mkdir()
    fill(source)
    os.chown(builder.tmp_path, 65534, 65534)
    assert [builder.hits(source), builder.hits(source)] == [0, 3]
    os.chown(builder.tmp_path / "store", 65534, 65534)
    for path in (builder.tmp_path / "store").rglob("*"):
        os.chown(path, 65534, 65534)
    with as_nobody(builder.tmp_path):
        assert [builder.hits(source), builder.hits(source)] == [0, 0]
    own = Builder(builder.tmp_path, builder.tmp_path / "own")
    with as_nobody(builder.tmp_path):
        assert [own.hits(source), own.hits(source)] == [0, 3]
    assert [own.hits(source), own.hits(source)] == [0, 0]


@pytest.mark.parametrize("plant", ["file", "link", "fifo", "directory link", "loop", "open"])
def test_whatever_is_planted_the_build_goes_on(builder: Builder, plant: str) -> None:
    source = builder.tmp_path / "source"
    source.mkdir()
    fill(source)
    outside = builder.tmp_path / "outside"
    outside.mkdir(mode=0o700)
    match plant:
        case "file":
            builder.cache.touch()
        case "link":
            builder.cache.symlink_to(outside / "nothing")
        case "fifo":
            os.mkfifo(builder.cache)
        case "directory link":
            builder.cache.symlink_to(outside)
        case "loop":
            builder.cache.symlink_to(builder.cache)
        case _:
            builder.cache.mkdir()
            builder.cache.chmod(0o1777)
    assert [builder.hits(source), builder.hits(source)] == [0, 0]
    assert list(outside.iterdir()) == []
    if plant == "open":
        assert list(builder.cache.iterdir()) == []


def test_no_cache_is_made_without_a_store_or_a_directory(builder: Builder) -> None:
    source = builder.tmp_path / "source"
    source.mkdir()
    fill(source)
    objects = ObjectOptions(cache=os.fsencode(builder.cache))
    build(os.fsencode(source), None, objects=objects)
    assert not builder.cache.exists()
    warned = build(
        os.fsencode(source), None, stores=[os.fsencode(builder.tmp_path / "store")], objects=objects
    ).warnings
    assert warned == ()
    inside = ObjectOptions(cache=os.fsencode(source / "cache"))
    warned = build(os.fsencode(source), None, stores=[os.fsencode(builder.tmp_path / "store")], objects=inside).warnings
    assert len(warned) == 1
    assert "lies inside the source" in warned[0]


def test_a_build_that_fails_keeps_what_it_read(builder: Builder) -> None:
    source = builder.tmp_path / "source"
    source.mkdir()
    fill(source)
    script = (
        "import os, sys\nfrom cfstools.api.build import *\nmodule = sys.modules['cfstools.api.build']\n"
        "module.output_image = None\nfrom cfstools.store.cache import digest_cache\ndigest_cache.RACY_NS = 0\n"
        "source, store, place = map(os.fsencode, sys.argv[1:])\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "try: module.build(source, None, stores=[store], objects=ObjectOptions(cache=place))\n"
        "except TypeError: assert len(os.listdir('/proc/self/fd')) == before\n"
        "else: sys.exit(1)\n"
    )
    words = [source, builder.tmp_path / "store", builder.cache]
    builder.build(source, cached=False)  # objects of a build that fails are not kept
    subprocess.run([sys.executable, "-c", script, *words], check=True)
    assert builder.hits(source) == 3
