"""What is fuzzed: one function for each parser, and what it must never do.

Invariant of all targets: whatever the bytes are, the parser returns a value or raises a ``CfsError`` whose text is one
line, in bounded time and memory. The first line of each says what else must hold. Anything else is a finding.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from functools import cache
from typing import IO

from cfstools import native
from cfstools.api.build import BuildOptions, build
from cfstools.errors import CfsError, PassphraseNeeded
from cfstools.formats.base import PlanOptions, Severity
from cfstools.formats.canonical import canonical_difference
from cfstools.formats.composefs.as_written import restore_primary_names
from cfstools.formats.composefs.reader import TreeReader
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import print_dump
from cfstools.formats.erofs.reader import Image
from cfstools.formats.registry import COMPOSEFS
from cfstools.formats.tar import TarReader
from cfstools.oci.manifest import parse_config, parse_index, parse_manifest
from cfstools.signing import ImageDigests, judge, parse_envelope
from cfstools.signing.keys import PrivateKey, PublicKey, load_private_key, load_public_key
from cfstools.sources.oci_request import OciOptions, OciRequest
from cfstools.store.care.kept import kept_text, parse_kept
from cfstools.streams.limits import DecompressionLimits, TarLimits
from cfstools.tree import Directory
from cfstools.verity import Algorithm
from tests.bounds import bounded
from tests.formats.images import findings_of, read_image, write_image
from tests.fuzz.fuse_targets import FUSE_TARGETS
from tests.fuzz.mount_targets import MOUNT_TARGETS
from tests.fuzz.native_targets import encoding, files, hashing, reading
from tests.fuzz.registry_targets import REGISTRY_TARGETS
from tests.fuzz.transport_targets import TRANSPORT_TARGETS
from tests.fuzz.trust import Trusting

Target = Callable[[bytes], None]

# Time must grow with the input here; the limits that users get let some hundred bytes stand for 64 GiB of zeros.
_LOW_LIMITS = BuildOptions(
    oci=OciRequest(
        options=OciOptions(
            tar_limits=TarLimits(holes=64 << 20), decompression_limits=DecompressionLimits(total=64 << 20)
        )
    )
)


_MARKS = (b"trusted.overlay.opaque=", b"user.overlay.opaque=")


def guarded(target: Target, data: bytes, *, watchdog: bool = True) -> bool:
    """Call the target; whether it took the input. Raises what is a finding: AssertionError or a foreign exception."""
    refusal: CfsError | None = None
    with bounded(len(data), watchdog=watchdog):
        try:
            target(data)
        except CfsError as error:
            refusal = error
    assert "\n" not in str(refusal), f"an error of several lines: {refusal!r}"
    return refusal is None


def image(data: bytes) -> None:
    """An image is read, and every name in it printed, if and only if the check finds no error in it."""
    findings = findings_of(data, allow_tail=True)
    wrong = [one for one in findings if one.severity is Severity.ERROR]
    assert all("\n" not in str(one) for one in findings)
    try:
        tree: Directory | None = read_image(data, allow_tail=True)
    except CfsError:
        assert wrong, "the reader refuses what the check lets through"
        raise
    if not wrong and tree is not None:
        for _ in print_dump(tree):
            pass


def canonical(data: bytes) -> None:
    """What was read of an image is compared with what would be written of it; of a sound one that reads the same."""
    disk = Image(data)
    reader = TreeReader(disk)
    root = reader.read()
    lines = _lines(root)
    restore_primary_names(disk, root)
    algorithm = reader.algorithm or Algorithm.SHA256
    version = disk.header.composefs_version
    difference = canonical_difference(
        COMPOSEFS, memoryview(data), root, PlanOptions(algorithm=algorithm, min_version=version, max_version=version)
    )
    assert difference is None or "\n" not in difference
    if difference and not any(one.severity is Severity.ERROR for one in findings_of(data)):
        again = write_image(root, min_version=version, max_version=version, algorithm=algorithm)
        assert _lines(read_image(again)) == lines


def _lines(root: Directory) -> list[list[bytes]]:
    """The fields of a dump, attributes in an order of their own: an image may have them in any.

    Without the marks that a writer of version 1 puts on a directory with whiteouts, whatever value they had before.
    """
    rows = [line.rstrip(b"\n").split(b" ") for line in print_dump(root)]
    return [row[:11] + sorted(one for one in row[11:] if not one.startswith(_MARKS)) for row in rows]


def dump(data: bytes) -> None:
    """A dump text read by the native and by the pure loops is the same tree, or wrong in both for the same reason."""
    outcomes: list[object] = []
    before = native.IMPLEMENTATION
    for name in sorted({"pure", before}):
        native.use(name)
        try:
            outcomes.append(list(print_dump(parse_dump(data))))
        except CfsError as error:
            outcomes.append(str(error))
        finally:
            native.use(before)
    assert all(one == outcomes[0] for one in outcomes), outcomes
    if isinstance(outcomes[0], str):
        parse_dump(data)


def tar(data: bytes) -> None:
    """The members of an archive are read with all their contents, none of which is more than it says it is."""
    reader = TarReader(io.BytesIO(data).read)
    for member in reader:
        total = 0
        for piece in reader.iter_content(member):
            total += len(piece)
            assert total <= member.size
            if total > 4 << 20:  # sparse files may be larger than any input
                break


def layer(data: bytes) -> None:
    """A layer becomes the digest of an image, whatever its members say and whatever it is packed in."""
    file = _scratch()
    file.seek(0)
    file.truncate()
    file.write(data)
    file.flush()
    build(os.fsencode(file.name), None, options=_LOW_LIMITS)


@cache
def _scratch() -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def documents(data: bytes) -> None:
    """A text is an index, a manifest or a configuration of an image, or is refused as each of them."""
    taken = 0
    last: CfsError | None = None
    for parse in (parse_index, parse_manifest, lambda text: parse_config(text, 1)):
        try:
            parse(data)
            taken += 1
        except CfsError as error:
            last = error
    if not taken and last is not None:
        raise last


def envelope(data: bytes) -> None:
    """An envelope is judged in a report, its statement too where every signature holds, and nothing is ever raised."""
    report = judge(data, ImageDigests(size=4096, sha256=bytes(32)), [Trusting()])
    assert all("\n" not in problem for problem in report.problems)
    parse_envelope(data)


def keys(data: bytes) -> None:
    """A key file is a public key, a private one or refused, and what it costs to decrypt is known before it is done."""
    taken: list[object] = []
    last: CfsError | None = None
    for load in (load_public_key, load_private_key):
        try:
            taken.append(load(data))
        except PassphraseNeeded as error:
            taken.append(error)
        except CfsError as error:
            last = error
    for key in taken:
        if isinstance(key, PublicKey):
            assert load_public_key(key.pem()) == key
        elif isinstance(key, PrivateKey):
            assert load_private_key(key.pem()).key_id == key.key_id
    if not taken and last is not None:
        raise last


def record(data: bytes) -> None:
    """A record of the last collection is read, and written as it was read, or refused in one line."""
    images = parse_kept(data, "record")
    assert parse_kept(kept_text(images), "record") == sorted(images)
    assert all(image.path.startswith(b"/") and b"\0" not in image.path for image in images)


TARGETS: dict[str, Target] = (
    {
        function.__name__: function
        for function in (
            image,
            canonical,
            reading,
            dump,
            tar,
            layer,
            documents,
            envelope,
            keys,
            hashing,
            files,
            encoding,
            record,
        )
    }
    | REGISTRY_TARGETS
    | TRANSPORT_TARGETS
    | MOUNT_TARGETS
    | FUSE_TARGETS
)
