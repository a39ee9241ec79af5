"""Images with something behind them: padded files, block devices, signatures and rubbish."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.api.diff import diff
from cfstools.api.inspect import inspect, layout
from cfstools.api.listing import ls
from cfstools.api.mount import mount
from cfstools.api.sign import sign
from cfstools.api.store_gc import gc
from cfstools.api.verify import VerifyReport, verify
from cfstools.errors import CheckFailed, InputError
from cfstools.formats.erofs.superblock import declared_length
from cfstools.mount import Layers
from cfstools.signing import Verdict
from cfstools.signing.keys import KeyType
from cfstools.sources.image_file import read_image_file
from cfstools.verity import ObjectId, digest_bytes
from tests.api.trust import Place, key_of, make_place
from tests.mkcfs import mkcfs
from tests.mounts import unmount_below
from tests.requirements import need_root

KEY = KeyType.ED25519


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.fixture
def digest(place: Place) -> bytes:
    return digest_bytes(place.image_file.read_bytes())


@contextmanager
def loop_device(file: Path) -> Iterator[bytes]:
    """A read-only loop device of *file*."""
    need_root()
    done = subprocess.run(["losetup", "-r", "-f", "--show", str(file)], check=True, capture_output=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def append(place: Place, data: bytes) -> None:
    with place.image_file.open("ab") as file:
        file.write(data)


def checked(place: Place, digest: bytes, path: bytes | None = None, **options: object) -> VerifyReport:
    words = {"digest": ObjectId.of(digest), "stores": [place.store], "canonical": True, **options}
    return verify(path or place.image, **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("zeros", [1, 511, 512, 4095, 4096, 1 << 20, (1 << 20) + 4097, 9 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_zeros_behind_an_image_are_no_part_of_it(place: Place, digest: bytes, zeros: int, threads: int) -> None:
    before = place.image_file.read_bytes()
    append(place, bytes(zeros))
    report = checked(place, digest, threads=threads)
    assert (report.ok, report.size, report.digest) == (True, len(before), digest.hex())
    assert report.sha256 == hashlib.sha256(before).hexdigest()
    assert verify(place.image, threads=threads).ok  # without a digest as well
    assert inspect(place.image).digest == digest.hex()
    assert sum(region.end - region.start for region in layout(place.image)) == len(before)
    # The file as it lies there has a digest, too, which fs-verity of the kernel would give.
    assert checked(place, digest_bytes(place.image_file.read_bytes())).ok
    assert not checked(place, bytes(32)).ok


@pytest.mark.parametrize("zeros", [0, 512, 4096, 3 << 20])
def test_a_signature_behind_the_image_and_zeros_behind_that(place: Place, digest: bytes, zeros: int) -> None:
    sign(place.image, [key_of(KEY)], attach=True)
    append(place, bytes(zeros))
    report = checked(place, digest, keys=[key_of(KEY).verifier])
    assert (report.ok, report.signature.state) == (True, Verdict.VERIFIED)
    assert len(inspect(place.image).signatures) == 1


def test_signing_drops_the_padding_of_a_signature_that_is_attached(place: Place, digest: bytes) -> None:
    append(place, bytes(8192))
    assert sign(place.image, [key_of(KEY)]).digest == digest.hex()
    assert checked(place, digest, keys=[key_of(KEY).verifier]).ok
    sign(place.image, [key_of(KEY)], attach=True)
    assert checked(place, digest, keys=[key_of(KEY).verifier]).signature.state is Verdict.VERIFIED


RUBBISH: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda _: b"x",
    "a block": lambda _: b"x" * 4096,
    "a byte behind zeros": lambda _: bytes(9000) + b"x",
    "a byte far behind zeros": lambda _: bytes(3 << 20) + b"x" + bytes(4095),
    "the image once more": lambda data: data,
    "the end of a trailer": lambda _: bytes(4096 - 8) + b"\ncfs:end",
}


@pytest.mark.parametrize("rubbish", list(RUBBISH))
@pytest.mark.parametrize("given", [True, False])
def test_anything_else_behind_an_image_in_a_file_is_wrong(
    place: Place, digest: bytes, rubbish: str, *, given: bool
) -> None:
    append(place, RUBBISH[rubbish](place.image_file.read_bytes()))
    report = checked(place, digest) if given else verify(place.image)
    assert not report.ok
    assert not report.problems[0].what.startswith("hint")


@pytest.mark.parametrize("cut", [1, 24, 100, 300])
def test_a_damaged_trailer_in_front_of_zeros_is_wrong(place: Place, digest: bytes, cut: int) -> None:
    sign(place.image, [key_of(KEY)], attach=True)
    os.truncate(place.image, place.image_file.stat().st_size - cut)
    append(place, bytes(8192))
    report = checked(place, digest, keys=[key_of(KEY).verifier])
    assert not report.ok


@pytest.mark.parametrize("blocks", [0, 1, 2, 0xFFFFFFFF])
def test_a_length_that_is_not_true_makes_no_other_image_right(place: Place, digest: bytes, blocks: int) -> None:
    """Whatever the superblock says: what is taken must have the digest."""
    data = bytearray(place.image_file.read_bytes())
    data[1024 + 36 : 1024 + 40] = blocks.to_bytes(4, "little")
    place.image_file.write_bytes(data + bytes(8192))
    report = checked(place, digest)
    assert not report.ok
    assert report.format is None


def test_the_length_is_read_of_nothing_but_an_image() -> None:
    assert declared_length(b"") is None
    assert declared_length(bytes(4096)) is None
    assert declared_length(b"\xff" * 4096) is None


def test_a_hole_of_terabytes_behind_an_image_is_quick(place: Place, digest: bytes) -> None:
    os.truncate(place.image, 1 << 40)
    assert checked(place, digest).ok
    assert inspect(place.image).digest == digest.hex()


@pytest.mark.root
@pytest.mark.parametrize("behind", ["zeros", "rubbish", "far rubbish", "nothing"])
def test_an_image_on_a_device(place: Place, digest: bytes, behind: str) -> None:
    names = list(ls([place.image]))
    tail = {
        "zeros": bytes(1 << 20),
        "rubbish": b"x" * 70000,
        "far rubbish": bytes(3 << 20) + b"x" * 512,
        "nothing": b"",
    }
    append(place, tail[behind])
    os.truncate(place.image, -(-place.image_file.stat().st_size // 4096) * 4096)
    with loop_device(place.image_file) as device:
        report = checked(place, digest, device)
        assert report.ok
        assert bool(report.warnings) == (behind == "rubbish")
        assert inspect(device).digest == digest.hex()
        assert list(ls([device])) == names
        said = mkcfs("verify", device, "--digest", digest.hex(), "--store", place.store)
        assert b"digest ok" in said.stdout
        assert not diff(device, device).changes
        with pytest.raises(InputError, match="is not a regular file"):
            sign(device, [key_of(KEY)], attach=True)


@pytest.mark.root
def test_a_signed_image_on_a_device(place: Place, digest: bytes) -> None:
    sign(place.image, [key_of(KEY)], attach=True)
    append(place, bytes(1 << 20))
    with loop_device(place.image_file) as device:
        report = checked(place, digest, device, keys=[key_of(KEY).verifier])
        assert (report.ok, report.signature.state) == (True, Verdict.VERIFIED)


@pytest.mark.root
def test_an_image_larger_than_its_device_is_cut(place: Place, digest: bytes) -> None:
    os.truncate(place.image, 4096)
    with loop_device(place.image_file) as device:
        assert not checked(place, digest, device).ok


@pytest.mark.root
def test_a_device_without_an_image(place: Place, digest: bytes) -> None:
    place.image_file.write_bytes(b"\xa5" * 8192)
    with loop_device(place.image_file) as device:
        assert not checked(place, digest, device).ok
        with pytest.raises(CheckFailed, match="not mounted"):
            mount(device, os.fsencode(place.root), layers=Layers(stores=(place.store,)), digest=ObjectId.of(digest))


@pytest.mark.root
def test_a_collection_keeps_what_an_image_on_a_device_needs(place: Place) -> None:
    (place.root / "images").mkdir()
    append(place, bytes(1 << 20))
    with loop_device(place.image_file) as device:
        (place.root / "images/current").symlink_to(os.fsdecode(device))
        for words in ({"keep": [device]}, {"keep_dirs": [os.fsencode(place.root / "images")]}):
            assert gc(place.store, now=0.0, grace=0.0, **words).removed == ()  # type: ignore[arg-type]


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["padded", "device", "signed"])
@pytest.mark.parametrize("given", [True, False])
def test_mounted(place: Place, digest: bytes, kind: str, *, given: bool) -> None:
    (place.root / "mnt").mkdir()
    if kind == "signed":
        sign(place.image, [key_of(KEY)], attach=True)
    append(place, bytes(1 << 20))
    options = {"digest": ObjectId.of(digest)} if given else {}
    try:
        if kind == "device":
            with loop_device(place.image_file) as device:
                show(place, device, options)
        else:
            show(place, place.image, options)
    finally:
        unmount_below(place.root)


def show(place: Place, image: bytes, options: dict[str, ObjectId]) -> None:
    target = os.fsencode(place.root / "mnt")
    layers = Layers(stores=(place.store,))
    report = mount(image, target, layers=layers, **options)  # type: ignore[arg-type]
    assert report.digest_checked == bool(options)
    assert (place.root / "mnt/etc/small").read_bytes() == (place.source / "etc/small").read_bytes()
    subprocess.run(["umount", target], check=True)
    if options:
        with pytest.raises(CheckFailed, match="not mounted"):
            mount(image, target, layers=layers, digest=ObjectId.of(bytes(32)))


def test_only_verbs_that_read_take_devices(place: Place) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        read_image_file(b"/dev/null", devices=True)
    assert bytes(read_image_file(place.image)) == place.image_file.read_bytes()
