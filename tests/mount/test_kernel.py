"""Mounting with the running kernel, in the way of new kernels and in those of old ones."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.errors import CfsError, InputError, StoreError, Unsupported, UsageError
from cfstools.formats.base import KernelMount
from cfstools.linux import mount as linux
from cfstools.mount import Layers, Mounting, OverlayVerity, mount_image
from cfstools.mount.erofs import kernel_mount, mount_erofs, mount_erofs_by_loop, mount_erofs_classic
from cfstools.mount.layers import cannot
from cfstools.mount.overlay import classic_options, mount_overlay, mount_overlay_classic
from tests.compat.mounted import differences
from tests.mounts import mounts_below
from tests.processes import until

pytestmark = pytest.mark.kernel

NO_SUCH_CALL = 0x7FFF
SCRATCH = b"/tmp"


@contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def stores(place: Path) -> tuple[bytes, ...]:
    return (bytes(place / "one"), bytes(place / "two"))


def mounted(place: Path, layers: Layers, image: Path | None = None, *, scratch: bytes | None = None) -> Mounting:
    image = image or place / "image"
    with opened(image, place / "mnt") as (image_fd, directory_fd):
        return mount_image(image_fd, layers, directory_fd, size=image.stat().st_size, scratch=scratch or SCRATCH)


@pytest.fixture
def temporaries(tmp_path: Path) -> Path:
    """A directory that nothing else makes temporary directories in."""
    (tmp_path / "temporaries").mkdir()
    return tmp_path / "temporaries"


def test_two_stores_show_the_source(place: Path, temporaries: Path) -> None:
    done = mounted(place, Layers(stores=stores(place)), scratch=bytes(temporaries))
    assert done == Mounting(loop=False, objects_checked=False)
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
    with pytest.raises(OSError, match="Read-only file system"):
        (place / "mnt/new").touch()
    assert linux.mounted_at(bytes(place / "mnt")) == linux.Mounted(b"overlay", b"composefs")
    assert os.listdir(temporaries) == []
    # Nothing but the overlay has a place.
    assert mounts_below(place) == [bytes(place / "mnt")]
    linux.umount(bytes(place / "mnt"))
    assert linux.mounted_at(bytes(place / "mnt")) is None


def test_writes_go_to_the_upper_directory(place: Path) -> None:
    layers = Layers(stores=stores(place), upper=bytes(place / "upper"), work=bytes(place / "work"), writable=True)
    mounted(place, layers)
    (place / "mnt/etc/conf").write_text("changed\n")
    (place / "mnt/file3").unlink()
    assert (place / "upper/etc/conf").read_text() == "changed\n"
    assert not (place / "mnt/file3").exists()
    linux.umount(bytes(place / "mnt"))
    # Mounted read-only, it still shows what was written.
    mounted(place, Layers(stores=stores(place), upper=bytes(place / "upper"), work=bytes(place / "work")))
    assert (place / "mnt/etc/conf").read_text() == "changed\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (place / "mnt/new").touch()


@pytest.mark.parametrize(
    "name",
    [b"a,b c", b"x:y,z", b"back\\slash\\,", b"\xff\xfe", b"n" * 250],
    ids=["comma", "colon", "back", "bytes", "long"],
)
@pytest.mark.parametrize("old", [False, True])
def test_names(place: Path, name: bytes, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        monkeypatch.setattr(linux, "_SYS_FSOPEN", NO_SUCH_CALL)
    odd = Path(os.fsdecode(os.path.join(bytes(place), name)))
    odd.mkdir()
    for part in ("one", "two", "upper", "work", "mnt", "image"):
        (place / part).rename(odd / part)
    layers = Layers(stores=stores(odd), upper=bytes(odd / "upper"), work=bytes(odd / "work"), writable=True)
    mounted(odd, layers)
    assert (odd / "mnt/file1").read_bytes() == b"1" * 10_000
    assert (odd / "mnt/file2").read_bytes() == b"2" * 10_000
    (odd / "mnt/new").write_text("new")
    assert (odd / "upper/new").read_text() == "new"
    assert linux.mounted_at(bytes(odd / "mnt")) == linux.Mounted(b"overlay", b"composefs")


def test_without_the_new_calls(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no fsopen(2), all is mounted with mount(2)."""
    monkeypatch.setattr(linux, "_SYS_FSOPEN", NO_SUCH_CALL)
    assert mounted(place, Layers(stores=stores(place))) == Mounting(loop=False, objects_checked=False)
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
    linux.umount(bytes(place / "mnt"))
    with pytest.raises(Unsupported, match=r"^mapping owners needs Linux 5.19 or newer, and this is "):
        mounted(place, Layers(stores=stores(place), idmap=b"/proc/self/ns/user"))
    assert mounts_below(place) == []


