"""``mkcfs mount`` and ``mkcfs umount`` as users run them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cfstools import api
from cfstools.linux import mount as linux
from cfstools.linux import verity as kernel_verity
from tests.compat.mounted import differences
from tests.mkcfs import AS_NOBODY, NOBODY, mkcfs, unmeasured
from tests.mounts import mounts_below, unmount_below

pytestmark = pytest.mark.kernel


def fill(place: Path) -> None:
    """A source, its image and store, and directories to mount on and to write to."""
    source = place / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/conf").write_text("text\n")
    for number in range(8):
        (source / f"file{number}").write_bytes(b"%d" % number * 10_000)
    mkcfs("build", source, place / "image", "--store", place / "store")
    for name in ("mnt", "upper", "work"):
        (place / name).mkdir()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    fill(tmp_path)
    yield tmp_path
    unmount_below(tmp_path)


def split(first: Path, second: Path) -> None:
    """Move every other object from the first store to the second."""
    for path in sorted(path for path in first.glob("??/*") if path.is_file())[::2]:
        moved = second / path.relative_to(first)
        moved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, moved)


def mount(place: Path, *words: str | bytes | Path) -> dict[str, object]:
    """Mount the image and return the report."""
    done = mkcfs("mount", place / "image", place / "mnt", "--json", *words)
    assert done.stderr == b""
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def refused(place: Path, *words: str | bytes | Path, code: int) -> str:
    """Try to mount, expect one error line and no mount; return the line without the directory."""
    done = mkcfs("mount", place / "image", place / "mnt", *words, check=False)
    assert (done.code, done.stdout) == (code, b"")
    assert mounts_below(place) == []
    first, *rest = done.stderr.decode().replace(str(place), "").splitlines()
    assert all(line.startswith("hint: ") for line in rest)
    return first


def sealing(place: Path) -> bool:
    fd = os.open(place, os.O_RDONLY)
    try:
        return kernel_verity.offered(fd)
    finally:
        os.close(fd)


def test_mount_and_umount(place: Path) -> None:
    assert mount(place, "--store", place / "store") == {
        "schema": 1,
        "image": str(place / "image"),
        "directory": str(place / "mnt"),
        "method": "kernel",
        "stores": [str(place / "store")],
        "lazy": [],
        "writable": False,
        "digest_checked": False,
        "verified_by": [],
        "measured": False,
        "objects_checked": False,
        "check": "off",
        "loop": False,
        "nosuid": True,
        "nodev": True,
        "noexec": False,
        "map": None,
        "pid": None,
        "left_out": [],
    }
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
    with (place / "mnt/file1").open("rb"):
        done = mkcfs("umount", place / "mnt", check=False)
        assert (done.code, done.stderr) == (
            1,
            b"mkcfs: %b/mnt: cannot unmount: files there are in use\n" % bytes(place),
        )
    mkcfs("umount", place / "mnt")
    assert mounts_below(place) == []
    done = mkcfs("umount", place / "mnt", check=False)
    assert (done.code, done.stderr) == (1, b"mkcfs: %b/mnt: nothing is mounted there\n" % bytes(place))


def test_other_mounts_stay(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "mnt"], check=True)
    done = mkcfs("umount", place / "mnt", check=False)
    assert done.code == 1
    assert b"is no composefs image" in done.stderr
    assert mounts_below(place) == [bytes(place / "mnt")]


@pytest.mark.parametrize("where", ["last", "on the way"])
def test_links_of_others_lead_no_mount_elsewhere(place: Path, where: str) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    (place / "mnt/sub").mkdir()
    (theirs / "link").symlink_to(place / ("mnt" if where == "last" else "."))
    os.chown(theirs / "link", NOBODY, NOBODY, follow_symlinks=False)
    target = theirs / "link" if where == "last" else theirs / "link/mnt"
    done = mkcfs("mount", place / "image", target, "--store", place / "store", check=False)
    assert (done.code, mounts_below(place)) == (1, [])
    assert f"{theirs}/link" in done.stderr.decode()
    assert f"is a symbolic link that belongs to user {NOBODY}" in done.stderr.decode()
    mount(place, "--store", place / "store")
    assert mkcfs("umount", target, check=False).code == 1
    assert mounts_below(place) == [bytes(place / "mnt")]


def test_only_what_is_looked_at_is_taken_off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of a directory above replaces it by a link while the mount is looked at."""
    theirs, other = place / "theirs", place / "other"
    for path in (theirs / "mnt", other / "mnt"):
        path.mkdir(parents=True)
        mkcfs("mount", place / "image", path, "--store", place / "store")
    real = linux.umount

    def umount(*words: bytes) -> None:
        theirs.rename(place / "taken")
        theirs.symlink_to(other)
        real(*words)

    monkeypatch.setattr(linux, "umount", umount)
    api.umount(bytes(theirs / "mnt"))
    monkeypatch.undo()
    assert mounts_below(place) == [bytes(other / "mnt")]


