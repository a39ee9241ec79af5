from __future__ import annotations

import pytest

from cfstools.formats.base import Severity
from cfstools.tree import Device
from tests.formats.images import (
    SAMPLE,
    SAMPLE_SHA512,
    directory,
    external,
    find,
    findings_of,
    patch,
    regular,
    write_image,
)


def text(data: bytes) -> list[str]:
    return [str(finding) for finding in findings_of(data)]


@pytest.mark.parametrize("data", [SAMPLE, SAMPLE_SHA512], ids=["sample", "sha512"])
def test_sound_images_have_no_findings(data: bytes) -> None:
    assert text(data) == []


def test_findings_of_the_file_system_come_too() -> None:
    data = patch(SAMPLE, find(SAMPLE, b"fifo").offset + 6, "H", 3)
    assert [finding.severity for finding in findings_of(data)] == [Severity.WARNING]
    assert findings_of(SAMPLE + b"x", allow_tail=True) == []


def test_redirects_that_the_kernel_refuses() -> None:
    for payload in (b"/absolute", b"a//b", b"a/"):
        (line,) = text(bytes(write_image(directory({b"f": external(payload=payload)}))))
        assert line.endswith(f"the redirect /{payload.decode()} has an empty component, which the kernel refuses")


def test_redirects_that_leave_the_store() -> None:
    for payload in (b"../x", b"a/../b", b"a/.", b"./a"):
        (line,) = text(bytes(write_image(directory({b"f": external(payload=payload)}))))
        assert line.endswith(f"the redirect /{payload.decode()} could leave the object store")


@pytest.mark.parametrize("key", [b"opaque", b"redirect", b"metacopy"])
def test_xattrs_that_overlayfs_would_act_on(key: bytes) -> None:
    tree = directory({b"d": directory(xattrs={b"trusted.overray." + key: b"y"})})
    data = bytes(write_image(tree)).replace(b"overray." + key, b"overlay." + key)
    (line,) = [line for line in text(data) if "name filter" not in line]
    assert line.endswith(f"(/d): overlayfs would act on trusted.overlay.{key.decode()}, which is not allowed here")


def test_the_root_is_opaque() -> None:
    root = find(SAMPLE, b"")
    place = SAMPLE.index(b"overlay.opaquey", root.xattr_start)
    lines = text(patch(SAMPLE, place + 14, "B", ord("x")))
    assert lines == ["inode 36 at offset 0x480 (/): the root is not opaque"]


def test_names_are_hidden_only_where_composefs_does() -> None:
    device = find(SAMPLE, b"null")
    (line,) = text(patch(SAMPLE, device.offset + 16, "I", 0))
    assert line.startswith(f"{device.where} (/null): a character device 0:0 that hides a name")
    nested = bytes(write_image(directory({b"d": directory({b"00": Device(mode=0o20644, rdev=1)})})))
    (line,) = text(patch(nested, find(nested, b"d/00").offset + 16, "I", 0))
    assert "(/d/00): a character device 0:0 that hides a name" in line


def test_the_flag_for_acls_must_be_right() -> None:
    (line,) = text(patch(SAMPLE, 8, "I", 1))
    assert line == "composefs header at offset 0x0: the flag for ACLs is 1, but there are none"
    tree = directory({b"f": regular(b"", xattrs={b"system.posix_acl_access": b"\2\0\0\0"})})
    data = bytes(write_image(tree))
    assert text(data) == []
    (line,) = text(patch(data, 8, "I", 0))
    assert line == "composefs header at offset 0x0: the flag for ACLs is 0, but there are some"
