"""A whole Debian root: image and store as the reference makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.stores import store_of
from tests.mkcfs import mkcfs
from tests.reference import Reference


@pytest.mark.reference
@pytest.mark.slow
def test_debian_root(reference: Reference, debian_tree: Path, tmp_path: Path) -> None:
    reference.mkcomposefs(debian_tree, tmp_path / "theirs.cfs", store=tmp_path / "theirs")
    mkcfs("build", debian_tree, tmp_path / "ours.cfs", "--store", tmp_path / "ours", "--no-hardlinks")
    assert (tmp_path / "ours.cfs").read_bytes() == (tmp_path / "theirs.cfs").read_bytes()
    theirs = store_of(tmp_path / "theirs")
    assert store_of(tmp_path / "ours") == theirs
    assert len(theirs) > 5000
    for verb in ("dump", "ls", "objects"):
        assert mkcfs(verb, tmp_path / "ours.cfs").stdout == reference.info(verb, tmp_path / "ours.cfs")
    # The text is a source as well, and gives the same image again.
    text = mkcfs("dump", tmp_path / "ours.cfs").stdout
    again = mkcfs("build", "--from-file", "-", "-", stdin=text).stdout
    assert again == (tmp_path / "ours.cfs").read_bytes()