def test_flags_without_the_new_calls(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_SYS_FSOPEN", NO_SUCH_CALL)
    mounted(place, Layers(stores=stores(place), nosuid=True, nodev=True, noexec=True))
    lines = Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines()
    line = next(line for line in lines if f" {place}/mnt " in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))


def test_the_old_overlay_alone(place: Path) -> None:
    (place / "erofs").mkdir()
    with opened(place / "image", place / "erofs", place / "mnt") as (image_fd, erofs_fd, directory_fd):
        mount_erofs_classic(linux.fd_path(image_fd), erofs_fd, how=KernelMount(file_system=b"erofs", flags=(b"noacl",)))
        assert not mount_overlay_classic(bytes(place / "erofs"), Layers(stores=stores(place)), directory_fd)
        assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
        long = Layers(stores=stores(place) * 400)
        with pytest.raises(Unsupported, match=r"paths this long needs Linux 6.7"):
            mount_overlay_classic(bytes(place / "erofs"), long, directory_fd)
        with pytest.raises(FileNotFoundError):
            mount_overlay_classic(bytes(place / "erofs"), Layers(stores=(b"/nowhere",)), directory_fd)
        # Upper and work directory on different file systems.
        wrong = Layers(stores=stores(place), upper=bytes(place / "upper"), work=b"/dev/shm")
        with pytest.raises(OSError, match="Invalid argument"):
            mount_overlay_classic(bytes(place / "erofs"), wrong, directory_fd)
        required = Layers(
            stores=stores(place), upper=bytes(place / "upper"), work=b"/dev/shm", objects=OverlayVerity.REQUIRE
        )
        with pytest.raises(Unsupported, match=r"verity=require needs Linux 6.6"):
            mount_overlay_classic(bytes(place / "erofs"), required, directory_fd)


def test_old_options_are_escaped() -> None:
    layers = Layers(stores=(b"/a,b", b"/c:d\\"), upper=b"/u", work=b"/w,", objects=OverlayVerity.REQUIRE)
    assert classic_options(b"/i", layers, colons=b"::") == (
        b"metacopy=on,redirect_dir=on,lowerdir=/i::/a\\,b::/c\\:d\\\\,upperdir=/u,workdir=/w\\,,verity=require"
    )


def test_a_loop_device(place: Path) -> None:
    image = place / "image"
    with opened(image, place / "mnt") as (image_fd, directory_fd):
        mount_erofs_by_loop(image_fd, directory_fd, size=image.stat().st_size, how=kernel_mount(image_fd))
    found = linux.mounted_at(bytes(place / "mnt"))
    assert found is not None
    assert found.kind == b"erofs"
    device = found.source.decode()
    assert device.startswith("/dev/loop")
    show = ["losetup", "--list", "--noheadings", "--raw", "--output", "RO,AUTOCLEAR,LOG-SEC,BACK-FILE", device]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout.split()
    assert shown == ["1", "1", "4096", str(image)]
    assert max(os.listdir(place / "mnt")) == "file9"
    linux.umount(bytes(place / "mnt"))
    # Other tests mount things as well.
    assert f" {place}/" not in Path("/proc/self/mountinfo").read_text()
    attached = ["losetup", "--associated", str(image)]
    until(lambda: not subprocess.run(attached, check=True, capture_output=True).stdout)


