"""What is checked inside the virtual machine, where the kernel has fs-verity. Prints a line for each check.

Runs as root on an ext4 with the verity feature, with nothing but the standard library and cfstools. Every check is a
function here; the last line printed says how many held and how many did not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from cfstools.linux import verity
from cfstools.verity import Algorithm, Params, digest_bytes, hash_fd

SIZES = [0, 1, 4095, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1]
KEYS = Path("/opt/keys")
# Where this program, its libraries' compiled forms and what it makes lie; and, to save time, a quarter of all bytes in
# one file and much of the same.
LEFT_OUT = ("opt", "work", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/zoneinfo")
# An access list: version, then for each entry tag, permissions and id.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, 1000 if tag == 2 else 0xFFFF_FFFF)
    for tag, permissions in ((1, 7), (2, 4), (4, 5), (16, 5), (32, 5))
)
# What a bare Debian has none of, and an image keeps.
ODD_XATTRS = [
    ("/etc/hostname", "user.k", b"v"),
    ("/etc", "trusted.k", bytes(range(256))),
    ("/usr/bin/openssl", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
    ("/usr/share", "system.posix_acl_default", ACL),
]
CHECKS: list[Callable[[Path], None]] = []


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Mark a function as a check; it gets an empty directory."""
    CHECKS.append(function)
    return function


