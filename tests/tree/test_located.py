"""Contents inside other blobs: pieces that cannot be, pieces that are one, and copies of trees that have them."""

from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import LimitExceeded, TreeError
from cfstools.tree import Blob, Directory, HardLink, Located, Piece, RegularFile, model
from cfstools.tree.copying import copy_tree, select, settle_links
from cfstools.tree.filters import split_hardlinks, use_epoch
from cfstools.tree.model import MAX_SIZE
from cfstools.tree.objects import blobs_text, pieces_text
from tests.strategies import describe

IMAGE = Blob(0, 1 << 16)
TAR = Blob(1, 100, bytes(32), b"00/tar")
OTHER = Blob(2, 1 << 70)

blobs = st.sampled_from([None, IMAGE, TAR, OTHER])


@st.composite
def all_pieces(draw: st.DrawFn) -> list[Piece]:
    pieces = []
    for blob in draw(st.lists(blobs, max_size=8)):
        length = draw(st.integers(1, 20))
        pieces.append(Piece(length, blob, draw(st.integers(0, 80)) if blob else 0))
    return pieces


def in_bytes(pieces: tuple[Piece, ...] | list[Piece]) -> list[tuple[Blob | None, int]]:
    """Where each byte of the file is."""
    return [(piece.blob, piece.offset + at if piece.blob else 0) for piece in pieces for at in range(piece.length)]


@given(all_pieces())
def test_pieces_that_continue_each_other_are_one(pieces: list[Piece]) -> None:
    located = Located(pieces)
    assert in_bytes(located.pieces) == in_bytes(pieces)
    assert located.size == len(in_bytes(pieces))
    for one, other in zip(located.pieces, located.pieces[1:], strict=False):
        ends = (one.blob, one.offset + one.length if one.blob else 0)
        assert ends != (other.blob, other.offset)
    assert Located(located.pieces).pieces == located.pieces
    assert located.same_place(Located(pieces))


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([Piece(0, TAR, 0)], "must have bytes"),
        ([Piece(-1, None)], "must have bytes"),
        ([Piece(1, TAR, -1)], "must have bytes"),
        ([Piece(1, None, 1)], "a hole has no offset"),
        ([Piece(1, TAR, 100)], "at 100 in a blob of 100 bytes"),
        ([Piece(1, TAR, 0), Piece(101, TAR, 0)], "101 bytes at 0 in a blob of 100 bytes"),
    ],
)
def test_a_piece_lies_inside_its_blob(pieces: list[Piece], what: str) -> None:
    with pytest.raises(TreeError, match=what):
        Located(pieces)
    assert Located([Piece(100, TAR), Piece(1, TAR, 99)]).size == 101


def test_files_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Located([Piece(MAX_SIZE, OTHER)]).size == MAX_SIZE
    with pytest.raises(LimitExceeded, match=f"at most {MAX_SIZE}"):
        Located([Piece(MAX_SIZE, OTHER), Piece(1, None)])
    monkeypatch.setattr(model, "MAX_PIECES", 3)
    assert len(Located(repeat(Piece(1, TAR), 3)).pieces) == 3
    with pytest.raises(LimitExceeded, match="more than 3 pieces"):
        Located(repeat(Piece(1, TAR)))


def test_a_blob_is_the_same_under_another_number() -> None:
    assert Located([Piece(5, TAR)]).same_place(Located([Piece(5, TAR._replace(number=7))]))
    for other in [[Piece(5, TAR, 1)], [Piece(4, TAR)], [Piece(5, None)], [Piece(5, TAR), Piece(1, None)]]:
        assert not Located([Piece(5, TAR)]).same_place(Located(other))
    assert Located([Piece(9, None)]).same_place(Located([Piece(4, None), Piece(5, None)]))


def test_places_in_words() -> None:
    located = Located([Piece(10, TAR, 5), Piece(7, None), Piece(10, IMAGE, 5), Piece(1, OTHER), Piece(1, TAR, 5)])
    assert blobs_text(located) == "00/tar, the image itself, blob 2"
    assert pieces_text(located) == "00/tar 5+10, hole 7, the image itself 5+10 and 2 more"
    assert blobs_text(Located([Piece(7, None)])) == "no blob"
    assert blobs_text(Located([Piece(7, TAR._replace(payload=None))])) == "00/" + "0" * 62


def test_trees_with_such_contents_are_copied_and_changed_as_any() -> None:
    file = RegularFile(mode=0o100644, size=15, mtime_sec=9, content=Located([Piece(10, TAR), Piece(5, None)]))
    below = Directory(mode=0o40755, entries={b"a": HardLink(file), b"b": file})
    root = Directory(mode=0o40755, entries={b"d": below})
    settle_links(root)
    copy = copy_tree(root)
    assert describe(copy) == describe(root)
    assert describe(select(root, [b"/d/b"]))[b"/d/b"] == describe(root)[b"/d/a"]
    use_epoch(copy)
    split_hardlinks(copy)
    assert describe(copy)[b"/d/a"] == describe(copy)[b"/d/b"]
    assert "located" in describe(copy)[b"/d/a"]
