"""What fs-verity promises, as the kernel enforces it for root."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.files import hash_fd
from tests.vm import tampering
from tests.vm.checks import (
    KEYS,
    LEFT_OUT,
    ODD_XATTRS,
    SIZES,
    VERITY,
    check,
    describe,
    kernel_digest,
    mkcfs,
    mounted,
    objects,
    seal,
    sealed_image,
)
from tests.vm.look import look


@check(VERITY)
def kernel_and_we_agree_on_digests(place: Path) -> None:
    for size in SIZES:
        path = place / str(size)
        path.write_bytes(random.Random(size).randbytes(size))
        with path.open("rb") as file:
            ours, _ = hash_fd(file.fileno(), Params())
        seal(path)
        assert kernel_digest(path) == ours == digest_bytes(path.read_bytes()), size


@check(VERITY)
def kernel_and_we_agree_on_salted_and_sha512_digests(place: Path) -> None:
    for number, (algorithm, salt) in enumerate(
        [(Algorithm.SHA256, b"salt"), (Algorithm.SHA512, b""), (Algorithm.SHA512, bytes(range(32)))]
    ):
        paths = {size: place / f"{number}-{size}" for size in SIZES}
        params = Params(algorithm=algorithm, salt=salt)
        words = ["--hash-alg", algorithm.value, *(["--salt", salt.hex()] if salt else [])]
        for size, path in paths.items():
            path.write_bytes(random.Random(size).randbytes(size))
            subprocess.run(["fsverity", "enable", str(path), *words], check=True, capture_output=True)
            assert kernel_digest(path) == digest_bytes(path.read_bytes(), params), (algorithm, salt, size)
        found = mkcfs("digest", "--compact", *words, *paths.values()).splitlines()
        for path, line in zip(paths.values(), found, strict=True):
            assert line.split()[0].endswith(digest_bytes(path.read_bytes(), params).hex())


@check(VERITY)
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


@check(VERITY)
def a_mount_through_two_stores_shows_the_source(place: Path) -> None:
    image, digest = sealed_image(place, "a", "b")
    with mounted(image, digest, place, "a", "b") as shown:
        assert describe(shown) == describe(place / "src")


@check(VERITY)
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


@check(VERITY)
def what_is_tampered_with_is_refused_when_verity_is_required(place: Path) -> None:
    """Before the first read, and after it below a mount that stays; all else is as it was."""
    one = tampering.made(place, mkcfs, "--verity", "require")
    where = one.home / "mnt"
    words: list[str | Path] = ["mount", one.image, where, "--store", one.store, "--verity", "require"]
    mkcfs(*words)
    try:
        assert look(where) == one.wanted
        tampering.tamper(one)
        again = look(where)
    finally:
        mkcfs("umount", where)
    tampering.right_or_refused(one, again)
    mkcfs(*words)
    try:
        fresh = look(where)
    finally:
        mkcfs("umount", where)
    assert fresh == {**one.wanted, **tampering.WRONG}, fresh
    said = mkcfs("verify", one.image, "--store", one.store, code=3)
    for name in ("cut", "linked", "flipped"):
        assert f"/{name}: object" in said, said
    # Its contents are right: only the kernel minds.
    assert "/unsealed" not in said


@check(VERITY)
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


@check(VERITY)
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
