"""What is read natively is what Python reads, and what Python refuses is left to it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.errors import CfsError, ImageError, TreeError
from cfstools.formats.composefs.check import check_every_rule
from cfstools.formats.composefs.reader import TreeReader, read_native
from cfstools.formats.dump.print import print_dump
from cfstools.formats.erofs.reader import Image
from cfstools.formats.facts import ImageInfo
from cfstools.formats.registry import open_image
from cfstools.tree import NO_XATTRS, Device, Directory, Entry, External, HardLink, RegularFile
from cfstools.tree.model import KINDS
from cfstools.tree.walk import iter_directories
from cfstools.verity import Algorithm
from tests.formats.images import SAMPLE, findings_of, write_image
from tests.fuzz.seeds import seeds
from tests.strategies import trees

_native = pytest.importorskip("cfstools.native._native")
pytestmark = pytest.mark.usefixtures("native_in_use")


def test_directories_are_handed_over_from_below() -> None:
    """Each is complete when it comes, and what was taken out of it is gone from the tree."""
    image = Image(SAMPLE)
    whole = read_native(image)
    assert whole is not None
    came: list[dict[bytes, Entry]] = []

    def leave(entries: dict[bytes, Entry]) -> None:
        came.append(dict(entries))
        entries.clear()

    left = read_native(image, leave)
    assert left is not None
    assert not left.root.entries
    assert left[1:] == whole[1:]
    directories = [len(one.entries) for one in iter_directories(whole.root)]
    assert sorted(map(len, came)) == sorted(directories)
    assert came[-1].keys() == whole.root.entries.keys()


def test_an_error_while_directories_are_handed_over_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        read_native(Image(SAMPLE), lambda entries: 1 // (len(entries) - len(entries)))


def by_python(data: bytes) -> tuple[Directory, Algorithm | None, ImageInfo]:
    """What Python alone makes of an image."""
    native.use("pure")
    try:
        reader = TreeReader(Image(data, allow_tail=True))
        return reader.read(), reader.algorithm, open_image(data, allow_tail=True).facts()
    finally:
        native.use("native")


def compare(data: bytes) -> bool:
    """Whether the image is read natively; if it is, nothing is different from what Python reads."""
    try:
        tree = read_native(Image(data, allow_tail=True))
    except ImageError:
        return False
    if tree is None:
        return False
    assert findings_of(data, allow_tail=True) == check_every_rule(data, allow_tail=True)
    root, algorithm, info = by_python(data)
    assert tree.algorithm is algorithm
    assert list(print_dump(tree.root)) == list(print_dump(root))
    assert open_image(data, allow_tail=True).facts() == info
    return True


@settings(max_examples=150, deadline=None)
@given(data=st.data(), algorithm=st.sampled_from(Algorithm), version=st.integers(0, 1))
def test_any_tree(data: st.DataObject, algorithm: Algorithm, version: int) -> None:
    root = data.draw(trees(algorithm=algorithm))
    try:
        image = write_image(root, min_version=version, max_version=version, algorithm=algorithm)
    except TreeError:
        return
    compare(bytes(image))


def test_ordinary_images_are_read_natively() -> None:
    assert compare(SAMPLE)
    assert compare(SAMPLE + b"tail")
    assert findings_of(SAMPLE) == []


def test_golden_images() -> None:
    assert [compare(bytes(image)) for image in seeds("image")].count(True) > 5


def test_changed_images() -> None:
    """A byte or a number changed anywhere: often enough the image is still one that can be read."""
    chance = random.Random(5)
    places = [at for at in range(1152, len(SAMPLE)) if any(SAMPLE[max(0, at - 4) : at + 4])]
    read = 0
    for _ in range(250):
        image = bytearray(SAMPLE)
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.choice(places)
            image[at] = chance.choice((0, 1, 255, image[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
        read += compare(bytes(image))
    assert read > 20


def test_link_counts_are_compared_with_names() -> None:
    shared = RegularFile(mode=0o100644, size=1, content=b"x", nlink=3)
    root = Directory(mode=0o40755, entries={b"a": shared, b"b": HardLink(shared)})
    image = bytes(write_image(root))
    assert compare(image)
    assert [finding.severity.value for finding in findings_of(image)] == ["warning"]
    shared.nlink = 2
    assert findings_of(bytes(write_image(root))) == []


@pytest.mark.parametrize("payload", [b"ab//cd", b"ab/", b"./ab", b"ab/../cd", b"ab/.cd"])
def test_odd_payloads_are_left_to_python(payload: bytes) -> None:
    file = RegularFile(mode=0o100644, size=100, content=External(bytes(32), payload))
    try:
        image = bytes(write_image(Directory(mode=0o40755, entries={b"a": file})))
    except CfsError:
        return
    assert not compare(image)


def test_whiteouts_and_devices() -> None:
    entries = {b"gone": Device(mode=0o020000, rdev=0), b"null": Device(mode=0o020666, rdev=0x103)}
    assert compare(bytes(write_image(Directory(mode=0o40755, entries=dict(entries)))))


def test_wrong_arguments_are_refused() -> None:
    arguments = (1, 0, 0, KINDS, NO_XATTRS, dict)
    with pytest.raises(ValueError, match="too short"):
        _native.read_tree(b"short", 36, *arguments)
    with pytest.raises(ValueError, match="oddly"):
        _native.read_tree(SAMPLE, 36, *arguments)
    with pytest.raises(BufferError):
        _native.read_tree(memoryview(SAMPLE * 2)[::2], 36, 0, *arguments[1:])
    assert _native.read_tree(SAMPLE, 1 << 60, 0, *arguments[1:]) is None


def test_what_is_no_refusal_comes_through() -> None:
    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    image = Image(SAMPLE)
    base = image.superblock.xattr_block * 4096
    with pytest.raises(KeyboardInterrupt):
        _native.read_tree(SAMPLE, image.root_nid, base, 0, 0, KINDS, NO_XATTRS, interrupted)
