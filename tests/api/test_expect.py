"""Digests made in every way ``build`` knows are recognised, others are not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.expect import BuildChoice, ExpectReport, expect
from cfstools.formats.dump.print import print_dump
from cfstools.tree import Device, HardLink
from cfstools.tree.walk import iter_inodes
from cfstools.tree.xattrs import XattrPolicy
from cfstools.verity import Algorithm, ObjectId, digest_bytes
from tests.formats.images import directory, external, regular, write_image

VERSION_1 = "format version 1"
WAYS: list[tuple[dict[str, object], tuple[str, ...]]] = [
    ({}, ()),
    ({"min_version": 1}, (VERSION_1,)),
    ({"skip_devices": True}, ("no devices",)),
    ({"xattrs": XattrPolicy.USER}, ("only user.* xattrs",)),
    ({"xattrs": XattrPolicy.NONE}, ("no xattrs",)),
    ({"hardlinks": False}, ("hard links split",)),
    ({"use_epoch": True}, ("all mtimes 0",)),
    (
        {"min_version": 1, "hardlinks": False, "use_epoch": True},
        (VERSION_1, "hard links split", "all mtimes 0"),
    ),
]


@pytest.fixture
def source(tmp_path: Path) -> bytes:
    inode = regular(b"linked", nlink=2, mtime_sec=7, mtime_nsec=7, xattrs={b"user.x": b"1", b"trusted.x": b"1"})
    root = directory(
        {
            b"a": inode,
            b"b": HardLink(inode),
            b"dev": Device(mode=stat.S_IFCHR, rdev=5),
            b"large": external(),
        }
    )
    path = tmp_path / "dump"
    path.write_bytes(b"".join(print_dump(root)))
    return os.fsencode(path)


def outcome(report: ExpectReport) -> tuple[bool, str | None, tuple[str, ...]]:
    return report.found, report.format, tuple(choice.value for choice in report.choices)


@pytest.mark.parametrize(("options", "choices"), WAYS)
def test_the_way_a_digest_was_made(source: bytes, options: dict[str, object], choices: tuple[str, ...]) -> None:
    made = build(source, None, options=BuildOptions(**options))  # type: ignore[arg-type]
    assert outcome(expect(source, ObjectId.parse(made.digest))) == (True, made.format, choices)


def test_times_without_nanoseconds(source: bytes) -> None:
    text = Path(os.fsdecode(source))
    whole = text.with_name("whole")
    whole.write_bytes(text.read_bytes().replace(b" 7.7 ", b" 7.0 "))
    made = build(os.fsencode(whole), None)
    assert expect(source, ObjectId.parse(made.digest)).choices == (BuildChoice.SECONDS,)
    # Without nanoseconds there is one choice less.
    nothing = expect(os.fsencode(whole), ObjectId(Algorithm.SHA256, bytes(32)))
    assert not nothing.found
    assert nothing.tried < expect(source, ObjectId(Algorithm.SHA256, bytes(32))).tried


def test_a_directory_and_the_longer_hash(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs/large").write_bytes(bytes(9000))
    path = os.fsencode(tmp_path / "rootfs")
    made = build(path, None, options=BuildOptions(algorithm=Algorithm.SHA512, min_version=1))
    report = expect(path, ObjectId.parse(made.digest))
    assert outcome(report) == (True, "v1-sha512-12", (VERSION_1,))
    assert report.to_dict()["digest"] == made.digest


def test_the_algorithm_is_part_of_the_digest(tmp_path: Path) -> None:
    """The right bytes under the name of the other algorithm are the digest of nothing."""
    (tmp_path / "rootfs").mkdir()
    path = os.fsencode(tmp_path / "rootfs")
    digest = bytes.fromhex(build(path, None).digest)
    assert expect(path, ObjectId(Algorithm.SHA256, digest)).found
    assert not expect(path, ObjectId(Algorithm.SHA512, digest)).found


def test_whiteouts_make_version_1_the_default(tmp_path: Path) -> None:
    root = directory({b"gone": Device(mode=stat.S_IFCHR, rdev=0)})
    path = tmp_path / "dump"
    path.write_bytes(b"".join(print_dump(root)))
    for version, choices in ((0, ("format version 0",)), (1, ())):
        digest = digest_bytes(write_image(root, min_version=version, max_version=version))
        assert outcome(expect(os.fsencode(path), ObjectId.of(digest))) == (True, f"v{version}-sha256-12", choices)


def test_what_the_tree_gives_no_room_for_is_not_tried(tmp_path: Path) -> None:
    root = directory({b"f": regular(b"", xattrs={b"user.only": b""})})
    assert not any(inode.mtime_sec for inode in iter_inodes(root))
    path = tmp_path / "image"
    path.write_bytes(write_image(root))
    report = expect(os.fsencode(path), ObjectId(Algorithm.SHA256, bytes(32)))
    assert outcome(report) == (False, None, ())
    assert report.tried == 4  # two versions, with the xattr and without
