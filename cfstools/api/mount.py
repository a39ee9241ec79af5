"""Verbs ``mount`` and ``umount``: an image, checked if wanted, as a file system of the kernel."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial

from cfstools.api.envelopes import SignedFile, signed_file
from cfstools.api.input import ImageBytes, image_length, opened_image, read_image
from cfstools.errors import (
    CheckFailed,
    InputError,
    StoreError,
    Unsupported,
    naming,
    os_error,
    shown_path,
)
from cfstools.linux import mount as linux
from cfstools.linux import verity as kernel_verity
from cfstools.linux.files import close
from cfstools.linux.places import Doubt, Place, find
from cfstools.mount import Layers, ObjectCheck, mount_image
from cfstools.mount.overlay import SOURCE
from cfstools.output.files import opened_directory, refused
from cfstools.report import Report
from cfstools.signing import ImageDigests, Verdict, Verifier, judge
from cfstools.store.place import local_path
from cfstools.values import Value
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes

# What a file must have for the kernel and its devices: whole blocks.
_BLOCK = 4096


class VerityMode(Enum):
    """How far fs-verity of the kernel is relied on.

    ``AUTO``: objects are checked if the image is sealed with fs-verity and the file systems of all stores have it.
    ``REQUIRE``: objects are always checked, and of an image that is to be checked the kernel must enforce the digest.
    ``TRY``: objects are checked if the kernel's overlay file system knows how.
    """

    AUTO = "auto"
    REQUIRE = "require"
    TRY = "try"
    OFF = "off"


class MountReport(Report):
    """What was mounted. ``digest_checked`` and ``verified_by`` (key ids) say what the image was held against.

    ``measured``: the kernel enforces the contents of the image. ``objects_checked``: it compares objects with their
    digests. ``loop``: a loop device was needed. ``nosuid``, ``nodev``, ``noexec``: the flags of the mount.
    """

    image: str
    directory: str
    stores: tuple[str, ...]
    writable: bool
    digest_checked: bool
    verified_by: tuple[str, ...]
    measured: bool
    objects_checked: bool
    loop: bool
    nosuid: bool
    nodev: bool
    noexec: bool


class Protection(Value):
    """What the kernel ignores or refuses in the mount: set-ID bits and capabilities, device nodes, programs.

    ``None`` leaves the choice: the first two do not count in an image that was held against neither digest nor key.
    """

    nosuid: bool | None = None
    nodev: bool | None = None
    noexec: bool | None = None


DEFAULT_PROTECTION = Protection()


def mount(
    image: bytes,
    directory: bytes,
    *,
    layers: Layers,
    digest: bytes | None = None,
    keys: Sequence[Verifier] = (),
    verity: VerityMode = VerityMode.AUTO,
    protection: Protection = DEFAULT_PROTECTION,
) -> MountReport:
    """Mount the image at *image* with *layers* on *directory*.

    ``layers.objects`` is set by *verity*, and the flags in *layers* by *protection*.

    With a *digest* or *keys* the image is held against all of them first, and nothing in it is interpreted before; the
    file that was checked is the one that is mounted, whatever its name leads to by then. Only fs-verity keeps others
    from writing to it afterwards. Signatures are those of ``verify``. Raises CheckFailed, InputError, StoreError,
    Unsupported and UsageError.
    """
    with opened_image(image, devices=True) as fd:
        measured = kernel_verity.measure(fd)
        size = image_length(fd)
        verified_by: tuple[str, ...] = ()
        if digest is not None or keys:
            found = read_image(fd)
            file = signed_file(image, found.data)
            size = len(file.image)
            _check_digest(file, found, digest)
            verified_by = _check_signature(file, keys)
            if verity is VerityMode.REQUIRE:
                _check_measurement(found, measured)
        stores = tuple(map(local_path, layers.stores))
        objects = _object_check(verity, stores, sealed=measured is not None)
        layers = _protected(
            layers._replace(objects=objects, stores=stores), protection, checked=digest is not None or bool(keys)
        )
        with opened_directory(directory, directory, "cannot open") as target:
            done = mount_image(fd, layers, target, size=size - size % _BLOCK)
    return MountReport(
        image=shown_path(image),
        directory=shown_path(directory),
        stores=tuple(shown_path(store) for store in layers.stores),
        writable=layers.writable and layers.upper is not None,
        digest_checked=digest is not None,
        verified_by=verified_by,
        measured=measured is not None,
        objects_checked=done.objects_checked,
        loop=done.loop,
        nosuid=layers.nosuid,
        nodev=layers.nodev,
        noexec=layers.noexec,
    )


def umount(directory: bytes) -> None:
    """Take the image that is mounted on *directory* off. Raises InputError, also for any other mount."""
    with naming(directory):
        try:
            with _found(directory) as place:
                found = linux.mounted_at(place.name, dir_fd=place.directory)
                if found is None:
                    raise InputError("nothing is mounted there")
                if found != linux.Mounted(b"overlay", SOURCE):
                    hint = "umount(8) takes off any mount"
                    raise InputError("what is mounted there is no composefs image", hint=hint)
                # A name that something is mounted on can be neither renamed nor replaced.
                linux.umount(os.path.join(linux.fd_path(place.directory), place.name))
        except Doubt as doubt:
            raise refused(doubt, directory) from doubt
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise InputError("cannot unmount: files there are in use") from error
            if error.errno == errno.EPERM:
                raise Unsupported("cannot unmount: only root can") from error
            raise os_error(error, "cannot unmount") from error


def _protected(layers: Layers, protection: Protection, *, checked: bool) -> Layers:
    nosuid, nodev, noexec = protection.nosuid, protection.nodev, protection.noexec
    return layers._replace(
        nosuid=not checked if nosuid is None else nosuid,
        nodev=not checked if nodev is None else nodev,
        noexec=bool(noexec),
    )


@contextmanager
def _found(directory: bytes) -> Iterator[Place]:
    place = find(directory)
    if place.name in (b".", b".."):  # the name is in the directory above
        close(place.directory)
        place = find(os.path.realpath(directory))
    try:
        yield place
    finally:
        close(place.directory)


def _check_digest(file: SignedFile, found: ImageBytes, expected: bytes | None) -> None:
    if expected is None:
        return
    algorithm = ObjectId.of(expected).algorithm
    actual = _digest(file.image, algorithm)
    if expected not in (actual, found.whole_digest(algorithm)):
        raise CheckFailed(f"the image has the fs-verity digest {actual.hex()}, not {expected.hex()}: not mounted")


def _check_signature(file: SignedFile, keys: Sequence[Verifier]) -> tuple[str, ...]:
    """Ids of the keys whose signatures hold. No place may have a signature of a given key that does not."""
    if not keys:
        return ()
    digests = _digests(file)
    reports = [found.report for found in file.judge(digests, keys, threshold=1)]
    reports = reports or [judge(None, digests, keys)]
    verified = [report for report in reports if report.state is Verdict.VERIFIED]
    for report in reports:
        if report.state is Verdict.MISMATCH or not verified:
            report.require()
    return verified[0].verified_by


def _check_measurement(found: ImageBytes, measured: tuple[int, bytes] | None) -> None:
    """The kernel must enforce exactly the bytes that were checked, with what is behind them."""
    if measured is None:
        raise CheckFailed(
            "the image has no fs-verity, which --verity require asks for", hint="`fsverity enable` seals a file"
        )
    number, digest = measured
    known = [algorithm for algorithm in Algorithm if algorithm.number == number]
    if not known or found.whole_digest(known[0]) != digest:
        raise CheckFailed("the kernel enforces another fs-verity digest than that of the bytes that were checked")


def _object_check(verity: VerityMode, stores: Sequence[bytes], *, sealed: bool) -> ObjectCheck:
    match verity:
        case VerityMode.OFF:
            return ObjectCheck.OFF
        case VerityMode.TRY:
            return ObjectCheck.TRY
        case VerityMode.REQUIRE:
            for store in stores:
                if not _offers_verity(store):
                    raise Unsupported(
                        "this kernel has no fs-verity for files there (CONFIG_FS_VERITY, Linux 5.4; on ext4 and f2fs "
                        "also the feature `verity` of the file system)",
                        subject=shown_path(store),
                    )
            return ObjectCheck.REQUIRE
        case VerityMode.AUTO:
            wanted = sealed and all(_offers_verity(store) for store in stores)
            return ObjectCheck.TRY if wanted else ObjectCheck.OFF


def _offers_verity(store: bytes) -> bool:
    with _directory(store, StoreError) as fd:
        return kernel_verity.offered(fd)


@contextmanager
def _directory(path: bytes, failure: type[InputError | StoreError]) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(f"cannot open: {error.strerror}", subject=shown_path(path)) from error
    try:
        yield fd
    finally:
        close(fd)


def _digest(data: memoryview, algorithm: Algorithm) -> bytes:
    return digest_bytes(data, Params(algorithm=algorithm))


def _digests(file: SignedFile) -> ImageDigests:
    sha256 = hashlib.sha256(file.image).digest()
    return ImageDigests(size=len(file.image), sha256=sha256, measure=partial(_digest, file.image))
