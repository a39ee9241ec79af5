"""What is fuzzed: one function for each parser, and what it must never do.

Invariant of all targets: whatever the bytes are, the parser returns a value or raises a ``CfsError`` whose text is one
line, and needs no more time than its share. Anything else is a finding.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable

from cfstools import native
from cfstools.api.build import BuildOptions, build
from cfstools.errors import CfsError
from cfstools.formats.composefs_check import check_composefs
from cfstools.formats.composefs_reader import read_image
from cfstools.formats.dump import parse_dump, print_dump
from cfstools.formats.erofs.check import Severity
from cfstools.native import _pure
from cfstools.oci.manifest import parse_config, parse_index, parse_manifest
from cfstools.oci.tar import TarReader
from cfstools.signing import parse_envelope
from cfstools.tree import Directory

Target = Callable[[bytes], None]

# Seconds for a call, and for each MiB of input on top of it; generous, for machines under load.
_LEAST, _PER_MIB = 5.0, 2.0


def guarded(target: Target, data: bytes) -> bool:
    """Call the target; whether it took the input. Raises what is a finding: AssertionError or a foreign exception."""
    begin = time.process_time()
    refusal: CfsError | None = None
    try:
        target(data)
    except CfsError as error:
        refusal = error
    assert "\n" not in str(refusal), f"an error of several lines: {refusal!r}"
    spent = time.process_time() - begin
    assert spent < _LEAST + _PER_MIB * len(data) / 2**20, f"{spent:.1f} s for {len(data)} bytes"
    return refusal is None


def image(data: bytes) -> None:
    """An image is read if the check finds no error in it, and only then."""
    findings = check_composefs(data, allow_tail=True)
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


def dump(data: bytes) -> None:
    """A dump text read by the native and by the pure loops is the same tree, or wrong in both."""
    outcomes: list[object] = []
    before = native.IMPLEMENTATION
    for name in {"pure", before}:
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
    """The members of an archive, with their contents."""
    reader = TarReader(io.BytesIO(data).read)
    for member in reader:
        total = 0
        for piece in reader.iter_content(member):
            total += len(piece)
            if total > 64 << 20:  # sparse files may be larger than any input
                break


def layer(data: bytes) -> None:
    """A layer becomes the digest of an image, whatever its members say."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        file.write(data)
        file.flush()
        build(os.fsencode(file.name), None, options=BuildOptions())


def documents(data: bytes) -> None:
    """Index, manifest and configuration of an image."""
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
    """A signature envelope."""
    parse_envelope(data)


def hashing(data: bytes) -> None:
    """The native digests are the pure ones, for blocks and salts of every size."""
    if len(data) < 3:
        return
    block_size = 1 << (10 + data[0] % 5)
    salt = data[2 : 2 + data[1] % 33]
    for algorithm, unit in (("sha256", 64), ("sha512", 128)):
        padded = salt.ljust(-(-len(salt) // unit) * unit, b"\0")
        ours = native.hash_blocks(algorithm, data[3:], block_size, padded)
        assert ours == _pure.hash_blocks(algorithm, data[3:], block_size, padded)


TARGETS: dict[str, Target] = {
    function.__name__: function for function in (image, dump, tar, layer, documents, envelope, hashing)
}
