"""Images that are to be mounted: opened once, checked first, from files and from other places."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from cfstools.errors import CheckFailed, ImageError, Phrase, Remedy, StoreError, Unsupported, naming
from cfstools.formats.base import OpenImage, errors_of
from cfstools.formats.escape import escape_text
from cfstools.formats.registry import open_image
from cfstools.linux import verity as kernel_verity
from cfstools.linux.files import close
from cfstools.mount import Layers, OverlayVerity
from cfstools.signing import ImageDigests, Verdict, Verifier, judge
from cfstools.signing.files import SignedFile, signed_file
from cfstools.sources.image_file import ImageBytes, image_length, opened_image, read_image
from cfstools.store.open import open_stores
from cfstools.text import counted, shown_path
from cfstools.values import Value
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes

if TYPE_CHECKING:
    from cfstools.api.lazy import LazyStores

# What a file must have for the kernel and its devices: whole blocks.
_BLOCK = 4096
_SCRATCH = (b"/tmp", b"/var/tmp")
_LENGTH = struct.Struct("=Q")


class VerityMode(Enum):
    """Whether the kernel has to check objects with fs-verity.

    ``AUTO``: objects are checked if the image is sealed with fs-verity and the file systems of all stores have it.
    ``REQUIRE``: objects are always checked, and of an image that is to be checked the kernel must enforce the digest.
    ``TRY``: objects are checked if the kernel's overlay file system knows how.
    """

    AUTO = "auto"
    REQUIRE = "require"
    TRY = "try"
    OFF = "off"


class Protection(Value):
    """What the kernel ignores or refuses in the mount: set-ID bits and capabilities, device nodes, programs.

    ``None`` leaves the choice: the first two are ignored in an image that was checked against neither digest nor key.
    """

    nosuid: bool | None = None
    nodev: bool | None = None
    noexec: bool | None = None


DEFAULT_PROTECTION = Protection()


class Mountable:
    """An open image: the file *fd* is what is mounted, whatever its name leads to by now.

    ``checked`` says whether it was compared with a digest or a signature, ``verified_by`` with which keys; ``measured``
    is the number of the algorithm and the digest that the kernel enforces, if it does.
    """

    def __init__(self, fd: int, *, checked: bool, verified_by: Sequence[str] = (), size: int | None = None) -> None:
        self.fd = fd
        self.checked = checked
        self.verified_by = tuple(verified_by)
        self.measured = kernel_verity.measure(fd)
        self._size = image_length(fd) if size is None else size

    @property
    def size(self) -> int:
        """The bytes of the image that a device needs: whole blocks."""
        return self._size - self._size % _BLOCK

    @cached_property
    def data(self) -> memoryview:
        """The image, read once. Raises InputError, SourceChanged and LimitExceeded."""
        return read_image(self.fd).data[: self._size]

    @cached_property
    def opened(self) -> OpenImage:
        """The image, whose structure is right. Raises ImageError."""
        opened = open_image(self.data, allow_tail=True)
        if wrong := errors_of(opened):
            raise ImageError(f"the image is broken: {wrong[0]}")
        return opened

    def forget(self) -> None:
        """Let go of the tree, and of contents that were not checked; for whoever asks again they are read again."""
        self.__dict__.pop("opened", None)
        if not self.checked:
            self.__dict__.pop("data", None)

    @cached_property
    def digest(self) -> bytes:
        """Its fs-verity digest, SHA-256 unless its objects have another."""
        return digest_bytes(self.data, Params(algorithm=self.opened.algorithm or Algorithm.SHA256))


@contextmanager
def mountable_image(
    image: bytes,
    *,
    digest: ObjectId | None = None,
    keys: Sequence[Verifier] = (),
    verity: VerityMode = VerityMode.AUTO,
    lazy: LazyStores | None = None,
    scratch: bytes | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> Iterator[Mountable]:
    """Open the image at the path *image*, or fetch one that is elsewhere as *lazy* says; check it, and yield it.

    With a *digest* or *keys* the image is checked against all of them first, and not interpreted before. Errors in the
    block are named after it. Raises CheckFailed, InputError, NetworkError, OciError, UsageError.
    """
    if lazy is not None and lazy.is_elsewhere(image):
        with naming(lazy.shown(image)):
            fd, verified_by = _fetched(image, lazy, keys, digest, scratch=scratch or default_scratch(), warn=warn)
            try:
                yield Mountable(fd, checked=digest is not None or bool(keys), verified_by=verified_by)
            finally:
                close(fd)
        return
    with opened_image(image, devices=True) as fd:
        if digest is None and not keys:
            yield Mountable(fd, checked=False)
            return
        found = read_image(fd)
        file = signed_file(image, found.data)
        _check_digest(file, found, digest)
        verified_by = _check_signature(file, keys)
        made = Mountable(fd, checked=True, verified_by=verified_by, size=len(file.image))
        made.data = file.image
        if verity is VerityMode.REQUIRE:
            _check_measurement(found, made.measured)
        yield made


def default_scratch() -> bytes:
    """The directory for temporaries where nothing else is said."""
    return next((place for place in _SCRATCH if os.access(place, os.W_OK | os.X_OK)), _SCRATCH[0])


def protected(layers: Layers, protection: Protection, *, checked: bool) -> Layers:
    """*layers* with the flags that *protection* and the default for images that were *checked* or not say."""
    nosuid, nodev, noexec = protection.nosuid, protection.nodev, protection.noexec
    return layers._replace(
        nosuid=not checked if nosuid is None else nosuid,
        nodev=not checked if nodev is None else nodev,
        noexec=bool(noexec),
    )


def object_check(verity: VerityMode, stores: Sequence[bytes], *, sealed: bool) -> OverlayVerity:
    """What *verity* means for an image that is *sealed* or not, with objects in *stores*.

    Raises Unsupported, and StoreError for a store that cannot be opened.
    """
    match verity:
        case VerityMode.OFF:
            return OverlayVerity.OFF
        case VerityMode.TRY:
            return OverlayVerity.TRY
        case VerityMode.REQUIRE:
            for store in stores:
                if not _offers_verity(store):
                    raise Unsupported(
                        "this kernel has no fs-verity for files there (CONFIG_FS_VERITY, Linux 5.4; on ext4 and f2fs "
                        "also the feature `verity` of the file system)",
                        subject=shown_path(store),
                    )
            return OverlayVerity.REQUIRE
        case VerityMode.AUTO:
            wanted = sealed and all(_offers_verity(store) for store in stores)
            return OverlayVerity.TRY if wanted else OverlayVerity.OFF


def check_objects(found: Mountable, stores: Sequence[bytes], *, missing_is_wrong: bool) -> None:
    """Compare every object of the image in *stores* with its digest, in several threads.

    Missing ones only count with *missing_is_wrong*: lazy stores may have them. Raises CheckFailed, which says how many
    objects are wrong and names the first, and StoreError for a store that cannot be opened.
    """
    from cfstools.store.care.check import Flaw, ObjectChecker
    from cfstools.view.needed import needed_objects

    algorithm = found.opened.algorithm or Algorithm.SHA256
    needed = needed_objects(found.opened.tree(), algorithm)
    wrong = []
    threads = len(os.sched_getaffinity(0))
    with (
        open_stores(stores) as opened,
        ObjectChecker(needed, opened, Params(algorithm=algorithm), threads=threads) as check,
    ):
        for tally in check.tallies():
            wrong += [one for one in tally.findings if missing_is_wrong or one.flaw is not Flaw.MISSING]
    if wrong:
        first = wrong[0]
        subject = first.location or escape_text(first.key[0])
        many = f"{counted(len(wrong), 'object')} of the image {'is' if len(wrong) == 1 else 'are'} wrong"
        raise CheckFailed(f"{many}, first {subject}: {first.what}: not mounted")


def _fetched(
    place: bytes,
    lazy: LazyStores,
    keys: Sequence[Verifier],
    digest: ObjectId | None,
    *,
    scratch: bytes,
    warn: Callable[[str], None],
) -> tuple[int, Sequence[str]]:
    """A file with the image at *place*, and the keys that signed it.

    Fetched in a process of its own: what speaks to object storage has threads, and a process that has had them can
    start no server that speaks to object storage as well.
    """
    from cfstools.api.offered import judge_offer, unnamed_image
    from cfstools.mount.daemon.apart import run_apart

    def fetch() -> bytes:
        with lazy.elsewhere(scratch, warn) as elsewhere, elsewhere.offer(place, lazy.platform) as offer:
            judged = judge_offer(offer, keys=keys, digest=digest)
            by = judged.report.verified_by if judged.report.state is Verdict.VERIFIED else ()
            head = json.dumps(by).encode()
            return _LENGTH.pack(len(head)) + head + offer.data

    said = memoryview(run_apart(fetch))
    start = _LENGTH.size + _LENGTH.unpack_from(said)[0]
    return unnamed_image(bytes(said[start:]), scratch), json.loads(bytes(said[_LENGTH.size : start]))


def _check_digest(file: SignedFile, found: ImageBytes, expected: ObjectId | None) -> None:
    if expected is None:
        return
    algorithm, wanted = expected
    actual = digest_bytes(file.image, Params(algorithm=algorithm))
    if wanted not in (actual, found.whole_digest(algorithm)):
        raise CheckFailed(f"the image has the fs-verity digest {actual.hex()}, not {wanted.hex()}: not mounted")


def _check_signature(file: SignedFile, keys: Sequence[Verifier]) -> tuple[str, ...]:
    """Ids of the keys whose signatures hold. No place may have a signature of a given key that does not."""
    if not keys:
        return ()
    digests = ImageDigests.of(file.image)
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
        what = Phrase("the image has no fs-verity, which {} asks for", Remedy.REQUIRE_VERITY)
        raise CheckFailed(what, hint="`fsverity enable` seals a file")
    number, digest = measured
    known = [algorithm for algorithm in Algorithm if algorithm.number == number]
    if not known or found.whole_digest(known[0]) != digest:
        raise CheckFailed("the kernel enforces another fs-verity digest than that of the bytes that were checked")


def _offers_verity(store: bytes) -> bool:
    try:
        fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"cannot open: {error.strerror}", subject=shown_path(store)) from error
    try:
        return kernel_verity.offered(fd)
    finally:
        close(fd)
