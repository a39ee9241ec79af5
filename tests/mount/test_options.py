"""The option string of mount.composefs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import UsageError
from cfstools.mount import HelperOptions, OverlayVerity, parse_options


def test_all_options() -> None:
    text = rb"basedir=/a:/b\:c\,d,digest=ab\c,tryverity,idmap=/n,ro,rw,upperdir=/u\\,workdir=/w=x"
    assert parse_options(text) == HelperOptions(
        stores=(b"/a", b"/b:c,d"),
        digest="abc",
        objects=OverlayVerity.REQUIRE,
        writable=True,
        upper=b"/u\\",
        work=b"/w=x",
        idmap=b"/n",
    )


def test_what_is_not_there_stays_open() -> None:
    assert parse_options(b"") == HelperOptions()
    assert parse_options(b"rw,ro").writable is False
    assert parse_options(b"suid,nosuid,nodev,dev,noexec") == HelperOptions(nosuid=True, nodev=False, noexec=True)
    assert parse_options(b"tryverity").objects is OverlayVerity.TRY
    assert parse_options(b"verity,tryverity").objects is OverlayVerity.REQUIRE
    assert parse_options(b"digest=") == HelperOptions(digest="", objects=OverlayVerity.REQUIRE)
    assert parse_options(b"upperdir=/a,upperdir=/b").upper == b"/b"
    assert parse_options(b"noatime,atime").noatime is False
    assert parse_options(b"atime,noatime").noatime is True


def test_what_the_command_has_options_for() -> None:
    text = rb"lazy=docker://h:1/a\,b,method=fuse,lazy=s3://x/y,allow_other,readahead=0,lazy=,fetch_timeout=5"
    assert parse_options(text).settings == (
        ("lazy", b"docker://h:1/a,b"),
        ("method", b"fuse"),
        ("lazy", b"s3://x/y"),
        ("allow_other", None),
        ("readahead", b"0"),
        ("lazy", b""),
        ("fetch_timeout", b"5"),
    )


def test_words_for_others_are_passed_over() -> None:
    text = b"rw,nofail,_netdev,user,users,auto,noauto,relatime,defaults,x-systemd.automount,comment=a=b,user=me,group"
    assert parse_options(text) == HelperOptions(writable=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"noverity", "unknown mount option: noverity"),
        (b"ro,", "unknown mount option: "),
        (b"signed=1", "unknown mount option: signed=1"),
        (b"nosuid=1", "unknown mount option: nosuid=1"),
        (b"NOSUID", "unknown mount option: NOSUID"),
        (b"ro=1", "unknown mount option: ro=1"),
        (b"basedir", "unknown mount option: basedir"),
        (b"\xff", r"unknown mount option: \\xff"),
        (b"basedir=/a::/b", "empty path"),
        (b"basedir=", "empty path"),
        (b"upperdir=", "empty path"),
        (b"ro\\", "end in a backslash"),
        (b"lazy", "unknown mount option: lazy"),
        (b"allow_other=1", "unknown mount option: allow_other=1"),
        (b"foreground", "unknown mount option: foreground"),
        (b"store=/a", "unknown mount option: store=/a"),
        (b"nofail=1", "unknown mount option: nofail=1"),
    ],
)
def test_what_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_options(text)


@given(st.binary())
def test_any_bytes(text: bytes) -> None:
    try:
        parse_options(text)
    except UsageError:
        return


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_escaped_paths_come_back(paths: list[bytes]) -> None:
    escaped = b":".join(path.replace(b"\\", b"\\\\").replace(b",", b"\\,").replace(b":", b"\\:") for path in paths)
    assert parse_options(b"ro,basedir=" + escaped + b",rw").stores == tuple(paths)
