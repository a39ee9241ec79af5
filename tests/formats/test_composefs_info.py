from __future__ import annotations

import json

import pytest

from cfstools.errors import ImageError
from cfstools.formats.composefs import write_image
from cfstools.formats.composefs_info import image_info
from cfstools.formats.registry import open_image
from cfstools.verity import Algorithm
from tests.formats.images import SAMPLE, SAMPLE_SHA512, directory, external, find, patch, regular


def test_facts_of_the_sample() -> None:
    info = image_info(SAMPLE)
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
    assert image_info(write_image(directory())).algorithm is None


def test_the_largest_files_are_chosen() -> None:
    files = {b"f%d" % size: external(size * 1000, None, b"%d" % size) for size in (3, 1, 4, 9, 5)}
    data = write_image(directory(dict(files)))
    assert image_info(data, largest=2).largest == ((9000, "/f9"), (5000, "/f5"))
    assert image_info(data, largest=0).largest == ()


def test_facts_as_json() -> None:
    facts = json.loads(json.dumps(image_info(SAMPLE + b"tail", allow_tail=True).to_dict()))
    assert facts["schema"] == 1
    assert facts["algorithm"] == "sha256"
    assert facts["appended"] == 4
    assert facts["largest"][0] == [80000, "/ext2"]


def test_what_cannot_be_read_has_no_facts() -> None:
    data = write_image(directory({b"f": regular(b"x")}))
    with pytest.raises(ImageError):
        image_info(data[:-1])
    inode = find(SAMPLE, b"ext")
    place = SAMPLE.index(b"\x00\x24\x00\x01", inode.xattr_start)
    with pytest.raises(ImageError, match=r"\(/ext\): the metacopy xattr of 36 bytes has no digest"):
        image_info(patch(SAMPLE, place, "B", 1))
