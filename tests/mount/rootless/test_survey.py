"""What a tree would take in memory, and when that is too much."""

from __future__ import annotations

import stat

import pytest

from cfstools.errors import InputError, Unsupported
from cfstools.mount.rootless import fits, survey
from cfstools.tree import (
    Blob,
    Content,
    Directory,
    External,
    Fifo,
    HardLink,
    Located,
    Piece,
    RegularFile,
    Stamp,
    Symlink,
    Unread,
    Xattrs,
)

PAGE = 4096


def tree(*contents: Content, xattrs: Xattrs | None = None) -> Directory:
    root = Directory(mode=stat.S_IFDIR | 0o755)
    for number, content in enumerate(contents):
        size = len(content) if isinstance(content, bytes) else 1
        root.entries[b"%d" % number] = RegularFile(
            mode=stat.S_IFREG | 0o644, size=size, content=content, xattrs=xattrs or {}
        )
    return root


def test_contents_in_the_image_take_pages() -> None:
    external = External(bytes(32), None)
    assert survey.survey(tree(external, external)).pages == 0
    assert survey.survey(tree(b"", b"x", b"x" * PAGE, b"x" * (PAGE + 1))).pages == 4 * PAGE


def test_long_targets_take_pages() -> None:
    root = tree()
    for length in (1, 127, 128, 4095):
        root.entries[b"%d" % length] = Symlink(mode=stat.S_IFLNK | 0o777, target=b"t" * length)
    assert survey.survey(root).pages == 2 * PAGE


def test_every_name_counts() -> None:
    """Hard links too: a small image may have millions of them for one inode."""
    fifo = Fifo(mode=stat.S_IFIFO | 0o600)
    root = tree()
    root.entries[b"primary"] = fifo
    one = survey.survey(root)
    root.entries |= {b"link%d" % number: HardLink(fifo) for number in range(100)}
    many = survey.survey(root)
    assert (one.names, many.names) == (2, 102)
    assert many.memory > one.memory + 100 * 300
    assert many.linked == {fifo}


def test_shared_attributes_count_for_each_inode() -> None:
    """An image has them once; as files each inode has its own."""
    large: Xattrs = {b"user.a": b"v" * 60_000}
    plain, heavy = tree(*[b""] * 50), tree(*[b""] * 50, xattrs=large)
    assert survey.survey(heavy).memory - survey.survey(plain).memory > 50 * 60_000
    heavy.xattrs = large
    assert survey.survey(heavy).memory - survey.survey(plain).memory > 51 * 60_000


def test_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(*[b"x"] * 100)
    found = survey.survey(root)
    monkeypatch.setattr(survey, "available_memory", lambda: found.memory * 4)
    survey.check_fits(found)
    assert fits(root)
    monkeypatch.setattr(survey, "available_memory", lambda: found.memory * 4 - 4)
    with pytest.raises(Unsupported, match="of memory"):
        survey.check_fits(found)
    assert not fits(root)
    monkeypatch.setattr(survey, "available_memory", lambda: None)
    survey.check_fits(found)
    survey.check_fits(found._replace(names=survey.MAX_NAMES))
    with pytest.raises(Unsupported, match="has 500001 names, the method overlay takes 500000"):
        survey.check_fits(found._replace(names=survey.MAX_NAMES + 1))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (External(None, None), "unknown"),
        (Unread(b"x", Stamp(0, 0, 1, 0, 0)), "unknown"),
        (Located([Piece(1, Blob(1, 10))]), "in pieces of blob 1"),
    ],
)
def test_contents_without_an_object(content: Content, what: str) -> None:
    with pytest.raises(InputError, match=what):
        survey.survey(tree(content))
    assert not fits(tree(content))
