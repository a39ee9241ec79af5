"""Where an image differs from what its tree would be written as."""

from __future__ import annotations

from cfstools.formats.base import PlanOptions
from cfstools.formats.canonical import canonical_difference
from cfstools.formats.registry import COMPOSEFS
from cfstools.tree import Directory, RegularFile
from tests.formats.images import write_image


def tree() -> Directory:
    root = Directory(mode=0o40755)
    for number in range(200):
        root.entries[b"file-%03d" % number] = RegularFile(mode=0o100644, size=60, content=b"%60d" % number)
    return root


IMAGE = write_image(tree())


def difference(image: bytes, root: Directory | None = None) -> str | None:
    return canonical_difference(COMPOSEFS, memoryview(image), root or tree(), PlanOptions(max_version=0))


def test_no_difference() -> None:
    assert difference(IMAGE) is None


def test_every_changed_byte_is_placed() -> None:
    for offset in range(0, len(IMAGE), 997):
        image = bytearray(IMAGE)
        image[offset] ^= 1
        said = difference(bytes(image))
        assert said is not None
        assert said.startswith(f"a canonical writer would have made other bytes, first at {offset:#x}")


def test_another_length() -> None:
    assert difference(IMAGE + bytes(4096)) == (
        f"a canonical writer would have stopped after {len(IMAGE)} bytes, there are {len(IMAGE) + 4096}"
    )
    assert difference(IMAGE[:4096]) == "a canonical writer would have made other bytes, first at 0x1000"
    assert f"first at {len(IMAGE) - 1:#x}" in str(difference(IMAGE[:-1]))


def test_a_tree_that_cannot_be_written() -> None:
    root = tree()
    root.entries[b"file-100"] = RegularFile(mode=0o100644, size=5, content=b"other")
    root.entries[b"a/b"] = RegularFile(mode=0o100644, size=5, content=b"other")
    said = difference(IMAGE, root)
    assert said is not None
    assert said.startswith("its tree cannot be written: ")