def test_a_file_the_kernel_cannot_mount_gets_a_loop_device(place: Path) -> None:
    """EROFS refuses files on tmpfs, as Linux before 6.12 refuses all."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write((place / "image").read_bytes())
        file.flush()
        done = mounted(place, Layers(stores=stores(place)), Path(file.name))
        assert done.loop
        assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
        linux.umount(bytes(place / "mnt"))


def test_no_loop_device(place: Path) -> None:
    with opened(place / "mnt") as (directory_fd,):
        with pytest.raises(Unsupported, match="cannot attach a loop device") as caught:
            mount_erofs_by_loop(directory_fd, directory_fd, size=4096, how=KernelMount(file_system=b"erofs"))
        assert caught.value.hint == "EROFS straight on a file needs Linux 6.12"


def test_owners_are_mapped(place: Path) -> None:
    with subprocess.Popen(["unshare", "--user", "sleep", "600"]) as process:
        namespace = Path(f"/proc/{process.pid}/ns/user")
        try:
            deadline = time.monotonic() + 20
            while os.readlink(namespace) == os.readlink("/proc/self/ns/user"):
                assert time.monotonic() < deadline
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text("0 100000 65536\n")
            mounted(place, Layers(stores=stores(place), idmap=bytes(namespace)))
        finally:
            process.kill()
    status = (place / "mnt/file1").stat()
    assert (status.st_uid, status.st_gid) == (100_001, 100_002)
    assert (place / "mnt/file1").read_bytes() == b"1" * 10_000


def test_owners_that_cannot_be_mapped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="cannot map owners: ") as caught:
        mounted(place, Layers(stores=stores(place), idmap=b"/proc/self/ns/user"))
    assert caught.value.hint
    with pytest.raises(InputError, match=r"^/nowhere: cannot open: "):
        mounted(place, Layers(stores=stores(place), idmap=b"/nowhere"))
    monkeypatch.setattr(linux, "_SYS_MOUNT_SETATTR", NO_SUCH_CALL)
    with pytest.raises(Unsupported, match=r"mapping owners needs Linux 5.19"):
        mounted(place, Layers(stores=stores(place), idmap=b"/proc/self/ns/user"))


def test_checked_objects(place: Path) -> None:
    """Without fs-verity a checked object cannot be opened, and what is in the image can."""
    done = mounted(place, Layers(stores=stores(place), objects=OverlayVerity.REQUIRE))
    assert done.objects_checked
    assert (place / "mnt/etc/conf").read_text() == "text\n"
    with pytest.raises(OSError):
        (place / "mnt/file1").read_bytes()
    linux.umount(bytes(place / "mnt"))
    assert mounted(place, Layers(stores=stores(place), objects=OverlayVerity.TRY)).objects_checked


def test_what_cannot_be_mounted(place: Path, temporaries: Path) -> None:
    def refused(layers: Layers, image: Path | None = None) -> None:
        mounted(place, layers, image, scratch=bytes(temporaries))

    with pytest.raises(StoreError, match="/nowhere: cannot open: No such file or directory"):
        refused(Layers(stores=(bytes(place / "nowhere"),)))
    with pytest.raises(InputError, match="/nowhere: cannot open: No such file or directory"):
        mounted(
            place,
            Layers(stores=stores(place), upper=bytes(place / "nowhere"), work=bytes(place / "work")),
            scratch=bytes(temporaries),
        )
    with pytest.raises(InputError, match="cannot mount the overlay: Invalid argument") as caught:
        mounted(
            place,
            Layers(stores=stores(place), upper=bytes(place / "upper"), work=b"/dev/shm"),
            scratch=bytes(temporaries),
        )
    assert caught.value.hint == "the kernel's log may say more (dmesg)"
    damaged = place / "damaged"
    data = bytearray((place / "image").read_bytes())
    data[1024:1028] = b"\0\0\0\0"
    damaged.write_bytes(data)
    with pytest.raises(InputError, match="cannot mount the image: Invalid argument"):
        refused(Layers(stores=stores(place)), damaged)
    for bad, text in ((b"", "too short"), (bytes(5000), "no composefs image")):
        damaged.write_bytes(bad)
        with pytest.raises(InputError, match=text):
            refused(Layers(stores=stores(place)), damaged)
    assert mounts_below(place) == []
    assert os.listdir(temporaries) == []


def test_file_systems_the_kernel_lacks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = linux.FsContext

    def lacking(kind: bytes) -> linux.FsContext:
        return real(b"none" + kind)

    monkeypatch.setattr(linux, "FsContext", lacking)
    with pytest.raises(Unsupported, match="this kernel has no EROFS"):
        mounted(place, Layers(stores=stores(place)))
    with opened(place / "mnt") as (directory_fd,), pytest.raises(Unsupported, match="has no overlay file system"):
        mount_overlay(bytes(place / "source"), Layers(stores=stores(place)), directory_fd)


def test_a_temporary_directory_of_others(place: Path, temporaries: Path) -> None:
    """They could put something else in the place of the hidden directory."""
    for owner, mode in ((1234, 0o755), (0, 0o777)):
        os.chown(temporaries, owner, owner)
        temporaries.chmod(mode)
        with pytest.raises(InputError, match="temporaries: ") as caught:
            mounted(place, Layers(stores=stores(place)), scratch=bytes(temporaries))
        assert caught.value.hint == "set TMPDIR to a directory that only root may write"
    temporaries.chmod(0o1777)
    mounted(place, Layers(stores=stores(place)), scratch=bytes(temporaries))
    assert os.listdir(temporaries) == []


@pytest.mark.parametrize("kind", ["stores", "upper"])
def test_layers_are_those_that_were_open(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A directory of another user on the way is replaced by a link just before the kernel looks."""
    theirs, other = place / "theirs", place / "other"
    for path in (theirs, other):
        (path / "upper").mkdir(parents=True)
        (path / "work").mkdir()
        (path / "one").mkdir()
    os.chown(theirs, 1234, 1234)
    (place / "one").rename(theirs / "one-real")
    (theirs / "one").rmdir()
    (theirs / "one-real").rename(theirs / "one")
    real = linux.FsContext.set_string

    def set_string(self: linux.FsContext, key: bytes, value: bytes) -> None:
        if key in (b"lowerdir+", b"datadir+") and theirs.is_dir() and not theirs.is_symlink():
            theirs.rename(place / "taken")
            theirs.symlink_to(other)
        real(self, key, value)

    monkeypatch.setattr(linux.FsContext, "set_string", set_string)
    layers = Layers(
        stores=(bytes(theirs / "one"), bytes(place / "two")),
        upper=bytes(theirs / "upper"),
        work=bytes(theirs / "work"),
        writable=True,
    )
    mounted(place, layers)
    if kind == "stores":
        assert [(place / f"mnt/file{number}").read_bytes()[:1] for number in range(10)] == [
            b"%d" % number for number in range(10)
        ]
    else:
        (place / "mnt/new").touch()
        assert os.listdir(place / "taken/upper") == ["new"]
        assert os.listdir(other / "upper") == []


