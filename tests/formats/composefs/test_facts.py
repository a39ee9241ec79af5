from __future__ import annotations

import json

import pytest

from cfstools.errors import ImageError
from cfstools.formats.facts import LARGEST
from cfstools.formats.registry import open_image
from cfstools.verity import Algorithm
from tests.formats.images import SAMPLE, SAMPLE_SHA512, directory, external, find, patch, regular, write_image


def test_facts_of_the_sample() -> None:
    info = open_image(SAMPLE).facts()
    assert (info.composefs_version, info.algorithm, info.has_acl) == (1, Algorithm.SHA256, False)
    assert (info.size, info.appended) == (len(SAMPLE), 0)
    assert info.inodes == {
        "block device": 1,
        "character device": 1,
        "directory": 5,
        "fifo": 1,
        "regular": 206,
        "socket": 1,
        "symlink": 2,
        "whiteout": 1,
    }
    assert (info.hiding, info.hard_links) == (256, 1)
    assert (info.external_files, info.external_bytes, info.without_digest) == (2, 150000, 1)
    assert (info.inline_files, info.inline_bytes) == (4, 3000 + 5 + 6 + 5000)
    assert (info.objects, info.object_bytes) == (1, 70000)
    assert info.largest == ((80000, "/ext2"), (70000, "/ext"))
    assert (info.shared_xattrs, info.xattr_references) == (1, 260 - 256)


def test_the_format_in_one_word() -> None:
    assert open_image(SAMPLE_SHA512).word(Algorithm.SHA512) == "v0-sha512-12"
    assert open_image(write_image(directory())).facts().algorithm is None


def test_the_largest_files_are_chosen() -> None:
    sizes = [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 93]
    files = {b"f%d" % size: external(size * 1000, None, b"%d" % size) for size in sizes}
    data = write_image(directory(dict(files)))
    expected = tuple((size * 1000, f"/f{size}") for size in sorted(sizes)[:1:-1])
    assert len(expected) == LARGEST == 10
    assert open_image(data).facts().largest == expected


def test_facts_as_json() -> None:
    facts = json.loads(json.dumps(open_image(SAMPLE + b"tail", allow_tail=True).facts().to_dict()))
    assert facts["schema"] == 1
    assert facts["algorithm"] == "sha256"
    assert facts["appended"] == 4
    assert facts["largest"][0] == [80000, "/ext2"]


def test_what_cannot_be_read_has_no_facts() -> None:
    data = write_image(directory({b"f": regular(b"x")}))
    with pytest.raises(ImageError):
        open_image(data[:-1])
    inode = find(SAMPLE, b"ext")
    place = SAMPLE.index(b"\x00\x24\x00\x01", inode.xattr_start)
    image = open_image(patch(SAMPLE, place, "B", 1))
    with pytest.raises(ImageError, match=r"\(/ext\): the metacopy xattr of 36 bytes has no digest"):
        image.facts()
