"""Which way an image is mounted."""

from __future__ import annotations

import errno
import os

import pytest

from cfstools.linux import mount as linux
from cfstools.mount import choose as chooser
from cfstools.mount.choose import Method, choose
from tests.requirements import need_root


@pytest.mark.parametrize(
    ("allowed", "overlay", "kernel_only", "found"),
    [
        ({b"erofs", b"tmpfs"}, True, False, Method.KERNEL),
        ({b"tmpfs"}, True, False, Method.OVERLAY),
        ({b"tmpfs"}, True, True, Method.KERNEL),
        ({b"tmpfs"}, False, False, Method.FUSE),
        (set(), True, False, Method.FUSE),
    ],
)
def test_the_choice(
    *, allowed: set[bytes], overlay: bool, kernel_only: bool, found: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chooser, "may_mount", allowed.__contains__)
    assert choose(Method.AUTO, overlay=lambda: overlay, kernel_only=kernel_only) is found


@pytest.mark.parametrize("method", [method for method in Method if method is not Method.AUTO])
def test_what_is_named_is_not_judged(method: Method) -> None:
    def never() -> bool:
        raise AssertionError

    assert choose(method, overlay=never, kernel_only=True) is method


def test_what_root_may_mount() -> None:
    need_root()
    assert chooser.may_mount(b"tmpfs")
    assert chooser.may_mount(b"erofs")
    assert not chooser.may_mount(b"nonsense")


@pytest.mark.parametrize(("number", "may"), [(errno.EPERM, False), (errno.EINVAL, True), (errno.ENOSYS, None)])
def test_what_the_kernel_answers(number: int, may: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: bytes) -> linux.FsContext:
        raise OSError(number, os.strerror(number), kind)

    monkeypatch.setattr(linux, "FsContext", refuse)
    assert chooser.may_mount(b"erofs") is (os.geteuid() == 0 if may is None else may)