def test_a_place_that_cannot_be_made(place: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot make a temporary directory"):
        mounted(place, Layers(stores=stores(place)), scratch=bytes(place / "nowhere"))


def test_layers_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="no store"):
        Layers(stores=())
    with pytest.raises(UsageError, match="only go together"):
        Layers(stores=(b"a",), upper=b"u")


def test_acls(place: Path) -> None:
    (place / "acl").mkdir()
    data = bytearray((place / "image").read_bytes())
    with opened(place / "image") as (fd,):
        assert kernel_mount(fd).flags == (b"noacl",)
    data[8] |= 1
    (place / "image").write_bytes(data)
    with opened(place / "image", place / "acl") as (fd, directory_fd):
        assert kernel_mount(fd).flags == ()
        assert not mount_erofs(fd, directory_fd, size=len(data))
    options = next(
        line.split(" - ")[1]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(place / "acl")
    )
    assert ",acl," in f"{options},"
    with opened(place / "mnt") as (directory_fd,), pytest.raises(InputError, match="cannot read"):
        kernel_mount(directory_fd)


def test_no_other_program_takes_the_mount_for_its_own_file(place: Path) -> None:
    """mkfs.btrfs, for one, looks up the sources of all mounts, and refuses a file that it finds to be one."""
    (place / "shown").mkdir()
    with opened(place / "image", place / "shown") as (fd, directory_fd):
        assert not mount_erofs(fd, directory_fd, size=(place / "image").stat().st_size)
        mounted_here = linux.mounted_at(bytes(place / "shown"))
        assert mounted_here is not None
        subprocess.run(["test", mounted_here.source, "-ef", place / "image"], check=True)


def test_rights() -> None:
    assert isinstance(cannot("try", PermissionError(1, "Operation not permitted")), Unsupported)
    assert isinstance(cannot("try", PermissionError(13, "Permission denied")), CfsError)


class BeforeVerity(linux.FsContext):
    """An overlay of Linux 6.5, which knows no ``verity``."""

    def set_string(self, key: bytes, value: bytes) -> None:
        super().set_string(b"no-verity" if key == b"verity" else key, value)


class BeforeLayers(linux.FsContext):
    """An overlay of Linux 6.4, which keeps every option for later."""

    def set_string(self, key: bytes, value: bytes) -> None:
        if key != b"unsupported":
            super().set_string(key, value)


def test_an_overlay_without_checks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "FsContext", BeforeVerity)
    with pytest.raises(Unsupported, match=r"^an overlay with verity=require needs Linux 6.6 or newer, and this is "):
        mounted(place, Layers(stores=stores(place), objects=OverlayVerity.REQUIRE))
    assert not mounted(place, Layers(stores=stores(place), objects=OverlayVerity.TRY)).objects_checked
    assert (place / "mnt/file1").read_bytes() == b"1" * 10_000


def test_an_overlay_that_only_collects_options(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "FsContext", BeforeLayers)
    mounted(place, Layers(stores=stores(place)))
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
    # The option string of mount(2), not the layers one by one.
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place}/mnt " in line)
    assert "lowerdir=" in line
    assert "datadir+=" not in line