def test_umount_from_inside_and_by_links(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(place, "--store", place / "store")
    (place / "link").symlink_to("mnt")
    mkcfs("umount", place / "link")
    mount(place, "--store", place / "store")
    done = mkcfs("umount", place / "mnt/etc", check=False)
    assert b"nothing is mounted there" in done.stderr
    monkeypatch.chdir(place)
    mkcfs("umount", "mnt/.")
    assert mounts_below(place) == []


def test_what_was_mounted_is_said(place: Path) -> None:
    done = mkcfs("-v", "mount", place / "image", place / "mnt", "--store", place / "store")
    assert done.stdout == b""
    assert (
        done.stderr.decode() == f"{place}/mnt: {place}/image mounted, read-only, objects not checked, nosuid, nodev\n"
    )
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write((place / "image").read_bytes())
        file.flush()
        words = ["--rw", "--upper", f"{place}/upper", "--work", f"{place}/work"]
        done = mkcfs("-v", "mount", file.name, place / "mnt", "--store", place / "store", *words)
        assert done.stderr.decode().endswith(
            " mounted, read-write, objects not checked, nosuid, nodev, on a loop device\n"
        )
        unmount_below(place)


def test_two_stores(place: Path) -> None:
    split(place / "store", place / "other")
    mount(place, "--store", place / "store", "--store", place / "other")
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []
    mkcfs("umount", place / "mnt")
    mount(place, "-o", f"basedir={place}/store:{place}/other")
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []


@pytest.mark.reference
@pytest.mark.slow
def test_a_debian_root_through_two_stores(debian_tree: Path, place: Path) -> None:
    mkcfs("build", debian_tree, place / "image", "--store", place / "one")
    split(place / "one", place / "two")
    digest = mkcfs("digest", "--compact", place / "image").stdout.decode().strip()
    mount(place, "--store", place / "one", "--store", place / "two", "--digest", digest)
    assert list(differences(bytes(debian_tree), bytes(place / "mnt"))) == []


def test_writing(place: Path) -> None:
    report = mount(place, "--store", place / "store", "--rw", "--upper", place / "upper", "--work", place / "work")
    assert report["writable"]
    (place / "mnt/etc/conf").write_text("changed\n")
    assert (place / "upper/etc/conf").read_text() == "changed\n"
    mkcfs("umount", place / "mnt")
    report = mount(place, "-o", f"basedir={place}/store,upperdir={place}/upper,workdir={place}/work,ro")
    assert not report["writable"]
    assert (place / "mnt/etc/conf").read_text() == "changed\n"
    mkcfs("umount", place / "mnt")
    assert mount(place, "-o", f"basedir={place}/store,upperdir={place}/upper,workdir={place}/work")["writable"]


def flags(place: Path) -> set[str]:
    """What of the mount's flags the kernel shows, among those that are asked for here."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="latin-1").splitlines():
        if line.split()[4] == str(place / "mnt"):
            return set(line.split()[5].split(",")) & {"ro", "nosuid", "nodev", "noexec"}
    raise AssertionError("it is not mounted")


@pytest.mark.parametrize(
    ("options", "checked", "wanted"),
    [
        ("", False, {"nosuid", "nodev"}),
        ("", True, set()),
        ("nosuid,nodev,noexec", True, {"nosuid", "nodev", "noexec"}),
        ("noexec", False, {"nosuid", "nodev", "noexec"}),
        ("suid", False, {"nodev"}),
        ("dev", False, {"nosuid"}),
        ("suid,dev,exec", False, set()),
        ("nosuid,suid,nodev,dev,noexec,exec", False, set()),
        ("suid,nosuid,dev,nodev,exec,noexec", True, {"nosuid", "nodev", "noexec"}),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_flags_of_the_mount(*, place: Path, options: str, checked: bool, wanted: set[str], writable: bool) -> None:
    words = ["--store", str(place / "store"), *(["-o", options] if options else [])]
    if writable:
        words += ["--rw", "--upper", str(place / "upper"), "--work", str(place / "work")]
    if checked:
        words += ["--digest", mkcfs("digest", "--compact", place / "image").stdout.decode().strip()]
    report = mount(place, *words)
    assert flags(place) == wanted | (set() if writable else {"ro"})
    assert {name for name in ("nosuid", "nodev", "noexec") if report[name]} == wanted


def test_a_signature_counts_as_a_check(place: Path) -> None:
    mkcfs("keygen", place / "right", "--no-passphrase")
    mkcfs("sign", place / "image", "--key", place / "right.key")
    mount(place, "--store", place / "store", "--key", place / "right.pub")
    assert flags(place) == {"ro"}


def test_what_flags_keep_from_working(place: Path) -> None:
    """A set-user-ID program, a device node and a program."""
    source = place / "source"
    shutil.copy("/usr/bin/id", source / "suid")
    os.chown(source / "suid", NOBODY, NOBODY)
    (source / "suid").chmod(0o4755)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    mkcfs("build", source, place / "image", "--store", place / "store")
    words = ["--store", str(place / "store"), "--rw", "--upper", str(place / "upper"), "--work", str(place / "work")]

    def tried(*options: str) -> tuple[str | None, bool]:
        """As whom the program runs, if it does, and whether the device can be opened."""
        mount(place, *words, *options)
        user: str | None = None
        device = True
        with suppress(PermissionError):
            user = subprocess.run([place / "mnt/suid", "-u"], capture_output=True, text=True, check=True).stdout.strip()
        try:
            (place / "mnt/null").read_bytes()
        except PermissionError:
            device = False
        mkcfs("umount", place / "mnt")
        return user, device

    assert tried() == ("0", False)
    assert tried("-o", "suid,dev") == (str(NOBODY), True)
    assert tried("-o", "suid") == (str(NOBODY), False)
    assert tried("-o", "dev") == ("0", True)
    assert tried("-o", "noexec,suid,dev") == (None, True)


def test_odd_names(place: Path) -> None:
    odd = Path(os.fsdecode(bytes(place) + b"/a, b:c\\ \xff"))
    odd.mkdir()
    for name in ("image", "mnt", "store", "upper", "work"):
        (place / name).rename(odd / name)
    mkcfs("mount", odd / "image", odd / "mnt", "--store", odd / "store")
    assert list(differences(bytes(place / "source"), bytes(odd / "mnt"))) == []
    mkcfs("umount", odd / "mnt")
    store = bytes(odd / "store")
    for special in (b"\\", b",", b":"):
        store = store.replace(special, b"\\" + special)
    mkcfs("mount", odd / "image", odd / "mnt", "-o", b"basedir=" + store)
    assert list(differences(bytes(place / "source"), bytes(odd / "mnt"))) == []
    mkcfs("umount", odd / "mnt")


def test_the_digest_is_checked(place: Path) -> None:
    store = ["--store", str(place / "store")]
    digest = mkcfs("digest", "--compact", place / "image").stdout.decode().strip()
    wrong = "0" * 64
    line = refused(place, *store, "--digest", wrong, code=3)
    assert line == f"mkcfs: /image: the image has the fs-verity digest {digest}, not {wrong}: not mounted"
    assert mount(place, *store, "--digest", digest)["digest_checked"]
    mkcfs("umount", place / "mnt")
    large = mkcfs("digest", "--compact", "--hash-alg", "sha512", place / "image").stdout.decode().strip()
    assert mount(place, *store, "--digest", large)["digest_checked"]
    mkcfs("umount", place / "mnt")
    # Nothing is interpreted before: what is no image at all has a wrong digest, too.
    (place / "image").write_bytes(bytes(4096))
    assert "fs-verity digest" in refused(place, *store, "--digest", digest, code=3)
    assert "is no composefs image" in refused(place, *store, code=1)


def test_the_signature_is_checked(place: Path) -> None:
    store = ["--store", str(place / "store")]
    for name in ("right", "wrong"):
        mkcfs("keygen", place / name, "--no-passphrase")
    right, wrong = ["--key", f"{place}/right.pub"], ["--key", f"{place}/wrong.pub"]
    assert refused(place, *store, *right, code=3).startswith("mkcfs: /image: there is no signature")
    mkcfs("sign", place / "image", "--key", place / "right.key")
    assert len(str(mount(place, *store, *right)["verified_by"])) > 20
    mkcfs("umount", place / "mnt")
    assert "made by unknown keys" in refused(place, *store, *wrong, code=3)
    # Of several keys one is enough.
    mount(place, *store, *wrong, *right)
    mkcfs("umount", place / "mnt")
    data = (place / "image").read_bytes()
    (place / "image").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "the signature holds, but" in refused(place, *store, *right, code=3)
    (place / "image").write_bytes(data)
    (place / "image.sig").unlink()
    mkcfs("sign", place / "image", "--key", place / "right.key", "--attach")
    assert (place / "image").stat().st_size > len(data)
    mount(place, *store, *right)
    assert list(differences(bytes(place / "source"), bytes(place / "mnt"))) == []


def test_what_is_missing(place: Path) -> None:
    line = refused(place, "--store", place / "nowhere", code=1)
    assert line == "mkcfs: /nowhere: cannot open: No such file or directory"
    assert refused(place, code=2).startswith("mkcfs: there is no store")
    store = ["--store", str(place / "store")]
    (place / "mnt").rmdir()
    assert refused(place, *store, code=1) == "mkcfs: /mnt: cannot open: No such file or directory"
    (place / "image").unlink()
    assert refused(place, *store, code=1) == "mkcfs: /image: cannot read: No such file or directory"


@pytest.mark.parametrize(
    "words",
    [
        ["--rw"],
        ["--upper", "upper", "--work", "work"],
        ["--rw", "--upper", "upper", "--work", "work", "-o", "ro"],
        ["--rw", "--upper", "upper", "--work", "work", "-o", "upperdir=/x"],
        ["--work", "work"],
        ["--digest", "00", "-o", "digest=00"],
        ["--digest", "00"],
        ["--verity", "off", "-o", "verity"],
        ["-o", "noverity"],
    ],
)
def test_options_that_make_no_sense(place: Path, words: list[str]) -> None:
    refused(place, "--store", place / "store", *words, code=2)


@pytest.mark.may_skip("where the file system of the tests has fs-verity")
def test_verity_where_the_kernel_has_none(place: Path) -> None:
    if sealing(place):
        pytest.skip("this file system has fs-verity")
    store = ["--store", str(place / "store")]
    digest = mkcfs("digest", "--compact", place / "image").stdout.decode().strip()
    line = refused(place, *store, "--verity", "require", code=1)
    assert line.startswith("mkcfs: /store: this kernel has no fs-verity for files there (CONFIG_FS_VERITY, Linux 5.4")
    assert refused(place, *store, "-o", "verity", code=1) == line
    assert refused(place, *store, "-o", "digest=", code=1) == line
    without = "mkcfs: /image: the image has no fs-verity, which --verity require asks for"
    assert refused(place, *store, "--verity", "require", "--digest", digest, code=3) == without
    assert refused(place, *store, "-o", f"digest={digest}", code=3) == without
    for words in (["--verity", "auto"], ["--verity", "off"]):
        assert not mount(place, *store, *words)["objects_checked"]
        assert (place / "mnt/file1").read_bytes() == b"1" * 10_000
        mkcfs("umount", place / "mnt")
    assert mount(place, *store, "-o", "tryverity")["objects_checked"]
    with pytest.raises(OSError):
        (place / "mnt/file1").read_bytes()


def as_nobody(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", AS_NOBODY, *words]
    return subprocess.run(command, capture_output=True, check=False, env=unmeasured())


def test_only_root_can() -> None:
    place = Path(tempfile.mkdtemp(prefix="cfstools-"))
    try:
        place.chmod(0o755)
        fill(place)
        words = ["mount", str(place / "image"), str(place / "mnt"), "--store", str(place / "store")]
        done = as_nobody([*words, "--method", "kernel"])
        line = f"mkcfs: {place}/image: cannot mount the image: only root can"
        assert (done.returncode, done.stderr.decode().splitlines()[0]) == (1, line)
        mkcfs(*words)
        words = ["umount", str(place / "mnt")]
        done = as_nobody(words)
        assert (done.returncode, done.stderr.decode()) == (1, f"mkcfs: {place}/mnt: cannot unmount: only root can\n")
        assert linux.mounted_at(bytes(place / "mnt")) is not None
    finally:
        unmount_below(place)
        shutil.rmtree(place)
