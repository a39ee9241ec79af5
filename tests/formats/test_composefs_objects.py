"""The objects an image needs, as one walk over it tells."""

from __future__ import annotations

import pytest

from cfstools.errors import ImageError
from cfstools.formats.base import ObjectUse
from cfstools.formats.composefs import write_image
from cfstools.formats.composefs_objects import object_uses
from cfstools.formats.dump import parse_dump
from cfstools.formats.overlay import METACOPY_HEADERS
from cfstools.verity import Algorithm

DIGEST = "ab" * 32
TEXT = f"""/ 4096 40755 2 0 0 0 0.0 - - -
/dev 0 20644 1 0 0 5 0.0 - - -
/external 100 100644 2 0 0 0 0.0 {DIGEST[:2]}/{DIGEST[2:]} - {DIGEST}
/inline 4 100644 1 0 0 0 0.0 - text -
/link 0 @100644 2 0 0 0 0.0 /external - -
/placed 200 100644 1 0 0 0 0.0 some/where - -
/symlink 3 120777 1 0 0 0 0.0 abc - -
"""


def image() -> bytes:
    return bytes(write_image(parse_dump(TEXT.encode())))


def test_every_inode_with_outside_contents_once() -> None:
    digest = bytes.fromhex(DIGEST)
    assert list(object_uses(image())) == [
        ObjectUse(f"{DIGEST[:2]}/{DIGEST[2:]}".encode(), digest, 100),
        ObjectUse(b"some/where", None, 200),
    ]
    assert len(list(object_uses(image() + b"tail", allow_tail=True))) == 2


def test_errors_name_the_inode_and_the_path() -> None:
    header = METACOPY_HEADERS[Algorithm.SHA256]
    with pytest.raises(ImageError, match="no digest of a known form") as caught:
        list(object_uses(image().replace(header, header[:3] + b"\x09")))
    assert caught.value.where is not None
    assert "/external" in caught.value.where
    with pytest.raises(ImageError):
        list(object_uses(image() + b"tail"))
