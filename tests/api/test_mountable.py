"""Images that are to be mounted: what is kept of them, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.api.mountable import Mountable, mountable_image
from cfstools.errors import ImageError
from cfstools.verity import ObjectId, digest_bytes
from tests.mkcfs import mkcfs


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"inline")
    mkcfs("build", tmp_path / "tree", tmp_path / "image.cfs")
    return tmp_path / "image.cfs"


def names(found: Mountable) -> list[bytes]:
    return list(found.opened.mounted_tree().entries)


def test_what_was_forgotten_is_read_again(image: Path) -> None:
    with mountable_image(os.fsencode(image)) as found:
        before, tree = found.data, found.opened
        assert names(found) == [b"file"]
        found.forget()
        found.forget()
        assert found.opened is not tree
        assert names(found) == [b"file"]
        assert found.data is not before
        image.write_bytes(b"no image")
        assert names(found) == [b"file"]
        found.forget()
        with pytest.raises(ImageError):
            names(found)


def test_what_was_checked_is_never_read_again(image: Path) -> None:
    digest = ObjectId.of(digest_bytes(image.read_bytes()))
    with mountable_image(os.fsencode(image), digest=digest) as found:
        before, tree = found.data, found.opened
        found.forget()
        image.write_bytes(b"no image")
        assert found.opened is not tree
        assert found.data is before
        assert names(found) == [b"file"]
