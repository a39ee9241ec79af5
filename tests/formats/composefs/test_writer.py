"""The image writer: worked examples, every refusal, and sizes around block borders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from cfstools.errors import CfsError, TreeError, UsageError
from cfstools.formats.composefs.overlay_xattrs import escape_key, select_version
from cfstools.formats.composefs.writer import plan_image
from cfstools.formats.erofs.layout import BLOCK_SIZE, COMPOSEFS_HEADER, FIRST_INODE_OFFSET, ComposefsHeader
from cfstools.formats.erofs.writer import chunk_geometry
from cfstools.formats.erofs.xattrs import filter_bit, split_key, xxh32
from cfstools.tree import (
    Blob,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Located,
    Piece,
    RegularFile,
    Stamp,
    Symlink,
    Unread,
)
from cfstools.verity import Algorithm, digest_bytes
from tests.formats.images import write_image

pytestmark = pytest.mark.usefixtures("each_implementation")

SELINUX = b"security.selinux"
USR_LABEL = {SELINUX: b"system_u:object_r:usr_t:s0\0"}


def root_with(entries: dict[bytes, Entry] | None = None) -> Directory:
    return Directory(mode=0o40755, entries=entries or {})


def empty_file() -> RegularFile:
    return RegularFile(mode=0o100644, size=0, content=b"")


def example_b() -> Directory:
    digest = bytes.fromhex("abcdef0123456789" * 4)
    return Directory(
        mode=0o40755,
        mtime_sec=1700000000,
        xattrs={SELINUX: b"system_u:object_r:root_t:s0\0"},
        entries={
            b"ext": RegularFile(
                mode=0o100644,
                uid=1000,
                gid=1000,
                mtime_sec=1700000000,
                size=4097,
                content=External(digest, b"ab/cdef01"),
                xattrs={**USR_LABEL, b"user.comment": b"hello"},
            ),
            b"inl": RegularFile(
                mode=0o100755, mtime_sec=1700000001, mtime_nsec=500, size=6, content=b"hello\n", xattrs=USR_LABEL
            ),
        },
    )


def example_c() -> Directory:
    directory = Directory(mode=0o40755, entries={b"entry-%03d" % number: empty_file() for number in range(200)})
    return root_with({b"d": directory})


@pytest.mark.parametrize(
    ("make", "size", "sha256", "verity"),
    [
        (
            root_with,
            16384,
            "c3dc5b0fc4afb0693a95e017fe5815e1f88f204d485df617541b5ea659aefb8b",
            "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682",
        ),
        (
            example_b,
            24576,
            "957116d27ae16db285df8946d1bf49c2d219af4e60b8ccd4c59b2c66ca51a943",
            "92b53b64341cf648b24c4449014f83c803b8a61326d9e4c942a55e545ba6b437",
        ),
        (
            example_c,
            24576,
            "c33d9f6f3faf3830e8f43502d08fb28d902837398ae5a547e37a5eb68697d56e",
            "9f8d513a2479ed11a8a3329b7e205bcf7cfae0b6485faf94df3c3970b7f19257",
        ),
    ],
    ids=["empty root", "shared xattrs", "two directory blocks"],
)
def test_worked_examples_come_out_bit_for_bit(
    make: Callable[[], Directory], size: int, sha256: str, verity: str
) -> None:
    image = write_image(make())
    assert len(image) == size
    assert hashlib.sha256(image).hexdigest() == sha256
    assert digest_bytes(image).hex() == verity


def test_planned_size_is_the_written_size_and_the_tree_stays_untouched() -> None:
    root = example_b()
    plan = plan_image(root)
    assert plan.size == sum(map(len, plan.chunks()))
    assert set(root.entries) == {b"ext", b"inl"}
    assert root.xattrs == {SELINUX: b"system_u:object_r:root_t:s0\0"}


def test_long_images_come_in_pieces() -> None:
    root = root_with(
        {b"%05d" % number: RegularFile(mode=0o100644, size=4096, content=b"x" * 4096) for number in range(600)}
    )
    assert len(list(plan_image(root).chunks())) > 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0x02CC5D05), (b"abc", 0x32D153FF), (b"Nobody inspects the spammish repetition", 0xE2293B2F)],
)
def test_xxh32_known_values(data: bytes, expected: int) -> None:
    assert xxh32(data, 0) == expected


@pytest.mark.parametrize(
    ("name", "index", "bit"),
    [
        (b"overlay.opaque", 4, 20),
        (b"overlay.metacopy", 4, 31),
        (b"overlay.redirect", 4, 17),
        (b"selinux", 6, 11),
        (b"", 2, 30),
        (b"", 3, 21),
    ],
)
def test_name_filter_bits(name: bytes, index: int, bit: int) -> None:
    assert filter_bit(index, name) == 1 << bit


@pytest.mark.parametrize(
    ("key", "index", "name"),
    [
        (b"user.a", 1, b"a"),
        (b"system.posix_acl_access", 2, b""),
        (b"system.posix_acl_access_more", 2, b"_more"),
        (b"system.posix_acl_default", 3, b""),
        (b"trusted.x", 4, b"x"),
        (b"security.capability", 6, b"capability"),
        (b"lustre.x", 0, b"lustre.x"),
        (b"User.x", 0, b"User.x"),
        (b"trustedx", 0, b"trustedx"),
    ],
)
def test_prefixes_are_pure_prefix_tests(key: bytes, index: int, name: bytes) -> None:
    assert split_key(key) == (index, name)


@pytest.mark.parametrize(
    ("key", "escaped"),
    [
        (b"trusted.overlay.redirect", b"trusted.overlay.overlay.redirect"),
        (b"trusted.overlay.overlay.x", b"trusted.overlay.overlay.overlay.x"),
        (b"user.overlay.opaque", b"user.overlay.opaque"),
        (b"trusted.other", b"trusted.other"),
    ],
)
def test_overlay_keys_are_escaped(key: bytes, escaped: bytes) -> None:
    assert escape_key(key) == escaped


@pytest.mark.parametrize(
    ("minimum", "maximum", "whiteout", "version"),
    [
        (0, 1, False, 0),
        (0, 1, True, 1),
        (0, 0, True, 0),
        (1, 1, False, 1),
        (1, 0, False, 1),
    ],
)
def test_version_rules(minimum: int, maximum: int, whiteout: bool, version: int) -> None:
    assert select_version(minimum, maximum, has_whiteout=whiteout) == version


@pytest.mark.parametrize(("minimum", "maximum"), [(2, 0), (0, 2), (-1, 0), (0, -1)])
def test_versions_that_do_not_exist(minimum: int, maximum: int) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        select_version(minimum, maximum, has_whiteout=False)


def header_of(image: bytes) -> ComposefsHeader:
    return ComposefsHeader(*COMPOSEFS_HEADER.unpack_from(image))


def test_whiteouts_raise_the_version_and_mark_their_parent_once() -> None:
    whiteouts: dict[bytes, Entry] = {name: Device(mode=0o020644, rdev=0) for name in (b"a", b"b")}
    root = root_with({b"d": Directory(mode=0o40755, entries=whiteouts)})
    assert header_of(write_image(root)).composefs_version == 1
    assert header_of(write_image(root, max_version=0)).composefs_version == 0
    marked = write_image(root, max_version=0)
    assert marked.count(b"overlay.overlay.whiteouts") == 1


def test_acl_flag_needs_the_exact_key() -> None:
    root = root_with(
        {b"f": RegularFile(mode=0o100644, size=0, content=b"", xattrs={b"system.posix_acl_access_more": b""})}
    )
    assert header_of(write_image(root)).flags == 0
    root.entries[b"g"] = RegularFile(mode=0o100644, size=0, content=b"", xattrs={b"system.posix_acl_default": b""})
    assert header_of(write_image(root)).flags == 1


def test_hard_links_share_the_inode_wherever_the_primary_name_is() -> None:
    leaf = RegularFile(mode=0o100644, size=3, content=b"abc", nlink=2)
    ahead = root_with({b"a": HardLink(leaf), b"d": Directory(mode=0o40755, entries={b"x": leaf})})
    assert write_image(ahead).count(b"abc") == 1


def test_empty_external_files_carry_no_overlay_xattrs() -> None:
    root = root_with({b"f": RegularFile(mode=0o100644, size=0, content=External(bytes(32), b"00/11"))})
    assert write_image(root) == write_image(root_with({b"f": empty_file()}))


def test_sha512_objects_have_their_own_metacopy() -> None:
    external = External(bytes(range(64)), b"00/01")
    root = root_with({b"f": RegularFile(mode=0o100644, size=100, content=external)})
    assert b"\x00\x44\x00\x02" + bytes(range(64)) in write_image(root, algorithm=Algorithm.SHA512)


def one(entry: Entry, name: bytes = b"bad") -> Directory:
    return root_with({b"dir": Directory(mode=0o40755, entries={name: entry})})


@pytest.mark.parametrize(
    ("root", "what"),
    [
        (one(Symlink(mode=0o120777, target=b"")), "symlink target of 0 bytes"),
        (one(Symlink(mode=0o120777, target=b"x" * 4096)), "symlink target of 4096 bytes"),
        (one(Symlink(mode=0o120777, target=b"a\0b")), "NUL"),
        (one(empty_file(), b"n" * 256), "name of 256 bytes"),
        (one(empty_file(), b""), "name of 0 bytes"),
        (one(empty_file(), b"."), "'.'"),
        (one(HardLink(empty_file()), b".."), "'..'"),
        (one(empty_file(), b"a/b"), "slash"),
        (one(empty_file(), b"a\0b"), "NUL"),
        (one(RegularFile(mode=0o100644, size=5001, content=b"x" * 5001)), "inline content"),
        (one(RegularFile(mode=0o100644, size=2, content=b"x")), "inline content"),
        (one(RegularFile(mode=0o100644, size=9, content=Unread(b"bad", Stamp(0, 0, 9, 0, 0)))), "not read"),
        (
            one(RegularFile(mode=0o100644, size=9, content=Located([Piece(9, Blob(1, 9, None, b"blobs/tar"))]))),
            "contents lie in pieces of blobs/tar; a composefs image can name whole objects only",
        ),
        (one(RegularFile(mode=0o100644, size=2**53 + 1, content=External(None, None))), "too large"),
        (one(RegularFile(mode=0o100644, size=9, content=External(b"short", None))), "digest has 5 bytes"),
        (one(RegularFile(mode=0o100644, size=9, content=External(None, b"p" * 4096))), "payload of 4096"),
        (one(HardLink(empty_file())), "hard link to an inode that is not in the tree"),
        (one(Fifo(mode=0o010644, xattrs={b"user.x": b"v" * 32743})), "no room"),
        (one(Fifo(mode=0o010644, uid=2**32)), "out of the format's range"),
        (one(Fifo(mode=0o010644, mtime_sec=2**63)), "out of the format's range"),
        (one(Device(mode=0o020644, rdev=0, xattrs={b"trusted.overlay.whiteout": b"abc", b"user.z": b"1"})), "no room"),
    ],
)
def test_what_an_image_cannot_hold_is_refused_with_its_path(root: Directory, what: str) -> None:
    with pytest.raises(TreeError) as caught:
        write_image(root)
    assert what in str(caught.value)
    assert "/dir/" in str(caught.value)


def test_a_marker_that_cannot_be_replaced_names_the_directory() -> None:
    holder = Directory(
        mode=0o40755,
        entries={b"w": Device(mode=0o020644, rdev=0)},
        xattrs={b"trusted.overlay.whiteouts": b"abc", b"user.z": b"1"},
    )
    with pytest.raises(TreeError, match="/dir: no room"):
        write_image(root_with({b"dir": holder}))


def test_more_xattrs_than_an_inode_can_count_is_refused() -> None:
    with pytest.raises(CfsError, match="no room"):
        write_image(one(Fifo(mode=0o010644, xattrs={b"user.%d" % number: b"" for number in range(5000)})))


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        (1, (12, 1)),
        (4096, (12, 1)),
        (4097, (13, 1)),
        (2**43, (43, 1)),
        (2**43 + 1, (43, 2)),
        (2**53, (43, 1024)),
    ],
)
def test_chunk_geometry(size: int, geometry: tuple[int, int]) -> None:
    assert chunk_geometry(size) == geometry


@pytest.mark.parametrize("length", [4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095])
def test_symlinks_stay_whole_in_one_block(length: int) -> None:
    target = b"t" * length
    image = write_image(root_with({b"l": Symlink(mode=0o120777, target=target)}))
    position = image.index(target, FIRST_INODE_OFFSET)
    assert position // BLOCK_SIZE == (position + length - 1) // BLOCK_SIZE
