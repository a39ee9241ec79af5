from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import TreeError
from cfstools.tree.xattrs import (
    MAX_SPACE,
    XattrBuilder,
    XattrPolicy,
    check_xattr,
    check_xattr_space,
    xattr_space,
)


@pytest.mark.parametrize(("size", "fits"), [(32742, True), (32743, False)])
def test_the_largest_single_value_is_the_references(size: int, *, fits: bool) -> None:
    value = b"v" * size
    builder = XattrBuilder()
    if fits:
        builder.set(b"user.a", value)
        check_xattr_space({b"user.a": value})
        assert builder.build() == {b"user.a": value}
    else:
        with pytest.raises(TreeError, match=r"no room for extended attribute user\.a"):
            builder.set(b"user.a", value)
        with pytest.raises(TreeError, match=r"user\.a"):
            check_xattr_space({b"user.a": value})


def test_replacing_gives_back_the_old_cost() -> None:
    builder = XattrBuilder()
    builder.set(b"user.z", b"1")
    for _ in range(3):
        builder.set(b"user.a", b"x" * 20000)
    builder.set(b"user.a", b"short")
    builder.set(b"user.b", b"y" * 30000)
    assert list(builder.build()) == [b"user.z", b"user.a", b"user.b"]


def test_replacing_the_only_attribute_starts_again() -> None:
    builder = XattrBuilder()
    builder.set(b"user.a", b"x" * 32742)
    builder.set(b"user.a", b"y" * 32742)
    assert builder.get(b"user.a") == b"y" * 32742


def test_an_existing_attribute_cannot_be_replaced_by_a_shorter_one() -> None:
    """Quirk Q5: the account forgets what was there, and goes below zero."""
    builder = XattrBuilder({b"trusted.overlay.whiteouts": b"abc", b"user.z": b"1"})
    with pytest.raises(TreeError):
        builder.set(b"trusted.overlay.whiteouts", b"")


@pytest.mark.parametrize(
    ("existing", "before"),
    [
        ({b"trusted.overlay.whiteouts": b"abc"}, {}),
        ({b"trusted.overlay.whiteouts": b"", b"user.z": b"1"}, {}),
        ({b"trusted.overlay.whiteouts": b"abc", b"user.z": b"1"}, {b"user.q": b""}),
    ],
)
def test_an_existing_attribute_can_be_replaced_otherwise(
    existing: dict[bytes, bytes], before: dict[bytes, bytes]
) -> None:
    """Q5 does not show if it was alone, is not shortened, or enough was added before."""
    builder = XattrBuilder(existing)
    for key, value in before.items():
        builder.set(key, value)
    builder.set(b"trusted.overlay.whiteouts", b"")
    assert builder.get(b"trusted.overlay.whiteouts") == b""


def test_remove() -> None:
    builder = XattrBuilder()
    builder.remove(b"user.none")
    builder.set(b"user.a", b"x" * 20000)
    builder.set(b"user.b", b"")
    builder.remove(b"user.a")
    builder.set(b"user.c", b"x" * 20000)
    builder.remove(b"user.c")
    assert b"user.a" not in builder
    assert len(builder) == 1
    builder.remove(b"user.b")
    assert builder.build() == {}
    builder.set(b"user.a", b"x" * 32742)


def test_existing_attributes_are_copied() -> None:
    existing = {b"user.a": b"1"}
    builder = XattrBuilder(existing)
    builder.set(b"user.b", b"2")
    assert existing == {b"user.a": b"1"}
    assert builder.build() == {b"user.a": b"1", b"user.b": b"2"}


@pytest.mark.parametrize(
    ("key", "value"), [(b"", b""), (b"k" * 256, b""), (b"user.a", b"v" * 65536)], ids=["empty", "key", "value"]
)
def test_lengths(key: bytes, value: bytes) -> None:
    with pytest.raises(TreeError):
        check_xattr(key, value)
    with pytest.raises(TreeError):
        XattrBuilder().set(key, value)
    with pytest.raises(TreeError):
        check_xattr_space({key: value})


@given(st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=300).map(lambda v: v * 40), max_size=12))
def test_the_sum_agrees_with_the_account(xattrs: dict[bytes, bytes]) -> None:
    builder = XattrBuilder()
    try:
        for key, value in xattrs.items():
            builder.set(key, value)
    except TreeError:
        assert xattr_space(xattrs) > MAX_SPACE
        with pytest.raises(TreeError):
            check_xattr_space(xattrs)
    else:
        assert xattr_space(xattrs) <= MAX_SPACE
        check_xattr_space(xattrs)
        assert builder.build() == xattrs


def test_policies() -> None:
    keys = [b"user.a", b"security.selinux", b"trusted.a", b"userx"]
    assert list(filter(XattrPolicy.ALL.accepts, keys)) == keys
    assert list(filter(XattrPolicy.USER.accepts, keys)) == [b"user.a"]
    assert list(filter(XattrPolicy.NONE.accepts, keys)) == []
