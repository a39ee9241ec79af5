"""Random trees: our image, dump, list and objects texts against those of the reference, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cfstools.errors import FormatError, ImageError
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import ls_text, print_dump
from cfstools.tree.model import Directory, External, RegularFile
from cfstools.tree.objects import payload_sizes
from cfstools.tree.walk import iter_inodes
from tests.compat.boundaries import boundary_dump
from tests.compat.disk import make_tree
from tests.compat.stores import store_of
from tests.formats.images import read_image, write_image
from tests.mkcfs import mkcfs
from tests.reference import Reference
from tests.strategies import trees

# All tools on one tree, so that the root is entered once for it.
ALL_TOOLS = """
set -e
mkcomposefs --from-file --min-version="$2" --max-version="$3" "$1.text" "$1.cfs"
for what in dump ls objects; do composefs-info $what "$1.cfs" >"$1.$what"; done
fsck.erofs "$1.ours" >/dev/null
"""
# The same for files numbered from $2 to $3, with the default versions; a refusal leaves no image.
NUMBERED = """
for number in $(seq "$2" "$3"); do
    at="$1/$number"
    mkcomposefs --from-file "$at.text" "$at.cfs" 2>"$at.said" || { rm -f "$at.cfs"; continue; }
    composefs-info dump "$at.cfs" >"$at.dump"
    fsck.erofs "$at.cfs" >/dev/null
done
"""
EMPTY_NAMES = [b"user.", b"trusted.", b"security.", b"lustre.", b"system.posix_acl_access", b"system.posix_acl_default"]
BOUNDARY_CHUNK = 25
VERSIONS = [(0, 0), (0, 1), (1, 1)]
EXAMPLES = 120
DISK_TREES = 60


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("versions", VERSIONS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_random_trees(reference: Reference, tmp_path: Path, versions: tuple[int, int]) -> None:
    place = tmp_path / "tree"

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(tree=trees())
    def compare(tree: Directory) -> None:
        text = b"".join(print_dump(tree))
        ours = bytes(write_image(parse_dump(text), min_version=versions[0], max_version=versions[1]))
        place.with_suffix(".text").write_bytes(text)
        place.with_suffix(".ours").write_bytes(ours)
        reference.run("sh", "-c", ALL_TOOLS, "sh", place, *map(str, versions))
        assert ours == place.with_suffix(".cfs").read_bytes()
        if has_unsafe_payload(tree):
            with pytest.raises(ImageError, match="redirect"):
                read_image(ours)
            return
        again = read_image(ours)
        if shows_a_reader_quirk(tree):
            return
        assert b"".join(print_dump(again)) == place.with_suffix(".dump").read_bytes()
        assert b"".join(ls_text(again)) == place.with_suffix(".ls").read_bytes()
        objects = b"".join(payload + b"\n" for payload in sorted(payload_sizes(again, {})))
        assert objects == place.with_suffix(".objects").read_bytes()

    compare()


def has_unsafe_payload(tree: Directory) -> bool:
    """Whether our reader, strict by design, refuses the image: a payload could leave the store (section 10.2)."""
    return any(
        part == b".."
        for inode in iter_inodes(tree)
        if isinstance(inode, RegularFile) and isinstance(inode.content, External) and inode.content.payload
        for part in inode.content.payload.split(b"/")
    )


def shows_a_reader_quirk(tree: Directory) -> bool:
    """Whether composefs-info prints an image of this tree wrongly, by quirk Q1 or Q11 (section 10.3)."""
    for inode in iter_inodes(tree):
        # Q11: an attribute with an empty name after its prefix and an empty value is lost.
        if any(inode.xattrs.get(key) == b"" for key in EMPTY_NAMES):
            return True
        # Q1: stray bytes after a payload of a length of 3 modulo 4.
        if isinstance(inode, RegularFile) and isinstance(inode.content, External):
            payload = inode.content.payload
            if payload and (len(payload.lstrip(b"/")) + 1) % 4 == 0:
                return True
    return False


def image_of(text: bytes) -> tuple[bytes | None, FormatError | None]:
    """Return our image of a dump text, or why we refuse it."""
    try:
        return bytes(write_image(parse_dump(text), max_version=1)), None
    except FormatError as error:
        return None, error


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, BOUNDARY_CHUNK))
def test_trees_at_block_boundaries(reference: Reference, tmp_path: Path, first: int) -> None:
    numbers = range(first, first + BOUNDARY_CHUNK)
    for number in numbers:
        (tmp_path / f"{number}.text").write_bytes(boundary_dump(number))
    reference.run("sh", "-ec", NUMBERED, "sh", tmp_path, str(numbers[0]), str(numbers[-1]))
    accepted = 0
    for number in numbers:
        base = tmp_path / str(number)
        ours, refusal = image_of(base.with_suffix(".text").read_bytes())
        assert (ours is None) is not base.with_suffix(".cfs").exists(), (
            f"{number}: {refusal or 'only the reference refuses'}"
        )
        if ours is None:
            continue
        assert ours == base.with_suffix(".cfs").read_bytes(), number
        assert b"".join(print_dump(read_image(ours))) == base.with_suffix(".dump").read_bytes(), number
        accepted += 1
    assert accepted > BOUNDARY_CHUNK // 2


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(DISK_TREES))
def test_random_directories_on_disk(reference: Reference, tmp_path: Path, seed: int) -> None:
    source = make_tree(tmp_path / "source", seed)
    reference.mkcomposefs(source, tmp_path / "theirs.cfs", store=tmp_path / "theirs")
    mkcfs("build", source, tmp_path / "ours.cfs", "--store", tmp_path / "ours", "--no-hardlinks")
    assert (tmp_path / "ours.cfs").read_bytes() == (tmp_path / "theirs.cfs").read_bytes()
    assert store_of(tmp_path / "ours") == store_of(tmp_path / "theirs")