def mkcfs(*words: str | Path, code: int = 0) -> str:
    """Run the command, expect this exit code, and return what it said."""
    command = [sys.executable, "-m", "cfstools.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def kernel_digest(path: Path) -> bytes | None:
    """What the kernel says of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        found = verity.measure(fd)
    finally:
        os.close(fd)
    return None if found is None else found[1]


def seal(path: Path) -> None:
    """Turn on fs-verity with the standard's own tool."""
    subprocess.run(["fsverity", "enable", str(path)], check=True, capture_output=True)


def objects(store: Path) -> list[Path]:
    """The objects of a store."""
    return sorted(store.glob("[0-9a-f][0-9a-f]/*"))


def tree(place: Path) -> Path:
    """A small tree with every kind of inode that matters here."""
    root, chance = place / "src", random.Random(1)
    for number, size in enumerate([0, 1, 64, 65, 4095, 4096, 4097, 70_000, 600_000]):
        (root / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (root / f"d{number % 3}/f{number}").write_bytes(chance.randbytes(size))
    (root / "link").symlink_to("d0/f0")
    os.link(root / "d1/f7", root / "hard")
    (root / "twin").write_bytes(chance.randbytes(70_000))
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(root / "d0/f3", "user.k", b"v")
    return root


def sealed_image(
    place: Path, *stores: str, source: Path | None = None, without: Sequence[str] = ()
) -> tuple[Path, str]:
    """An image with fs-verity of *source* or the small tree, its objects divided among the stores; and its digest."""
    image = place / "image.cfs"
    first = place / stores[0]
    words = [word for name in without for word in ("--exclude", f"/{name}")]
    # The cache would lie inside of the Debian root.
    words += ["--store", str(first), "--verity", "require", "--print-digest", "--no-cache"]
    digest = mkcfs("build", source or tree(place), image, *words).strip()
    for number, path in enumerate(objects(first)):
        target = place / stores[number % len(stores)] / path.parent.name / path.name
        if target != path:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    if kernel_digest(image) is None:
        seal(image)
    return image, digest


@contextmanager
def mounted(image: Path, digest: str, place: Path, *stores: str) -> Iterator[Path]:
    """The image on a directory, through these stores, every object checked by the kernel."""
    where = place / "mnt"
    where.mkdir(exist_ok=True)
    words = [word for store in stores for word in ("--store", str(place / store))]
    mkcfs("mount", image, where, *words, "--digest", digest, "--verity", "require")
    try:
        assert "verity=require" in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        yield where
    finally:
        mkcfs("umount", where)


def describe(root: Path, without: Sequence[str] = ()) -> dict[str, tuple[Any, ...]]:
    """Everything that an image keeps of a directory and what is below, but for these paths and what is below them."""
    found: dict[str, tuple[Any, ...]] = {}
    inodes: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        name = pending.pop()
        path = root / name
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISDIR(status.st_mode):
            # In one order, so that of several names for one file the same comes first.
            below = (f"{name}/{one}".lstrip("/") for one in sorted(os.listdir(path)))
            pending += (one for one in below if one not in without)
        else:
            content = status.st_rdev
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        same = name if stat.S_ISDIR(status.st_mode) else inodes.setdefault((status.st_dev, status.st_ino), name)
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs, same)
    return found


@check
def kernel_and_we_agree_on_digests(place: Path) -> None:
    for size in SIZES:
        path = place / str(size)
        path.write_bytes(random.Random(size).randbytes(size))
        with path.open("rb") as file:
            ours, _ = hash_fd(file.fileno(), Params())
        seal(path)
        assert kernel_digest(path) == ours == digest_bytes(path.read_bytes()), size


@check
def kernel_and_we_agree_on_salted_and_sha512_digests(place: Path) -> None:
    for number, (algorithm, salt) in enumerate(
        [(Algorithm.SHA256, b"salt"), (Algorithm.SHA512, b""), (Algorithm.SHA512, bytes(range(32)))]
    ):
        for size in SIZES:
            path = place / f"{number}-{size}"
            path.write_bytes(random.Random(size).randbytes(size))
            params = Params(algorithm=algorithm, salt=salt)
            words = ["--hash-alg", algorithm.value, *(["--salt", salt.hex()] if salt else [])]
            subprocess.run(["fsverity", "enable", str(path), *words], check=True, capture_output=True)
            assert kernel_digest(path) == digest_bytes(path.read_bytes(), params), (algorithm, salt, size)
            assert (
                mkcfs("digest", "--compact", *words, path)
                .split()[0]
                .endswith(digest_bytes(path.read_bytes(), params).hex())
            )


@check
def a_build_with_verity_required_seals_every_object(place: Path) -> None:
    image, digest = sealed_image(place, "store")
    found = objects(place / "store")
    assert len(found) >= 5
    for path in found:
        measured = kernel_digest(path)
        assert measured is not None
        assert measured.hex() == path.parent.name + path.name
        try:
            path.open("r+b").close()
        except PermissionError:
            continue
        raise AssertionError(f"{path} can be written to")
    measured = kernel_digest(image)
    assert measured is not None
    assert measured.hex() == digest
    assert "intact" in mkcfs("verify", image, "--digest", digest, "--store", place / "store")


@check
def a_mount_through_two_stores_shows_the_source(place: Path) -> None:
    image, digest = sealed_image(place, "a", "b")
    with mounted(image, digest, place, "a", "b") as shown:
        assert describe(shown) == describe(place / "src")


@check
def a_mount_of_a_debian_root_through_two_stores_shows_the_source(place: Path) -> None:
    """The very system this runs in, but for where it writes."""
    clock = [time.monotonic()]
    for name, key, value in ODD_XATTRS:
        os.setxattr(name, key, value)
    root = place / "root"
    root.mkdir()
    subprocess.run(["mount", "--bind", "/", str(root)], check=True)
    try:
        image, digest = sealed_image(place, "a", "b", source=root, without=LEFT_OUT)
        clock.append(time.monotonic())
        parts = [objects(place / store) for store in ("a", "b")]
        assert min(map(len, parts)) > 1000
        with mounted(image, digest, place, "a", "b") as shown, ThreadPoolExecutor(2) as pool:
            wanted, found = pool.map(describe, (root, shown), (LEFT_OUT, ()))
    finally:
        subprocess.run(["umount", str(root)], check=True)
    clock.append(time.monotonic())
    assert len(wanted) > 4000
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    assert not wrong, [(name, wanted.get(name), found.get(name)) for name in sorted(wrong)[:5]]
    for name, key, value in ODD_XATTRS:
        assert found[name.lstrip("/")][5][key] == value
    took = [round(end - start) for start, end in pairwise(clock)]
    print(
        f"{len(wanted)} names, {sum(map(len, parts))} objects; {took[0]} s to build, {took[1]} to compare", flush=True
    )


def refusal(path: Path) -> int | None:
    """The error number with which opening or reading a file fails, None if it does not."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def tamper(place: Path, change: Callable[[Path, Path], None], *, wanted: int = errno.EIO, intact: bool = False) -> None:
    """Change one object behind a mount's back: both of its names fail with this error, all else is as it was.

    *change* gets the object and another of its size. *intact*: the contents stay right, so that only the kernel minds.
    """
    image, digest = sealed_image(place, "store")
    facts = describe(place / "src")
    victims = sorted(name for name, fact in facts.items() if fact[4] == facts["hard"][4])
    assert victims == ["d1/f7", "hard"]
    digests = [digest_bytes((place / "src" / name).read_bytes()).hex() for name in ("hard", "twin")]
    victim, other = (place / "store" / name[:2] / name[2:] for name in digests)
    (place / "mnt").mkdir()
    words: list[str | Path] = ["--store", place / "store", "--digest", digest, "--verity", "require"]

    def seen() -> dict[str, int | None]:
        mkcfs("mount", image, place / "mnt", *words)
        try:
            sources = {name: place / "src" / name for name in facts}
            files = [name for name, path in sources.items() if path.is_file() and not path.is_symlink()]
            found = {name: refusal(place / "mnt" / name) for name in files}
            for name in files:
                if found[name] is None:
                    assert hashlib.sha256((place / "mnt" / name).read_bytes()).hexdigest() == facts[name][4], name
            return found
        finally:
            mkcfs("umount", place / "mnt")

    before = seen()
    assert len(before) > len(victims)
    assert set(before.values()) == {None}, before
    change(victim, other)
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    after = seen()
    assert after == {name: wanted if name in victims else None for name in before}, after
    said = mkcfs("verify", image, "--store", place / "store", code=0 if intact else 3)
    assert ("FAILED" in said) is not intact


@check
def an_object_swapped_for_a_sealed_one_of_its_size_is_refused(place: Path) -> None:
    def swap(victim: Path, other: Path) -> None:
        assert victim.stat().st_size == other.stat().st_size
        victim.unlink()
        shutil.copyfile(other, victim)
        seal(victim)

    tamper(place, swap)


@check
def an_object_with_one_bit_flipped_and_sealed_again_is_refused(place: Path) -> None:
    def flip(victim: Path, _other: Path) -> None:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.unlink()
        victim.write_bytes(data)
        seal(victim)

    tamper(place, flip)


@check
def a_right_object_without_verity_is_refused(place: Path) -> None:
    def unseal(victim: Path, _other: Path) -> None:
        data = victim.read_bytes()
        victim.unlink()
        victim.write_bytes(data)

    tamper(place, unseal, intact=True)


@check
def a_truncated_object_is_refused(place: Path) -> None:
    def cut(victim: Path, _other: Path) -> None:
        data = victim.read_bytes()
        victim.unlink()
        victim.write_bytes(data[:-4096])
        seal(victim)

    tamper(place, cut)


@check
def a_link_in_the_place_of_an_object_is_refused(place: Path) -> None:
    def link(victim: Path, other: Path) -> None:
        victim.unlink()
        victim.symlink_to(f"../{other.parent.name}/{other.name}")

    # For the overlay what is no regular file is not there.
    tamper(place, link, wanted=errno.ENOENT)


@check
def an_image_that_is_not_sealed_is_not_mounted(place: Path) -> None:
    image, digest = sealed_image(place, "store")
    data = image.read_bytes()
    image.unlink()
    image.write_bytes(data)
    (place / "mnt").mkdir()
    said = mkcfs(
        "mount", image, place / "mnt", "--store", place / "store", "--digest", digest, "--verity", "require", code=3
    )
    assert "the image has no fs-verity" in said


@check
def the_kernel_takes_our_signature_and_no_other(place: Path) -> None:
    """``sign --kernel`` was done by the host; the certificate goes into the kernel's keyring."""
    ring = next(
        line.split()[0] for line in Path("/proc/keys").read_text(encoding="ascii").splitlines() if ".fs-verity" in line
    )
    with (KEYS / "cert.der").open("rb") as certificate:
        subprocess.run(
            ["keyctl", "padd", "asymmetric", "", f"0x{ring}"], stdin=certificate, check=True, capture_output=True
        )
    require = Path("/proc/sys/fs/verity/require_signatures")
    require.write_text("1", encoding="ascii")
    try:
        for name, accepted in (("good.p7s", True), ("other.p7s", False), (None, False)):
            path = place / f"image-{name}"
            shutil.copyfile(KEYS / "image.cfs", path)
            words = [] if name is None else [f"--signature={KEYS / name}"]
            done = subprocess.run(
                ["fsverity", "enable", str(path), *words], capture_output=True, text=True, check=False
            )
            assert (done.returncode == 0) is accepted, (name, done.stderr)
            assert (kernel_digest(path) is not None) is accepted
    finally:
        require.write_text("0", encoding="ascii")


def main() -> None:
    """Run every check."""
    held = failed = 0
    for one in CHECKS:
        name = one.__name__.replace("_", " ")
        with tempfile.TemporaryDirectory(dir="/work") as place:
            try:
                one(Path(place))
            except BaseException:  # noqa: BLE001 - whatever it is, it is told to the host
                failed += 1
                print(f"vm: FAIL {name}\n{traceback.format_exc()}", flush=True)
            else:
                held += 1
                print(f"vm: ok {name}", flush=True)
    print(f"vm: {held} held, {failed} failed", flush=True)


if __name__ == "__main__":
    main()
