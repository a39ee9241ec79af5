"""The objects an image needs, as one walk over it tells."""

from __future__ import annotations

import pytest

from cfstools.errors import ImageError
from cfstools.formats.composefs.overlay_xattrs import METACOPY_HEADERS
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.registry import open_image
from cfstools.verity import Algorithm
from tests.formats.images import write_image

DIGEST = "ab" * 32
PLACED = "cd" * 32
TEXT = f"""/ 4096 40755 2 0 0 0 0.0 - - -
/dev 0 20644 1 0 0 5 0.0 - - -
/external 100 100644 2 0 0 0 0.0 {DIGEST[:2]}/{DIGEST[2:]} - {DIGEST}
/inline 4 100644 1 0 0 0 0.0 - text -
/link 0 @100644 2 0 0 0 0.0 /external - -
/placed 200 100644 1 0 0 0 0.0 {PLACED[:2]}/{PLACED[2:]} - -
/symlink 3 120777 1 0 0 0 0.0 abc - -
"""


def image() -> bytes:
    return bytes(write_image(parse_dump(TEXT.encode())))


def test_every_inode_with_outside_contents_once() -> None:
    digest = bytes.fromhex(DIGEST)
    placed = bytes.fromhex(PLACED)
    assert open_image(image()).objects() == {digest: 100, placed: 200}
    assert open_image(image() + b"tail", allow_tail=True).objects() == {digest: 100, placed: 200}


def test_an_object_named_by_digest_and_by_another_place_is_two() -> None:
    text = TEXT.replace(f"{DIGEST[:2]}/{DIGEST[2:]} -", f"{PLACED[:2]}//{PLACED[2:]} -")
    assert open_image(bytes(write_image(parse_dump(text.encode())))).objects().keys() == {
        bytes.fromhex(DIGEST),
        bytes.fromhex(PLACED),
    }


@pytest.mark.parametrize("place", ["some/where", f"{DIGEST[:2]}{DIGEST[2:]}", f"x/{DIGEST[:2]}/{DIGEST[2:]}"])
def test_a_place_of_no_object_counts_for_nothing(place: str) -> None:
    text = TEXT.replace(f"{PLACED[:2]}/{PLACED[2:]}", place)
    assert open_image(bytes(write_image(parse_dump(text.encode())))).objects() == {bytes.fromhex(DIGEST): 100}


def test_errors_name_the_inode_and_the_path() -> None:
    header = METACOPY_HEADERS[Algorithm.SHA256]
    opened = open_image(image().replace(header, header[:3] + b"\x09"))
    with pytest.raises(ImageError, match="no digest of a known form") as caught:
        opened.objects()
    assert caught.value.where is not None
    assert "/external" in caught.value.where
